// The filesystem: FUSE requests answered from the caches, the cluster and the copies on disk.
//
// What the caches can answer is answered inline on the loop that read the request; anything else
// is a coroutine of the same loop, with that loop's own client. Spread over files by subject:
// file_system.cc (lookup, bookkeeping), attribute_ops.cc, namespace_ops.cc, directory_ops.cc,
// open.cc (open, create), close.cc (release), exclusive.cc (files that the cluster hears of later),
// file_io.cc, xattr_ops.cc, commit.cc (flush, fsync, write-back), lock_ops.cc, lock_delegation.cc,
// lock_release.cc, locked_content.cc, callbacks.cc.
//
// Rules that hold throughout: a lock is never held across a co_await or a reply; a kernel lookup is
// counted before the answer that grants it is sent; what the kernel may cache ends no later than
// the session's lease; an interrupted caller is answered EINTR while a commit goes on without it.
//
// Lifetimes: loops, environments, clients and session outlive it. Thread-safety: Operations on the
// loops, Events on the keeper's loop, the rest from any thread.
#pragma once

#include <sys/statvfs.h>

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/base/mutex.h"
#include "common/env/env.h"
#include "common/io/task_group.h"
#include "mountd/cache/cache_store.h"
#include "mountd/cache/session_file.h"
#include "mountd/client/cluster_client.h"
#include "mountd/client/session.h"
#include "mountd/fs/file_state.h"
#include "mountd/fs/held_locks.h"
#include "mountd/fs/identity.h"
#include "mountd/fs/inode_reserve.h"
#include "mountd/fs/mapped_watch.h"
#include "mountd/fs/node_table.h"
#include "mountd/fs/request_task.h"
#include "mountd/fs/second_tries.h"
#include "mountd/fs/sync_history.h"
#include "mountd/fs/write_back.h"
#include "mountd/fuse/fuse_session.h"
#include "mountd/fuse/notifier.h"
#include "mountd/fuse/operations.h"

namespace fermata::mountd {

/// What belongs to one loop.
struct LoopContext {
  unsigned index = 0;
  Env* env = nullptr;
  ClusterClient* client = nullptr;
};

struct FsOptions {
  bool read_only = false;
  bool passthrough = true;
  bool lock_delegation = true;  ///< asks to answer for the locks of files that only it uses
  AtimeRule atime = AtimeRule::kRelative;
  bool exclusive = true;  ///< files are made here where the cluster lets this mount alone make them
  std::chrono::nanoseconds attr_timeout = std::chrono::hours(1);   ///< at most; the lease bounds it
  std::chrono::nanoseconds entry_timeout = std::chrono::hours(1);  ///< at most; the lease bounds it
  std::uint64_t stream_min_bytes = 16ULL << 20;  ///< larger files are opened while they stream in
  std::size_t idle_files_max = 4096;             ///< unused files that keep their copy attached
  Identity identity;
  std::optional<Duration>
      patience;  ///< soft mounts: how long to wait for what the servers are to do
};

class FileSystem final : public Operations, public SessionKeeper::Events {
 public:
  FileSystem(std::vector<LoopContext> loops, ClientSession& session, FsOptions options);
  ~FileSystem() override;

  /// Before the mount: the cache, which needs the cluster's id to be opened.
  void set_store(CacheStore& store);
  /// After the mount: passthrough and kernel caching begin.
  void attach(FuseSession& session, Notifier& notifier);
  /// Whether the kernel has a lookup of the node that it has not given back, or is about to get
  /// one.
  bool granted(NodeHandle node) { return table_.granted(node); }
  /// No notification is sent any more.
  void detach();
  /// Ends what a mountd that is gone has left of its session: others wait for it.
  void end_former_session(const SessionFile::Mark& mark);
  /// Commits what an earlier mountd left, or sets it aside as conflicts. Once, after attach().
  void start_recovery();
  /// A file that could not be committed.
  struct Uncommitted {
    std::string file;  ///< for people: its path if that is known
    std::error_code why;
    bool conflict = false;  ///< it was refused for good, and is kept as one
  };
  /// Commits everything dirty; `done` runs on some loop, with those that could not be in `timeout`.
  void commit_all(Duration timeout, std::function<void(std::vector<Uncommitted>)> done);
  /// Ends background work; `done` runs when it has ended. Then the loops may stop.
  void stop(std::function<void()> done);
  /// Detaches every idle file from its copy, so that the cache can evict it.
  void drop_idle();

  struct Summary {
    NodeTable::Counters nodes;
    std::size_t open_files = 0;
    std::map<std::string, std::uint64_t> commits;  ///< what became of them
  };
  Summary summary();
  /// A quota was set or removed: what is known of room is asked for again.
  void note_quotas_changed();
  /// The copies in the cache, each with its path as far as that is known now.
  std::vector<CacheListing> cached_files();

  // --- SessionKeeper::Events (callbacks.cc)
  // --------------------------------------------------------
  boost::asio::awaitable<CallbackReply> on_callback(CallbackRequest request) override;
  boost::asio::awaitable<void> on_leases_void(Stamp stamp) override;
  boost::asio::awaitable<void> on_new_session(SessionId fresh) override;
  boost::asio::awaitable<bool> give_up_alone(Duration patience) override;

  // --- Operations
  // ----------------------------------------------------------------------------------
  void init(const ConnectionInfo& info) override;
  void lookup(Ctx, NodeHandle parent, std::string_view name, EntryReply reply) override;
  void forget(NodeHandle node, std::uint64_t lookup_count) override;
  void getattr(Ctx, NodeHandle node, std::optional<std::uint64_t> fh, AttrReply reply) override;
  void statx(Ctx, NodeHandle, std::optional<std::uint64_t> fh, StatxReply reply) override;
  void setattr(Ctx, NodeHandle, const SetAttributes&, AttrReply reply) override;
  void readlink(Ctx, NodeHandle, ReadlinkReply reply) override;
  void mknod(Ctx, NodeHandle, std::string_view, mode_t, dev_t, EntryReply reply) override;
  void mkdir(Ctx, NodeHandle, std::string_view, mode_t, EntryReply reply) override;
  void symlink(Ctx, NodeHandle, std::string_view, std::string_view, EntryReply reply) override;
  void link(Ctx, NodeHandle, NodeHandle, std::string_view, EntryReply reply) override;
  void unlink(Ctx, NodeHandle, std::string_view, StatusReply reply) override;
  void rmdir(Ctx, NodeHandle, std::string_view, StatusReply reply) override;
  void rename(Ctx, NodeHandle, std::string_view, NodeHandle, std::string_view, unsigned,
              StatusReply reply) override;
  void open(Ctx, NodeHandle node, const OpenRequest&, OpenReply reply) override;
  void create(Ctx, NodeHandle, std::string_view, const CreateRequest&, CreateReply reply) override;
  void tmpfile(Ctx, NodeHandle parent, const CreateRequest&, CreateReply reply) override;
  void open_abandoned(NodeHandle node, std::uint64_t fh, bool created) override;
  void read(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t offset_bytes, std::size_t size_bytes,
            ReadReply reply) override;
  void write(Ctx, NodeHandle, const WriteRequest&, WriteReply reply) override;
  void flush(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t lock_owner,
             StatusReply reply) override;
  void release(Ctx, NodeHandle, const ReleaseRequest&, StatusReply reply) override;
  void fsync(Ctx, NodeHandle, std::uint64_t fh, bool data_only, StatusReply reply) override;
  void fallocate(Ctx, NodeHandle, std::uint64_t fh, int mode, std::uint64_t offset_bytes,
                 std::uint64_t size_bytes, StatusReply reply) override;
  void lseek(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t offset_bytes, int whence,
             LseekReply reply) override;
  void copy_file_range(Ctx, const CopyRange&, WriteReply reply) override;
  void opendir(Ctx, NodeHandle, int flags, OpenReply reply) override;
  void readdir(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t cookie, DirReply reply) override;
  void releasedir(Ctx, NodeHandle, std::uint64_t fh, StatusReply reply) override;
  void fsyncdir(Ctx, NodeHandle, std::uint64_t fh, bool data_only, StatusReply reply) override;
  void statfs(Ctx, NodeHandle, StatfsReply reply) override;
  void setxattr(Ctx, NodeHandle, const SetXattr&, StatusReply reply) override;
  bool wants_locks() const override { return true; }
  bool wants_acls() const override { return true; }
  void getlk(Ctx, NodeHandle, const LockRequest&, LockReply reply) override;
  void setlk(Ctx, NodeHandle, const LockRequest&, StatusReply reply) override;
  void flock(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t owner, int operation,
             StatusReply reply) override;
  void getxattr(Ctx, NodeHandle, std::string_view name, XattrReply reply) override;
  void listxattr(Ctx, NodeHandle, XattrReply reply) override;
  void removexattr(Ctx, NodeHandle, std::string_view name, StatusReply reply) override;

 private:
  using View = NodeTable::View;
  using FilePtr = std::shared_ptr<FileState>;
  template <class T>
  using awaitable = boost::asio::awaitable<T>;

  /// An open file.
  struct Handle {
    FilePtr file;
    std::uint64_t number = 0;  // what the kernel calls it; never used again
    CachePin copy;
    std::shared_ptr<Fd> reader;  // of the copy
    bool writable = false;
    bool counts_reads = true;  // no O_NOATIME
    std::atomic<bool> read_noted{false};
    bool sync_writes = false;  // O_SYNC, O_DSYNC: a write is answered when it is committed
    bool flushes = true;       // close(2) is told; else only the last one, by release
    IoMode mode = IoMode::kNone;
    Mutex mutex;
    // Processes that asked for fcntl locks through it, until their close is told.
    std::set<std::uint64_t> lockers FM_GUARDED_BY(mutex);
    // What the kernel calls the owner of its OFD locks, once it has asked for one.
    std::optional<std::uint64_t> ofd_owner FM_GUARDED_BY(mutex);
  };
  /// An open directory: where its stream is.
  struct DirHandle {
    bool counts_reads = true;  // no O_NOATIME
    Mutex mutex;
    std::shared_ptr<const Listing> window FM_GUARDED_BY(mutex);  // consecutive names
    Cookie window_after FM_GUARDED_BY(mutex);       // the cookie before the first of them
    bool window_ends FM_GUARDED_BY(mutex) = false;  // nothing follows it
  };
  /// Gives a hold back when the work that needed it is over.
  class Hold {
   public:
    Hold() = default;
    Hold(FileSystem* fs, FilePtr file) : fs_(fs), file_(std::move(file)) {}
    Hold(Hold&& other) noexcept : fs_(other.fs_), file_(std::move(other.file_)) {}
    Hold& operator=(Hold&&) = delete;
    ~Hold() {
      if (file_) fs_->unhold(file_);
    }
    FilePtr keep() { return std::move(file_); }  // the hold lives on in a handle

   private:
    FileSystem* fs_ = nullptr;
    FilePtr file_;
  };

  struct OpenWish {
    bool writable = false;
    bool truncate = false;
    bool no_atime = false;
    bool kill_suidgid = false;
    bool sync = false;      ///< O_SYNC, O_DSYNC
    bool update = false;    ///< O_RDWR without O_TRUNC: parts of it may be changed
    bool create = false;    ///< truncating an empty file is no change then
    bool ordinary = false;  ///< no passthrough: the cache's disk may want room while it is written
    bool exclusive = false;
    std::uint32_t rights = 0;  ///< kMayRead, ...: what it is for
    bool squashed = false;     ///< see check_squashed()
    bool second_try = false;   ///< what the node had when its name was looked up will do
  };
  struct Created {
    Entry entry;
    OpenResult result;
  };

  LoopContext& at(const Reply& reply) { return loops_[reply.loop()]; }
  Credentials cred(Ctx ctx) const;
  Credentials cred_for(Ctx ctx, std::string_view xattr) const;
  /// For a caller whom the kernel takes for somebody with more rights than he has for the cluster
  /// (root_squash): EACCES unless he has those in `wanted` (kMayRead, ...). Success for others.
  Task<void> check_squashed(LoopContext& at, Credentials who, NodeHandle node, std::uint32_t wanted,
                            bool squashed);
  void background(LoopContext& at, std::string name, awaitable<void> task);
  /// From any thread: starts make() as background work on loop `index`.
  void background_on(unsigned index, std::string name, std::function<awaitable<void>()> make);

  // file_system.cc
  Entry entry_of(const View& view);
  struct stat stat_of(const View& view);
  /// Whether the copy may hold what the attributes do not tell: it is or was just written to.
  static bool may_differ(FileState& file);
  Timeout attr_timeout(const View& view);
  Timeout entry_timeout(InodeId parent, bool leased);
  Timeout lease_left() const;
  /// What to answer to a request that met `error` asking for an inode. If it is gone: ESTALE, which
  /// makes the kernel look its name up again, here from what the cluster says.
  std::error_code stale_if_gone(InodeId inode, std::error_code error);
  std::optional<NodeTable::View> newest_view(NodeHandle node);
  Task<View> fresh_view(LoopContext& at, Credentials who, NodeHandle node);
  Task<Entry> do_lookup(LoopContext& at, Credentials who, NodeHandle parent, std::string name);
  Task<AttrReplyValue> do_getattr(LoopContext& at, Credentials who, NodeHandle node);
  Task<AttrReplyValue> do_setattr(LoopContext& at, Credentials who, NodeHandle node,
                                  SetAttributes set, bool squashed);
  /// After an own change of the inode through the node `but`, before its answer.
  void refresh_other_nodes(InodeId inode, NodeHandle but);
  SetAttrOp op_of(InodeId inode, const SetAttributes& set) const;
  Status set_backing_times(const FilePtr& file, const Attr& attr);
  Task<void> set_size(LoopContext& at, Credentials who, NodeHandle node, SetAttributes set);
  Task<struct statvfs> do_statfs(LoopContext& at);
  Task<struct statvfs> do_statfs_within(LoopContext& at, InodeId inode);
  awaitable<void> refresh_statfs(LoopContext& at);
  /// Decides whether a file in use that met a newer version holds local work.
  awaitable<void> settle_lineage(LoopContext& at, const Attr attr);
  /// bind() after settle_lineage().
  awaitable<View> bind(LoopContext& at, const Attr attr, Stamp stamp, bool leased);
  void unhold(const FilePtr& file);
  void teardown(const FilePtr& file);
  bool detach_copy(const FilePtr& file);
  void note_idle(const FilePtr& file);
  FilePtr take_oldest_idle() FM_REQUIRES(idle_mutex_);
  /// Detaches the file's copy if it is idle and clean; returns its size.
  std::uint64_t let_go(FileState& file);
  /// Detaches files that have been idle the longest, until their copies make up `bytes`; false if
  /// there is none.
  bool release_idle(std::uint64_t bytes);
  bool file_in_use(InodeId inode);

  // namespace_ops.cc
  Task<Entry> do_create(LoopContext& at, Credentials who, NodeHandle parent, CreateOp op);
  Task<Entry> do_link(LoopContext& at, Credentials who, NodeHandle node, NodeHandle parent,
                      std::string name, pid_t caller);
  Task<Entry> name_file(LoopContext& at, Credentials who, NodeHandle node, NodeHandle parent,
                        std::string name, pid_t caller);
  Task<Entry> add_name(LoopContext& at, Credentials who, NodeHandle node, NodeHandle parent,
                       std::string name);
  Task<void> do_unlink(LoopContext& at, Credentials who, NodeHandle parent, std::string name,
                       bool directory);
  Task<void> let_close_end(InodeId inode);
  Task<bool> unlink_unsent(LoopContext& at, InodeId inode);
  Task<void> do_rename(LoopContext& at, Credentials who, NodeHandle parent, std::string name,
                       NodeHandle new_parent, std::string new_name, std::uint32_t flags);
  void apply_parents(const MutationReply& reply);
  void apply_removed(LoopContext& at, const MutationReply& reply, InodeId expected);
  awaitable<void> forget_copies(LoopContext& at, InodeId inode);
  /// The inode has no name left and is not open here: nobody can want its copies.
  void discard_copies(InodeId inode);
  /// The inode has another name: its copies are told, on disk too if they hold work.
  awaitable<void> note_moved(LoopContext& at, InodeId inode);
  void release_orphan(InodeId inode);
  awaitable<void> do_release_orphan(LoopContext& at, InodeId inode);

  // exclusive.cc
  /// An answer may have granted directories to this mount alone.
  void note_alone(LoopContext& at, const MutationReply& reply);
  void fill_reserve(LoopContext& at);
  awaitable<void> ask_for_inodes(LoopContext& at, SessionId session);
  awaitable<void> learn_names(LoopContext& at, InodeId directory);
  /// Makes the file here, with a lookup counted; none if the cluster is to be asked.
  std::optional<View> make_here(LoopContext& at, const Credentials& who, NodeHandle parent,
                                const CreateOp& op);
  Task<Created> open_made_here(LoopContext& at, Credentials who, InodeId parent, View view,
                               OpenWish wish);
  /// chmod, chown and utimens of a file that is not sent yet; none if the cluster is to be asked.
  Task<std::optional<AttrReplyValue>> set_here(LoopContext& at, Credentials who, NodeHandle node,
                                               SetAttributes set);
  /// The cluster knows the file when this has succeeded.
  Task<void> send_file(LoopContext& at, InodeId inode);
  Task<void> send_empty(LoopContext& at, FilePtr file, Unsent what);
  Task<void> send_nameless(LoopContext& at, FilePtr file, Unsent what);
  void note_made(FileState& file, const std::optional<Attr>& attr);
  Task<void> send_now(LoopContext& at, FilePtr file, Unsent what);
  Task<void> settle_unmade(LoopContext& at, FilePtr file, Unsent what, std::error_code error);
  /// kForGood: it is sent, or lost. kForNow: or it stays, for another time.
  enum class Sending { kForNow, kForGood };
  awaitable<void> send_behind(LoopContext& at, InodeId inode, Sending how,
                              std::shared_ptr<Signal> done);
  /// Why the first of those is lost that are, if any is.
  awaitable<std::error_code> send_all(LoopContext& at, std::vector<InodeId> inodes, Sending how);
  /// So that whoever makes the name otherwise meets it.
  Task<void> send_name(LoopContext& at, InodeId directory, std::string name);
  /// The cluster knows all files that were made in the directory.
  Task<void> send_names(LoopContext& at, InodeId directory);
  /// The same for fsync: an error if one of them is lost.
  Task<void> sync_names(LoopContext& at, InodeId directory);
  /// The cluster knows when the directory was last changed here, by a file that came and went.
  awaitable<void> tell_change(LoopContext& at, InodeId directory);
  /// What was made in a directory that is called back is the cluster's when it has ended. A
  /// callback that is given up, and comes again, waits for the same.
  awaitable<void> hand_over(LoopContext& at, InodeId directory);
  /// Before an own change that depends on it: the inode itself, and what was made in it. None: it
  /// is not known which one it is.
  Task<void> send_below(LoopContext& at, InodeId inode);
  awaitable<void> lose(LoopContext& at, InodeId inode, std::error_code error);
  awaitable<void> lose_all_of_others(LoopContext& at, SessionId fresh);
  static awaitable<void> end_session_of(LoopContext& at, SessionFile::Mark mark);
  awaitable<void> note_session(LoopContext& at, SessionId session);
  void begin_watching_unsent();
  awaitable<void> watch_unsent(LoopContext& at);

  // directory_ops.cc
  void fill_reply(DirReply& reply, const View& directory, DirHandle& handle, std::uint64_t cookie);
  OpenResult open_directory(int flags);
  bool window_has(DirHandle& handle, InodeId directory, std::uint64_t cookie);
  Task<void> load_window(LoopContext& at, Credentials who, NodeHandle node,
                         std::shared_ptr<DirHandle> handle, std::uint64_t cookie, bool plus);

  // open.cc
  static OpenWish wish_of(int flags, bool kill);
  std::optional<OpenResult> open_attached(const View& view, const OpenWish& wish);
  Task<OpenResult> open_for(LoopContext& at, Credentials who, pid_t caller, NodeHandle node,
                            OpenWish wish);
  Task<OpenResult> do_open(LoopContext& at, Credentials who, NodeHandle node, OpenWish wish);
  Task<OpenResult> open_held(LoopContext& at, Credentials who, NodeHandle node, FilePtr file,
                             OpenWish wish);
  Task<Created> do_create_open(LoopContext& at, Credentials who, NodeHandle parent, CreateOp op,
                               OpenWish wish);
  Task<Created> do_tmpfile(LoopContext& at, Credentials who, NodeHandle parent, CreateUnnamedOp op,
                           OpenWish wish);
  /// Opens what was just made; gives its lookup back if that fails.
  Task<Created> open_created(LoopContext& at, Credentials who, Entry entry, OpenWish wish);
  struct ContentWish {
    bool bytes = true;  ///< else it will be truncated
    bool may_stream = false;
    bool second_try = false;  ///< as in OpenWish
  };
  /// Attaches the copy of the newest version, complete unless `may_stream`. Inside the gate.
  Task<void> attach_content(LoopContext& at, Credentials who, NodeHandle node, FilePtr file,
                            ContentWish wish);
  Task<void> fill_copy(LoopContext& at, FilePtr file, Attr attr, FileContent content,
                       bool need_content, bool may_stream);
  void make_way(const FilePtr& file, Version version);
  Task<CacheStore::Fill> begin_fill(LoopContext& at, Attr attr, bool need_content);
  Task<void> wait_filled(LoopContext& at, FilePtr file, CachePin copy);
  awaitable<void> fill_behind(LoopContext& at, CachePin copy,
                              std::shared_ptr<const FileContent> content, std::uint64_t size_bytes,
                              std::shared_ptr<FillJob> job);
  /// The file's copy if it is (or soon will be) the content of `version`.
  CachePin attached(FileState& file, Version version);
  /// Marks the copy before a writer is let in; says in `ordinary` how it is to write.
  Task<OpenWish> prepare_writer(LoopContext& at, FilePtr file, OpenWish wish);
  /// Opens that could pass through go through the daemon, which then knows what was written.
  bool wants_tracking(FileState& file, const OpenWish& wish) const FM_REQUIRES(file.mutex);
  awaitable<void> save_sync_history(LoopContext& at);
  void begin_watching_room();
  awaitable<void> watch_room(LoopContext& at);
  Result<OpenResult> register_open(const FilePtr& file, const OpenWish& wish);
  std::int32_t backing_of(FileState& file, Fd& reader) FM_REQUIRES(file.mutex);
  void attach_copy(const FilePtr& file, CachePin copy);
  void drop_unfilled(const FilePtr& file);
  std::shared_ptr<Handle> handle(std::uint64_t fh);
  std::shared_ptr<Handle> remove_handle(std::uint64_t fh);
  void close_handle(LoopContext& at, std::uint64_t fh);
  awaitable<void> close_writer(LoopContext& at, FilePtr file);
  void on_mapping_closed(const FilePtr& file);

  // file_io.cc
  Task<void> wait_present(LoopContext& at, std::shared_ptr<Handle> handle, std::uint64_t offset,
                          std::uint64_t size);
  awaitable<void> do_read(LoopContext& at, std::shared_ptr<Handle> handle, std::uint64_t offset,
                          std::size_t size, std::shared_ptr<RequestTask<ReadReply>> task);
  Task<std::size_t> do_write(LoopContext& at, std::shared_ptr<Handle> handle, std::uint64_t offset,
                             Buffer data, bool at_end);
  Task<std::size_t> do_sync_write(LoopContext& at, std::shared_ptr<Handle> handle,
                                  std::uint64_t offset, Buffer data, bool at_end, pid_t caller);
  Task<std::size_t> do_write_if_it_fits(LoopContext& at, std::shared_ptr<Handle> handle,
                                        std::uint64_t offset, Buffer data, bool at_end,
                                        pid_t caller);
  static fermata::Status append(CachedCopy& copy, ByteView data);
  void drop_pages(NodeHandle node);
  Task<void> do_fallocate(LoopContext& at, std::shared_ptr<Handle> handle, int mode,
                          std::uint64_t offset, std::uint64_t size);
  Task<std::uint64_t> do_lseek(LoopContext& at, std::shared_ptr<Handle> handle,
                               std::uint64_t offset, int whence);
  Task<std::size_t> do_copy(LoopContext& at, std::shared_ptr<Handle> in,
                            std::shared_ptr<Handle> out, CopyRange range);
  void note_kill(const FilePtr& file);

  // quota.cc
  /// As far as is known a write of `size` bytes at `offset` leaves the file within its quotas.
  bool fits_quotas(LoopContext& at, const std::shared_ptr<Handle>& handle, std::uint64_t offset,
                   std::uint64_t size);
  /// The same, once the cluster has been asked.
  Task<bool> surely_fits_quotas(LoopContext& at, std::shared_ptr<Handle> handle,
                                std::uint64_t offset, std::uint64_t size);
  /// What the file may have allocated; UINT64_MAX: no quota counts it.
  Task<std::uint64_t> ask_allocated_max(LoopContext& at, FilePtr file);
  awaitable<void> ask_room_behind(LoopContext& at, FilePtr file);

  // atime.cc
  Timestamp wall_time() const;
  bool wants_read(InodeId inode);
  /// Takes a read for an access time if the rule wants that.
  void note_read(InodeId inode);
  /// note_read() if the kernel has read the backing file since the last time.
  void note_backing_read(FileState& file);
  /// Before an open that reads past the daemon, of a file whose next read is to be noted.
  void expect_reads(FileState& file);
  awaitable<void> send_reads_later(LoopContext& at);
  awaitable<void> send_reads_now(LoopContext& at, std::shared_ptr<Signal> done);
  awaitable<void> send_reads(LoopContext& at);

  // xattr_ops.cc
  Task<std::shared_ptr<const NodeTable::Xattrs>> all_xattrs(LoopContext& at, Credentials who,
                                                            NodeHandle node);
  Task<std::string> do_getxattr(LoopContext& at, Credentials who, NodeHandle node, std::string name,
                                bool squashed);
  std::string shown(std::string_view name, const std::string& value) const;
  Task<std::string> do_listxattr(LoopContext& at, Credentials who, NodeHandle node, pid_t caller);
  Task<void> do_setxattr(LoopContext& at, Credentials who, NodeHandle node, SetXattrOp op);
  Task<void> do_removexattr(LoopContext& at, Credentials who, NodeHandle node, std::string name);

  // lock_ops.cc
  /// A lock request under way; its caller may be interrupted.
  struct LockJob {
    explicit LockJob(const boost::asio::any_io_executor& executor)
        : finished(std::make_shared<Signal>(executor)) {}
    const std::shared_ptr<Signal> finished;
    std::uint64_t through = 0;  // the handle's number
    bool detect_deadlock = false;
    // On the loop.
    bool given_up = false;  // its caller has been answered: what is granted now is given back
    bool ended = false;
    std::error_code error;  // when it has ended
  };
  /// The owner, for the cluster, of the fcntl lock that the request is about.
  static std::uint64_t owner_of(Handle& open, std::uint64_t kernel_owner);
  void start_lock(Ctx ctx, const std::shared_ptr<Handle>& open, LockOp op, bool wait,
                  StatusReply reply);
  Task<struct flock> do_find_lock(LoopContext& at, std::shared_ptr<InodeLocks> locks, LockOp op);
  Task<FindLockReply> find_lock(LoopContext& at, std::shared_ptr<InodeLocks> locks, LockOp op);
  Task<void> do_lock(LoopContext& at, Credentials who, FilePtr file, LockOp op, pid_t caller,
                     std::shared_ptr<LockJob> job);
  awaitable<void> run_lock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                           std::shared_ptr<LockJob> job);
  /// An owner's locks on a file around a request of it.
  struct Grant {
    LockList before;
    LockList after;
  };
  Task<Grant> try_lock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                       std::uint64_t through);
  awaitable<void> give_up_lock(LoopContext& at, LockOp op);
  Task<LockList> change_lock(LoopContext& at, Credentials who, LockOp op, std::uint64_t through);
  Task<void> restore_locks(LoopContext& at, Credentials who, FilePtr file, LockOp op, Grant grant);
  void settle_doubt(LoopContext& at, const FilePtr& file, LockOp op);
  awaitable<void> settle_doubt_behind(LoopContext& at, FilePtr file, LockOp op);
  /// The cluster has of the owner's locks in op.range what the mirror has.
  Task<void> make_as_noted(LoopContext& at, FilePtr file, LockOp op);

  // lock_delegation.cc: inside the file's gate for locks
  /// This mount decides on the file's locks, in that session.
  bool answers_for(InodeId inode, LockSpace space, SessionId session) const;
  bool wants_delegation(const LockOp& op) const;
  /// What the cluster's answer to a lock request says about it.
  void note_delegation(const LockOp& op, SessionId session, bool delegated);
  /// The delegated file's locks with the request carried out. EAGAIN, ENOLCK: they stay as they
  /// are.
  fermata::Status lock_here(const LockOp& op, SessionId session, std::uint64_t through);
  /// If there is a delegation, the cluster has the file's locks again after this.
  Task<void> return_locks(LoopContext& at, InodeId inode, LockSpace space);
  /// The same from outside the gate: in the background, for the cluster that asks for it.
  void begin_hand_back(InodeId inode, LockSpace space);
  awaitable<void> hand_back(LoopContext& at, InodeId inode, LockSpace space);
  /// After a last close, or a grant that came later: hands back what stays unused.
  void expect_hand_back(LoopContext& at, InodeId inode);
  awaitable<void> hand_back_unused(LoopContext& at);
  /// A round of it, on one loop.
  struct Unused {
    explicit Unused(boost::asio::any_io_executor executor)
        : done(std::make_shared<Signal>(std::move(executor))) {}
    std::vector<InodeId> left;
    std::size_t running = 0;
    std::shared_ptr<Signal> done;
  };
  awaitable<void> hand_back_some(LoopContext& at, std::shared_ptr<Unused> round);
  bool is_open(InodeId inode);

  // lock_release.cc
  bool releases_write(const LockOp& op) const;
  struct Unlock {
    LockOp op;
    bool dirty = false;  ///< to be committed whatever the lock was
    pid_t caller = 0;
    bool behind = false;  ///< nobody waits for it
    /// Not 0: unless the owner's latest lock came through another handle than this one.
    std::uint64_t through = 0;
  };
  Task<void> do_unlock(LoopContext& at, Credentials who, FilePtr file, Unlock what);
  Task<void> unlock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                    std::uint64_t through);
  Task<void> flush_and_unlock(LoopContext& at, Credentials who, std::shared_ptr<Handle> open,
                              bool dirty, std::uint64_t owner, pid_t caller);
  /// After a release with everything committed: what comes now is not written under a lost lock.
  void forgive_lost_locks(const FilePtr& file);
  static void forget_locker(Handle& open, std::uint64_t owner);
  /// The last close of an open file description: what it locked goes.
  void release_locks(LoopContext& at, const std::shared_ptr<Handle>& open,
                     const ReleaseRequest& request);
  void release_lock(LoopContext& at, const Handle& open, LockSpace space, std::uint64_t owner);
  /// Commits what a write lock protected, then releases it.
  void release_behind(LoopContext& at, const FilePtr& file, Unlock what);
  awaitable<void> unlock_behind(LoopContext& at, FilePtr file, Unlock what);
  /// What is begun behind: the end of a request that was given up, or a release.
  enum class Settles { kRequest, kRelease };
  void begin_settling(const LockOp& op, Settles what);
  void end_settling(const LockOp& op, Settles what);
  /// What the owner's earlier requests left to be done is done.
  Task<void> settled(LoopContext& at, LockOp op);
  Task<void> settle_releases(LoopContext& at, InodeId inode);
  awaitable<std::error_code> bounded(Signal& signal);

  // locked_content.cc
  Task<void> update_in_place(LoopContext& at, Credentials who, FilePtr file);

  // commit.cc
  /// Everything written so far is committed, or an error says why not. Cancelled, or when `caller`
  /// dies of a signal, it returns EINTR and the commit goes on.
  /// Of what a writer writes: the commit is that writer's, with the rights of when it was opened.
  void note_writer(FileState& file, const Credentials& who, LogIndex change);
  Task<void> commit(LoopContext& at, FilePtr file, pid_t caller);
  std::shared_ptr<Signal> start_commit(LoopContext& at, const FilePtr& file);
  awaitable<void> run_commits(LoopContext& at, FilePtr file, std::shared_ptr<CommitJob> job);
  Task<void> commit_once(LoopContext& at, FilePtr file);
  /// `kill`: it was to clear setuid and setgid.
  Task<void> commit_now(LoopContext& at, FilePtr file, bool& kill);
  Task<void> send_times(LoopContext& at, FilePtr file, CommitInput input,
                        std::int64_t backing_mtime_ns);
  /// What is left to do before the commit is answered: names that lead to another node.
  NodeTable::Invalidation after_commit(const FilePtr& file, const MutationReply& reply,
                                       std::int64_t mtime_ns, SessionId under);
  Task<void> refused(LoopContext& at, FilePtr file, CachePin copy, std::error_code error);
  /// An earlier commit of the copy took effect and its answer was lost: the newest version has its
  /// bytes. Notes it clean. Errors: kStaleBase if the newest version is another's.
  Task<void> settle_committed(LoopContext& at, FilePtr file, CachePin copy,
                              CachedCopy::After after);
  Task<void> set_aside(LoopContext& at, FilePtr file, CachePin copy, const char* why);
  bool surely_clean(const Handle& open);
  awaitable<void> commit_files(LoopContext& at, Duration timeout,
                               std::function<void(std::vector<Uncommitted>)> done);
  awaitable<void> settle_closed(LoopContext& at, FilePtr file, std::shared_ptr<Signal> done);
  awaitable<void> recover(LoopContext& at);
  awaitable<void> recover_one(LoopContext& at, CachePin copy);
  void count(const char* what);

  // callbacks.cc
  awaitable<void> invalidate(NodeTable::Invalidation what);
  void invalidate_later(NodeTable::Invalidation what);

  std::vector<LoopContext> loops_;
  std::vector<std::unique_ptr<TaskGroup>> tasks_;  // one per loop
  ClientSession& session_;
  const FsOptions options_;
  NodeTable table_;
  SecondTries second_tries_;
  CacheStore* store_ = nullptr;
  std::atomic<FuseSession*> fuse_{nullptr};
  std::atomic<Notifier*> notifier_{nullptr};
  bool acls_ = false;  // set by init()
  std::atomic<bool> passthrough_{false};
  std::atomic<bool> epoch_{false};
  std::atomic<std::uint32_t> passthrough_writers_{0};
  std::atomic<bool> watching_room_{false};
  MappedWatch mapped_;
  HeldLocks locks_;
  SyncHistory sync_history_;
  std::atomic<std::uint64_t> next_ticket_{1};

  /// Changes of an owner's locks that nobody waited for when they were begun.
  struct Settling {
    std::size_t running = 0;
    std::size_t releases = 0;  // among them: what close and exit have left behind
    std::vector<std::shared_ptr<Signal>> waiters;
    std::vector<std::shared_ptr<Signal>> release_waiters;
  };
  using LockKey = std::tuple<InodeId, LockSpace, std::uint64_t>;  // the owner's number
  Mutex settling_mutex_;
  std::map<LockKey, Settling> settling_ FM_GUARDED_BY(settling_mutex_);

  InodeReserve reserve_;
  /// Directories that are handed over, and who waits for it. On the keeper's loop only.
  std::map<InodeId, std::vector<std::shared_ptr<Signal>>> handing_over_;
  std::atomic<bool> watching_unsent_{false};
  Mutex learning_mutex_;
  std::set<InodeId> learning_ FM_GUARDED_BY(learning_mutex_);

  Mutex handles_mutex_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Handle>> handles_ FM_GUARDED_BY(handles_mutex_);
  std::unordered_map<std::uint64_t, std::shared_ptr<DirHandle>> dirs_ FM_GUARDED_BY(handles_mutex_);
  std::atomic<std::uint64_t> next_handle_{1};

  Mutex idle_mutex_;                                                     // after FileState::mutex
  std::list<std::weak_ptr<FileState>> idle_ FM_GUARDED_BY(idle_mutex_);  // oldest first

  Mutex reads_mutex_;
  std::unordered_set<InodeId> reads_ FM_GUARDED_BY(reads_mutex_);  // noted, not told yet
  bool reads_running_ FM_GUARDED_BY(reads_mutex_) = false;

  Mutex recalled_mutex_;
  /// Asked for by the cluster, and a return that has not begun yet will see it.
  std::set<std::pair<InodeId, LockSpace>> recalled_ FM_GUARDED_BY(recalled_mutex_);

  Mutex unused_mutex_;
  std::set<InodeId> unused_ FM_GUARDED_BY(unused_mutex_);  // delegated, and closed
  bool unused_running_ FM_GUARDED_BY(unused_mutex_) = false;

  Mutex statfs_mutex_;
  std::optional<StatFsReply> statfs_ FM_GUARDED_BY(statfs_mutex_);
  TimePoint statfs_at_ FM_GUARDED_BY(statfs_mutex_);
  bool statfs_asked_ FM_GUARDED_BY(statfs_mutex_) = false;
  struct RoomWithin {
    StatFsReply reply;
    TimePoint at{};
  };
  /// When a quota was last set through this mount: older answers about room are void.
  std::atomic<Duration::rep> quotas_changed_at_{0};
  /// Of a volume with quotas, by inode.
  std::unordered_map<InodeId, RoomWithin> statfs_within_ FM_GUARDED_BY(statfs_mutex_);

  Mutex counts_mutex_;
  std::map<std::string, std::uint64_t> counts_ FM_GUARDED_BY(counts_mutex_);
};

}  // namespace fermata::mountd

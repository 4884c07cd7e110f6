// A filesystem for tests of the FUSE session: the tree below a local directory, shown as it is.
//
// Every node is held by an O_PATH descriptor, so renames need no bookkeeping. With passthrough on,
// each regular file's node keeps one backing id from its first open to its last forget.
//
// bind() shows another file under a name as a *new node with the same st_ino*: what mountd does for
// a newer version of a file.
//
// Thread-safety: as Operations asks; the set-up methods may be called at any time.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "common/base/mutex.h"
#include "mountd/fuse/fuse_session.h"
#include "mountd/fuse/operations.h"

namespace fermata::test {

using mountd::NodeHandle;

class MirrorFs : public mountd::Operations {
 public:
  struct Options {
    bool passthrough = false;
    mountd::Timeout entry_timeout = std::chrono::hours(1);
    mountd::Timeout attr_timeout = std::chrono::hours(1);
    std::uint32_t open_flags = 0;  ///< OpenFlags for regular files
  };
  MirrorFs(const std::string& directory, Options options);
  ~MirrorFs() override;
  /// Needed for passthrough; after FuseSession::mount().
  void attach(mountd::FuseSession& session) { session_ = &session; }

  /// From now on `name` in the root is a new node that shows the file at `path` with `st_ino`.
  void bind(const std::string& name, const std::string& path, std::uint64_t st_ino);
  /// The node that `name` of the root had at its last lookup.
  NodeHandle node_of(const std::string& name);
  /// How often an operation was called, by its name.
  std::uint64_t count(const std::string& operation);
  /// Lookups that the kernel holds, over all nodes but the root.
  std::uint64_t lookup_count();

  void init(const mountd::ConnectionInfo& info) override { info_ = info; }
  mountd::ConnectionInfo info() const { return info_; }
  void lookup(Ctx, NodeHandle parent, std::string_view name, mountd::EntryReply reply) override;
  void forget(NodeHandle node, std::uint64_t count) override;
  void getattr(Ctx, NodeHandle, std::optional<std::uint64_t> fh, mountd::AttrReply) override;
  void setattr(Ctx, NodeHandle, const mountd::SetAttributes&, mountd::AttrReply) override;
  void readlink(Ctx, NodeHandle, mountd::ReadlinkReply) override;
  void mknod(Ctx, NodeHandle, std::string_view, mode_t, dev_t, mountd::EntryReply) override;
  void mkdir(Ctx, NodeHandle, std::string_view, mode_t, mountd::EntryReply) override;
  void symlink(Ctx, NodeHandle, std::string_view, std::string_view, mountd::EntryReply) override;
  void link(Ctx, NodeHandle, NodeHandle, std::string_view, mountd::EntryReply) override;
  void unlink(Ctx, NodeHandle, std::string_view, mountd::StatusReply) override;
  void rmdir(Ctx, NodeHandle, std::string_view, mountd::StatusReply) override;
  void rename(Ctx, NodeHandle, std::string_view, NodeHandle, std::string_view, unsigned,
              mountd::StatusReply) override;
  void open(Ctx, NodeHandle, const mountd::OpenRequest&, mountd::OpenReply) override;
  void create(Ctx, NodeHandle, std::string_view, const mountd::CreateRequest&,
              mountd::CreateReply) override;
  void open_abandoned(NodeHandle, std::uint64_t fh, bool created) override;
  void read(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t offset, std::size_t size,
            mountd::ReadReply) override;
  void write(Ctx, NodeHandle, const mountd::WriteRequest&, mountd::WriteReply) override;
  void flush(Ctx, NodeHandle, std::uint64_t, std::uint64_t, mountd::StatusReply) override;
  void release(Ctx, NodeHandle, const mountd::ReleaseRequest&, mountd::StatusReply) override;
  void fsync(Ctx, NodeHandle, std::uint64_t fh, bool data_only, mountd::StatusReply) override;
  void fallocate(Ctx, NodeHandle, std::uint64_t fh, int mode, std::uint64_t offset,
                 std::uint64_t size, mountd::StatusReply) override;
  void lseek(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t offset, int whence,
             mountd::LseekReply) override;
  void copy_file_range(Ctx, const mountd::CopyRange&, mountd::WriteReply) override;
  void opendir(Ctx, NodeHandle, int flags, mountd::OpenReply) override;
  void readdir(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t cookie, mountd::DirReply) override;
  void releasedir(Ctx, NodeHandle, std::uint64_t fh, mountd::StatusReply) override;
  void fsyncdir(Ctx, NodeHandle, std::uint64_t fh, bool, mountd::StatusReply) override;
  void statfs(Ctx, NodeHandle, mountd::StatfsReply) override;
  void setxattr(Ctx, NodeHandle, const mountd::SetXattr&, mountd::StatusReply) override;
  void getxattr(Ctx, NodeHandle, std::string_view, mountd::XattrReply) override;
  void listxattr(Ctx, NodeHandle, mountd::XattrReply) override;
  void removexattr(Ctx, NodeHandle, std::string_view, mountd::StatusReply) override;

 protected:
  void counted(const char* operation);

 private:
  struct Node;
  struct Directory;
  std::shared_ptr<Node> find(NodeHandle node);
  /// The Entry for `name`, with one lookup counted; or an errno.
  int look_up(NodeHandle parent, const std::string& name, mountd::Entry& entry);
  int attributes(Node& node, struct stat& attr);
  int finish_open(Node& node, int fd, mountd::OpenResult& result);
  void adopt(Ctx, int parent_fd, const std::string& name);

  const Options options_;
  mountd::FuseSession* session_ = nullptr;
  mountd::ConnectionInfo info_;
  Mutex mutex_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Node>> nodes_ FM_GUARDED_BY(mutex_);
  std::map<std::pair<dev_t, ino_t>, std::uint64_t> by_file_ FM_GUARDED_BY(mutex_);
  struct Bound {
    std::string path;
    std::uint64_t st_ino;
    std::uint64_t node;
  };
  std::map<std::string, Bound> bound_ FM_GUARDED_BY(mutex_);
  std::map<std::string, std::uint64_t> last_node_ FM_GUARDED_BY(mutex_);
  std::map<std::string, std::uint64_t> counts_ FM_GUARDED_BY(mutex_);
  std::map<std::uint64_t, std::shared_ptr<Directory>> directories_ FM_GUARDED_BY(mutex_);
  std::uint64_t next_node_ FM_GUARDED_BY(mutex_) = 2;
  std::uint64_t next_directory_ FM_GUARDED_BY(mutex_) = 1;
};

}  // namespace fermata::test

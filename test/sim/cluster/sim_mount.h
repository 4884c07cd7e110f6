// A model of mountd over the real client: it caches attributes, entries, listings, xattrs and
// content under leases by the rules of mountd/fs/node_table.h, keeps open files at the version they
// opened, and commits on close. Everything it is told, and everything it answers from its cache,
// goes by the oracle.
//
// Thread-safety: none; the client's executor.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>

#include "mountd/client/cluster_client.h"
#include "mountd/fs/held_locks.h"
#include "test/sim/cluster/world.h"

namespace fermata::test {

class SimMount final : public mountd::SessionKeeper::Events {
 public:
  SimMount(World& world, Env& env, mountd::ClusterClient& client, mountd::ClientSession& session,
           std::string name);

  /// None: there is no such entry.
  Task<std::optional<Attr>> lookup(InodeId parent, std::string name);
  Task<Attr> getattr(InodeId inode);
  Task<std::map<std::string, InodeId>> readdir(InodeId directory);
  Task<std::map<std::string, std::string>> getxattrs(InodeId inode);

  struct Open {
    InodeId inode;
    Version version;
    serverd::Content content;
    SessionId session;
  };
  Task<std::shared_ptr<Open>> open(InodeId inode);
  /// Every byte of what was opened.
  Task<void> read(std::shared_ptr<Open> file);
  enum class Shape : std::uint8_t { kInline, kChunks, kPatch };
  /// Writes something never written before. A stale base is refused, or put over what is newer.
  Task<void> commit(std::shared_ptr<Open> file, Shape shape, bool replace_newer);
  Task<void> close(std::shared_ptr<Open> file);

  Task<Attr> create(InodeId parent, std::string name, FileType type, bool exclusive);
  Task<void> link(InodeId inode, InodeId parent, std::string name);
  Task<void> unlink(InodeId parent, std::string name);
  Task<void> rmdir(InodeId parent, std::string name);
  Task<void> rename(RenameOp op);
  Task<void> chmod(InodeId inode, std::uint32_t mode);
  Task<void> set_quota(SetQuotaOp op);
  Task<void> setxattr(InodeId inode, std::string name);
  Task<void> removexattr(InodeId inode, std::string name);
  /// False: another owner's lock is in the way.
  Task<bool> lock(LockOp op);
  /// All that the owner has of the file's locks of that kind.
  Task<void> unlock(LockOp op);

  // SessionKeeper::Events.
  boost::asio::awaitable<CallbackReply> on_callback(CallbackRequest request) override;
  boost::asio::awaitable<void> on_leases_void(Stamp stamp) override;
  boost::asio::awaitable<void> on_new_session(SessionId fresh) override;
  boost::asio::awaitable<bool> give_up_alone(Duration patience) override;

 private:
  /// A file made here that the cluster does not know.
  struct Unsent {
    CreateOp op;
    SessionId session;
    std::uint64_t promise = 0;
    bool sending = false;
  };
  enum class Sending : std::uint8_t { kForNow, kForGood };
  /// A change of the directory's names is under way: the kernel lets no other one begin there.
  class Changing {
   public:
    Changing(std::multiset<InodeId>& in, InodeId directory) : in_(in), at_(in.insert(directory)) {}
    Changing(const Changing&) = delete;
    Changing& operator=(const Changing&) = delete;
    ~Changing() { in_.erase(at_); }

   private:
    std::multiset<InodeId>& in_;
    const std::multiset<InodeId>::iterator at_;
  };
  struct Dentry {
    InodeId child;  ///< none: surely absent
    Stamp stamp;
  };
  struct Inode {
    std::optional<Attr> attr;
    Stamp stamp;
    bool leased = false;
    Stamp called_back;
    std::optional<std::map<std::string, std::string>> xattrs;
    Stamp xattrs_stamp;
    std::optional<serverd::Content> content;  ///< some version's, whole
    std::map<std::string, Dentry> entries;
    std::optional<std::map<std::string, InodeId>> listing;
    Stamp listing_stamp;
    std::uint64_t changes = 0;  ///< of entries by own mutations and callbacks
    Stamp alone;                ///< directories: granted to this mount alone
    unsigned holds = 0;         ///< opens, also on their way
    bool maybe_orphan = false;
  };

  // By the rules of mountd/fs/lock_delegation.cc.
  using Delegation = mountd::HeldLocks::Delegation;
  using LockKey = std::pair<InodeId, LockSpace>;
  bool answers_for(LockKey file, SessionId session) const;
  Task<bool> do_lock(LockOp op);
  Task<void> do_unlock(LockOp op);
  Task<void> return_locks(LockKey file);
  boost::asio::awaitable<void> hand_back(LockKey file);
  boost::asio::awaitable<void> enter(LockKey file);
  void leave(LockKey file) { locking_.erase(file); }
  bool holds(Stamp stamp) const;
  bool attr_valid(const Inode& inode) const;
  void apply(const Attr& attr, Stamp stamp, bool leased);
  void set_entry(InodeId parent, const std::string& name, InodeId child, Stamp stamp, bool leased,
                 bool own);
  /// What a mutation's answer says of attributes.
  void take(const MutationReply& reply);
  Task<MutationReply> mutate(Mutation op, std::string payload = {}, SessionId under = {});
  std::optional<Attr> make_here(InodeId parent, const std::string& name);
  Task<void> known_name(InodeId parent, std::string name);
  Task<void> fill_reserve();
  boost::asio::awaitable<void> fill_reserve_behind();
  /// Waits while it is being sent; false: it is no longer unsent.
  Task<bool> begin_sending(InodeId inode);
  Task<void> send(InodeId inode, Sending how = Sending::kForGood);
  /// What came of sending it.
  Task<void> end_sending(InodeId inode, Result<MutationReply> reply, Sending how);
  Task<void> send_names(InodeId directory);
  std::vector<InodeId> all_unsent() const;
  boost::asio::awaitable<void> send_later(InodeId inode);
  void lose(InodeId inode, std::error_code why);
  Task<std::shared_ptr<Open>> do_open(InodeId inode);
  Task<std::string> put_chunks(std::string token);
  std::string token();

  World& world_;
  Env& env_;
  mountd::ClusterClient& client_;
  mountd::ClientSession& session_;
  const std::string name_;
  std::unordered_map<InodeId, Inode> inodes_;
  mountd::HeldLocks locks_;
  std::set<LockKey> locking_;    ///< a request, or a return, is under way
  std::set<std::uint64_t> own_;  ///< mutations on their way, as the oracle numbers them
  std::map<InodeId, Unsent> unsent_;
  std::multiset<InodeId> changing_;
  std::deque<InodeId> reserve_;
  SessionId reserve_of_;
  bool reserving_ = false;
  std::uint64_t next_token_ = 1;
};

}  // namespace fermata::test

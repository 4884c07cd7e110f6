// The first command of a cluster's life.
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {

Outcome apply_bootstrap(Txn& txn, const fermata::Command& command, const BootstrapCommand& body) {
  StateRecord& state = txn.state();
  if (state.cluster)  // a second primary's attempt
    return state.cluster == body.cluster ? Outcome(CommandResult{}) : refuse(Errc::kWrongCluster);
  state.cluster = body.cluster;
  state.next_inode = kRootInode.value() + 1;
  state.inodes = 1;
  InodeRecord root;
  root.type = FileType::kDirectory;
  root.mode = body.root_mode & 07777;
  root.uid = body.root_uid;
  root.gid = body.root_gid;
  root.nlink = 2;
  root.parent = kRootInode;
  root.atime = root.mtime = root.ctime = root.btime = command.time;
  FM_CHECK(txn.put_inode(kRootInode, std::move(root)));
  CommandResult result;
  result.inode = kRootInode;
  return result;
}

}  // namespace fermata::serverd

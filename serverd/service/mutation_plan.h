// What a mutation will touch, as far as the present state tells: whose leases it must break, what
// its command shall expect, and whether it can only fail.
//
// Pure reading. Apply checks what is expected here, so a plan that was overtaken does no harm.
#pragma once

#include <optional>
#include <vector>

#include "common/base/buffer.h"
#include "serverd/lease/lease_table.h"
#include "serverd/meta/namespace.h"

namespace fermata::serverd {

struct MutationPlan {
  TouchSet touched;
  InodeId expected_inode;   ///< as in MutateCommand
  InodeId expected_target;  ///< the same
  InodeId links;            ///< its link count changes: one such mutation at a time
  InodeId losing;           ///< = links, and it is the last one
  /// Success with no effect: a create that is not exclusive found this file.
  InodeId found;
};

/// An error is the operation's own, final for the state as it is.
Result<MutationPlan> plan_mutation(const Namespace& state, SessionId session, const Mutation& op);

/// The directories whose names or attributes the operation is about: whoever may have made files
/// there by itself is asked before plan_mutation().
std::vector<InodeId> directories_of(const Namespace& state, const Mutation& op);
/// The directories that a create would have for its session alone: its parent, or what it makes.
const CreateOp* create_of(const Mutation& op);

/// What a mount sends when it is called back for what it alone has answered for: other mutations
/// may wait for it.
bool settles_recall(const Mutation& op);
/// It adds to what is stored: refused when the disks are full.
bool takes_room(const Mutation& op);
/// The payload is what the operation says. kBadMessage; kTooLarge.
Status check_payload(const Mutation& op, ByteView payload);
/// The chunks a commit names, each once.
Result<std::vector<ChunkId>> chunks_of(const Mutation& op, ByteView payload);

/// The answer as of now: `leases` grants what is not pending, and directories for `session` alone
/// if it asks for that.
Result<MutationReply> mutation_reply(const Namespace& state, LeaseTable& leases,
                                     const MutationRequest& request, const CommandResult& result,
                                     TimePoint now);

}  // namespace fermata::serverd

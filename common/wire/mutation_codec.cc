// Mutation requests and their answers.
#include "common/wire/message_codec.h"
#include "common/wire/shapes.h"

namespace fermata {

std::string encode(const MutationRequest& value) {
  wire::Writer<schema::MutationRequest> writer;
  auto out = writer.root();
  out.setSession(value.session.value());
  out.setEpoch(value.epoch.value());
  out.setSequence(value.sequence.value());
  out.setAnsweredBelow(value.answered_below.value());
  wire::write(out.initCred(), value.cred);
  wire::write(out.initOp(), value.op);
  out.setAsksExclusive(value.asks_exclusive);
  return writer.finish();
}
template <>
Result<MutationRequest> decode<MutationRequest>(std::string_view bytes) {
  return wire::decode_message<schema::MutationRequest>(
      as_bytes(bytes), [](schema::MutationRequest::Reader in) -> Result<MutationRequest> {
        MutationRequest value;
        value.session = SessionId(in.getSession());
        value.epoch = Epoch(in.getEpoch());
        value.sequence = Sequence(in.getSequence());
        value.answered_below = Sequence(in.getAnsweredBelow());
        FM_TRY(value.cred, wire::read(in.getCred()));
        FM_TRY(value.op, wire::read(in.getOp()));
        value.asks_exclusive = in.getAsksExclusive();
        return value;
      });
}

std::string encode(const MutationReply& value) {
  wire::Writer<schema::MutationReply> writer;
  auto out = writer.root();
  out.setStamp(value.stamp.value());
  if (value.attr) wire::write(out.initAttr(), *value.attr);
  out.setLeased(value.leased);
  if (value.parent) wire::write(out.initParent(), *value.parent);
  out.setParentLeased(value.parent_leased);
  if (value.new_parent) wire::write(out.initNewParent(), *value.new_parent);
  out.setNewParentLeased(value.new_parent_leased);
  if (value.removed) wire::write(out.initRemoved(), *value.removed);
  out.setRemovedLeased(value.removed_leased);
  out.setVersion(value.version.value());
  out.setDelegated(value.delegated);
  out.setExclusive(value.exclusive);
  out.setParentExclusive(value.parent_exclusive);
  out.setReserved(value.reserved.value());
  out.setReservedCount(value.reserved_count);
  return writer.finish();
}
template <>
Result<MutationReply> decode<MutationReply>(std::string_view bytes) {
  return wire::decode_message<schema::MutationReply>(
      as_bytes(bytes), [](schema::MutationReply::Reader in) -> Result<MutationReply> {
        MutationReply value;
        value.stamp = Stamp(in.getStamp());
        if (in.hasAttr()) {
          FM_TRY(value.attr, wire::read(in.getAttr()));
        }
        value.leased = in.getLeased();
        if (in.hasParent()) {
          FM_TRY(value.parent, wire::read(in.getParent()));
        }
        value.parent_leased = in.getParentLeased();
        if (in.hasNewParent()) {
          FM_TRY(value.new_parent, wire::read(in.getNewParent()));
        }
        value.new_parent_leased = in.getNewParentLeased();
        if (in.hasRemoved()) {
          FM_TRY(value.removed, wire::read(in.getRemoved()));
        }
        value.removed_leased = in.getRemovedLeased();
        value.version = Version(in.getVersion());
        value.delegated = in.getDelegated();
        value.exclusive = in.getExclusive();
        value.parent_exclusive = in.getParentExclusive();
        value.reserved = InodeId(in.getReserved());
        value.reserved_count = in.getReservedCount();
        return value;
      });
}

}  // namespace fermata

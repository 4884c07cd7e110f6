// Sessions and callbacks.
#include "common/wire/message_codec.h"
#include "common/wire/shapes.h"
#include "schema/session.capnp.h"

namespace fermata {

using wire::blob;

std::string encode(const OpenSessionRequest& value) {
  wire::Writer<schema::OpenSessionRequest> writer;
  auto out = writer.root();
  out.setClientId(value.client_id);
  out.setHost(value.host);
  out.setMountPoint(value.mount_point);
  return writer.finish();
}
template <>
Result<OpenSessionRequest> decode<OpenSessionRequest>(std::string_view bytes) {
  return wire::decode_message<schema::OpenSessionRequest>(
      as_bytes(bytes), [](schema::OpenSessionRequest::Reader in) -> Result<OpenSessionRequest> {
        OpenSessionRequest value;
        FM_TRY(value.client_id, wire::read_text(in.getClientId(), 64));
        if (value.client_id.size() < 16) return Errc::kBadMessage;
        FM_TRY(value.host, wire::read_text(in.getHost(), 255));
        FM_TRY(value.mount_point, wire::read_text(in.getMountPoint()));
        return value;
      });
}

std::string encode(const OpenSessionReply& value) {
  wire::Writer<schema::OpenSessionReply> writer;
  auto out = writer.root();
  out.setSession(value.session.value());
  out.setEpoch(value.epoch.value());
  out.setLeaseMs(value.lease_ms);
  out.setTerm(value.term.value());
  out.setStamp(value.stamp.value());
  out.setCluster(blob(value.cluster.bytes.data(), value.cluster.bytes.size()));
  wire::write(out.initMembers(static_cast<unsigned>(value.members.size())), value.members);
  return writer.finish();
}
template <>
Result<OpenSessionReply> decode<OpenSessionReply>(std::string_view bytes) {
  return wire::decode_message<schema::OpenSessionReply>(
      as_bytes(bytes), [](schema::OpenSessionReply::Reader in) -> Result<OpenSessionReply> {
        OpenSessionReply value;
        value.session = SessionId(in.getSession());
        value.epoch = Epoch(in.getEpoch());
        value.lease_ms = in.getLeaseMs();
        value.term = Term(in.getTerm());
        value.stamp = Stamp(in.getStamp());
        FM_TRY(value.cluster, wire::read_cluster(in.getCluster()));
        FM_TRY(value.members, wire::read(in.getMembers()));
        return value;
      });
}

std::string encode(const RenewSessionRequest& value) {
  wire::Writer<schema::RenewSessionRequest> writer;
  auto out = writer.root();
  out.setSession(value.session.value());
  out.setEpoch(value.epoch.value());
  out.setGivenUpBefore(value.given_up_before.value());
  return writer.finish();
}
template <>
Result<RenewSessionRequest> decode<RenewSessionRequest>(std::string_view bytes) {
  return wire::decode_message<schema::RenewSessionRequest>(
      as_bytes(bytes), [](schema::RenewSessionRequest::Reader in) -> Result<RenewSessionRequest> {
        return RenewSessionRequest{SessionId(in.getSession()), Epoch(in.getEpoch()),
                                   Term(in.getGivenUpBefore())};
      });
}

std::string encode(const RenewSessionReply& value) {
  wire::Writer<schema::RenewSessionReply> writer;
  auto out = writer.root();
  out.setLeaseMs(value.lease_ms);
  out.setTerm(value.term.value());
  wire::write(out.initMembers(static_cast<unsigned>(value.members.size())), value.members);
  out.setQuotas(value.quotas);
  return writer.finish();
}
template <>
Result<RenewSessionReply> decode<RenewSessionReply>(std::string_view bytes) {
  return wire::decode_message<schema::RenewSessionReply>(
      as_bytes(bytes), [](schema::RenewSessionReply::Reader in) -> Result<RenewSessionReply> {
        RenewSessionReply value{in.getLeaseMs(), Term(in.getTerm()), {}, in.getQuotas()};
        FM_TRY(value.members, wire::read(in.getMembers()));
        return value;
      });
}

namespace {

template <class Message>
std::string encode_ref(const Message& value) {
  wire::Writer<schema::SessionRef> writer;
  writer.root().setSession(value.session.value());
  writer.root().setEpoch(value.epoch.value());
  return writer.finish();
}
template <class Message>
Result<Message> decode_ref(std::string_view bytes) {
  return wire::decode_message<schema::SessionRef>(
      as_bytes(bytes), [](schema::SessionRef::Reader in) -> Result<Message> {
        return Message{SessionId(in.getSession()), Epoch(in.getEpoch())};
      });
}

Result<CallbackRequest::Item> read_item(schema::CallbackRequest::Item::Reader in) {
  CallbackRequest::Item item;
  item.inode = InodeId(in.getInode());
  item.attributes = in.getAttributes();
  item.all_entries = in.getAllEntries();
  item.asks_open = in.getAsksOpen();
  if (in.getNames().size() > wire::kIdsMax) return Errc::kBadMessage;
  for (const auto name : in.getNames()) {
    FM_TRY(std::string text, wire::read_name(name));
    item.names.push_back(std::move(text));
  }
  return item;
}

Result<CallbackRequest::Recall> read_recall(schema::CallbackRequest::Recall::Reader in) {
  FM_TRY(const LockSpace space, wire::read_lock_space(in.getSpace()));
  return CallbackRequest::Recall{InodeId(in.getInode()), space};
}

}  // namespace

std::string encode(const CloseSessionRequest& value) { return encode_ref(value); }
template <>
Result<CloseSessionRequest> decode<CloseSessionRequest>(std::string_view bytes) {
  return decode_ref<CloseSessionRequest>(bytes);
}
std::string encode(const BindCallbacksRequest& value) { return encode_ref(value); }
template <>
Result<BindCallbacksRequest> decode<BindCallbacksRequest>(std::string_view bytes) {
  return decode_ref<BindCallbacksRequest>(bytes);
}

std::string encode(const CallbackRequest& value) {
  wire::Writer<schema::CallbackRequest> writer;
  auto out = writer.root();
  out.setStamp(value.stamp.value());
  auto items = out.initItems(static_cast<unsigned>(value.items.size()));
  for (unsigned i = 0; i < value.items.size(); ++i) {
    const auto& item = value.items[i];
    items[i].setInode(item.inode.value());
    items[i].setAttributes(item.attributes);
    items[i].setAllEntries(item.all_entries);
    items[i].setAsksOpen(item.asks_open);
    auto names = items[i].initNames(static_cast<unsigned>(item.names.size()));
    for (unsigned n = 0; n < item.names.size(); ++n) names.set(n, blob(item.names[n]));
  }
  auto recalls = out.initRecalls(static_cast<unsigned>(value.recalls.size()));
  for (unsigned i = 0; i < value.recalls.size(); ++i) {
    recalls[i].setInode(value.recalls[i].inode.value());
    recalls[i].setSpace(static_cast<std::uint8_t>(value.recalls[i].space));
  }
  return writer.finish();
}
template <>
Result<CallbackRequest> decode<CallbackRequest>(std::string_view bytes) {
  return wire::decode_message<schema::CallbackRequest>(
      as_bytes(bytes), [](schema::CallbackRequest::Reader in) -> Result<CallbackRequest> {
        CallbackRequest value{Stamp(in.getStamp()), {}, {}};
        if (in.getItems().size() > wire::kIdsMax) return Errc::kBadMessage;
        if (in.getRecalls().size() > wire::kIdsMax) return Errc::kBadMessage;
        for (const auto item : in.getItems()) {
          FM_TRY(auto read, read_item(item));
          value.items.push_back(std::move(read));
        }
        for (const auto recall : in.getRecalls()) {
          FM_TRY(const auto read, read_recall(recall));
          value.recalls.push_back(read);
        }
        return value;
      });
}

std::string encode(const CallbackReply& value) {
  wire::Writer<schema::CallbackReply> writer;
  wire::write_ids(writer.root().initOpen(static_cast<unsigned>(value.open.size())), value.open);
  return writer.finish();
}
template <>
Result<CallbackReply> decode<CallbackReply>(std::string_view bytes) {
  return wire::decode_message<schema::CallbackReply>(
      as_bytes(bytes), [](schema::CallbackReply::Reader in) -> Result<CallbackReply> {
        CallbackReply value;
        FM_TRY(value.open, wire::read_ids<InodeId>(in.getOpen()));
        return value;
      });
}

}  // namespace fermata

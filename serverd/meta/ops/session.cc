// Sessions begin and end.
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {

Outcome apply_open_session(Txn& txn, const fermata::Command& command,
                           const OpenSessionCommand& body) {
  if (body.client_id.empty()) return refuse(std::errc::invalid_argument);
  CommandResult result;
  FM_TRY(const auto known, txn.get(Family::kClients, body.client_id));
  if (known) {
    FM_TRY(const std::uint64_t id, decode_number(*known));
    FM_TRY(const auto session, txn.session(SessionId(id)));
    if (!session) return Errc::kCorruptStore;
    result.session = session->id;
    result.epoch = session->epoch;
    return result;
  }
  Session session;
  session.id = SessionId(txn.index().value());
  session.epoch = Epoch(1);
  session.client_id = body.client_id;
  session.host = body.host;
  session.mount_point = body.mount_point;
  session.opened = command.time;
  session.lease_ms = body.lease_ms;
  txn.put(Family::kSessions, key_of(session.id), encode_session(session));
  txn.put(Family::kClients, body.client_id, encode_number(session.id.value()));
  txn.put(Family::kHosts, key_of(session.id), encode_text(session.host));
  result.session = session.id;
  result.epoch = session.epoch;
  return result;
}

Outcome apply_end_sessions(Txn& txn, const EndSessionsCommand& body,
                           std::vector<SessionId>& ended) {
  CommandResult result;
  FM_CHECK(release_locks(txn, body.sessions));
  for (const SessionId id : body.sessions) {
    FM_TRY(const auto session, txn.session(id));
    if (!session) continue;
    txn.erase(Family::kSessions, key_of(id));
    txn.erase(Family::kClients, session->client_id);
    FM_TRY(const auto requests, txn.scan_prefix(Family::kRequests, key_of(id)));
    for (const auto& request : requests) txn.erase(Family::kRequests, request.key);
    // Orphans are few and keyed by inode: a walk costs less than a second index.
    FM_TRY(const auto orphans, txn.scan(Family::kOrphans, {}, {}));
    for (const auto& orphan : orphans)
      if (SessionId(number_in(orphan.key, 8)) == id)
        FM_CHECK(release_orphan(txn, InodeId(number_in(orphan.key, 0)), id));
    ended.push_back(id);
    ++result.count;
  }
  return result;
}

}  // namespace fermata::serverd

#include "serverd/lease/session_table.h"

#include <algorithm>
#include <utility>

namespace fermata::serverd {

SessionTable::SessionTable() : SessionTable(Options{}) {}
SessionTable::SessionTable(Options options) : options_(options) {}

TimePoint SessionTable::lease_end(const Session& session, TimePoint now) const {
  const Duration margin =
      std::max(session.lease * options_.drift_percent / 100, options_.margin_min);
  return now + session.lease + margin;
}

void SessionTable::start_term(const std::vector<Live>& live, TimePoint now) {
  std::map<SessionId, Session> next;
  for (const auto& [id, lease] : live) {
    next[id].lease = lease == Duration::zero() ? options_.lease : lease;
    next[id].until = lease_end(next[id], now);
    // A client may have bound its callbacks to this node before it knew itself to be the primary.
    if (const auto it = sessions_.find(id); it != sessions_.end())
      next[id].channel = it->second.channel;
  }
  sessions_ = std::move(next);
}

bool SessionTable::opened(SessionId session, TimePoint now, Duration lease) {
  auto& state = sessions_[session];
  if (state.ending || state.doomed) return false;
  state.lease = lease == Duration::zero() ? options_.lease : lease;
  state.until = std::max(state.until, lease_end(state, now));
  return true;
}

bool SessionTable::renew(SessionId session, TimePoint now) {
  const auto it = sessions_.find(session);
  if (it == sessions_.end() || it->second.ending || it->second.doomed) return false;
  it->second.until = std::max(it->second.until, lease_end(it->second, now));
  return true;
}

std::shared_ptr<Connection> SessionTable::ended(SessionId session) {
  const auto it = sessions_.find(session);
  if (it == sessions_.end()) return nullptr;
  auto channel = std::move(it->second.channel);
  sessions_.erase(it);
  return channel;
}

bool SessionTable::is_ending(SessionId session) const {
  const auto it = sessions_.find(session);
  return it != sessions_.end() && it->second.ending;
}

void SessionTable::start_ending(SessionId session) {
  if (const auto it = sessions_.find(session); it != sessions_.end()) it->second.ending = true;
}

bool SessionTable::is_doomed(SessionId session) const {
  const auto it = sessions_.find(session);
  return it != sessions_.end() && it->second.doomed;
}

void SessionTable::doom(SessionId session) {
  if (const auto it = sessions_.find(session); it != sessions_.end()) it->second.doomed = true;
}

std::vector<SessionId> SessionTable::due(TimePoint now) {
  std::vector<SessionId> result;
  for (auto& [id, session] : sessions_) {
    if (!session.ending && session.until > now) continue;
    session.ending = true;
    result.push_back(id);
  }
  return result;
}

std::optional<TimePoint> SessionTable::next_due() const {
  std::optional<TimePoint> next;
  for (const auto& [id, session] : sessions_) {
    if (!session.ending && (!next || session.until < *next)) next = session.until;
  }
  return next;
}

Duration SessionTable::lease_left(SessionId session, TimePoint now) const {
  const auto it = sessions_.find(session);
  if (it == sessions_.end() || it->second.ending || it->second.until <= now)
    return Duration::zero();
  return it->second.until - now;
}

bool SessionTable::bind(SessionId session, std::shared_ptr<Connection> connection) {
  const auto it = sessions_.find(session);
  if (it == sessions_.end()) return false;
  it->second.channel = std::move(connection);
  return true;
}

void SessionTable::unbind(const Connection* connection) {
  for (auto& [id, session] : sessions_) {
    if (session.channel.get() == connection) session.channel.reset();
  }
}

std::vector<std::shared_ptr<Connection>> SessionTable::take_channels() {
  std::vector<std::shared_ptr<Connection>> channels;
  for (auto& [id, session] : sessions_) {
    if (session.channel) channels.push_back(std::move(session.channel));
  }
  return channels;
}

Duration SessionTable::lease(SessionId session) const {
  const auto it = sessions_.find(session);
  return it == sessions_.end() ? options_.lease : it->second.lease;
}

std::shared_ptr<Connection> SessionTable::channel(SessionId session) const {
  const auto it = sessions_.find(session);
  return it == sessions_.end() ? nullptr : it->second.channel;
}

std::vector<SessionId> SessionTable::all() const {
  std::vector<SessionId> result;
  result.reserve(sessions_.size());
  for (const auto& [id, session] : sessions_) result.push_back(id);
  return result;
}

}  // namespace fermata::serverd

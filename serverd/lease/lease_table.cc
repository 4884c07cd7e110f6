#include "serverd/lease/lease_table.h"

#include <algorithm>
#include <unordered_set>

#include "common/base/assert.h"

namespace fermata::serverd {
namespace {

template <class Holders>
auto find_holder(Holders& holders, SessionId session) {
  return std::find_if(holders.begin(), holders.end(),
                      [&](const auto& holder) { return holder.session == session; });
}

constexpr Stamp kEver{~0ULL};

/// Nobody else holds it for itself alone.
bool free_for(const auto& state, SessionId session) {
  return !state.exclusive || state.exclusive == session;
}

/// Answering an item ends the lease, unless it is a directory's of which the rest stays cached.
bool ends_lease(const CallbackRequest::Item& item) {
  return item.asks_open || (item.attributes && item.all_entries);
}

}  // namespace

bool LeaseTable::Inode::unused() const {
  return holders.empty() && openers.empty() && pending_attributes == 0 && pending_entries == 0 &&
         pending_last_link == 0 && pending_names.empty() && pending_by.empty() && !exclusive;
}

LeaseTable::LeaseTable() : LeaseTable(Options{}) {}
LeaseTable::LeaseTable(Options options) : options_(options) {}

// ---------------------------------------------------------------- sessions

void LeaseTable::start_term(Term term, const std::vector<SessionId>& live,
                            const std::vector<SessionId>& makers) {
  term_ = term;
  stamp_count_ = 0;
  lease_count_ = 0;
  inodes_.clear();
  recalls_.clear();
  sessions_.clear();
  for (const SessionId id : live) {
    auto& session = sessions_[id];
    session.wildcard = true;
    session.untracked = true;
  }
  for (const SessionId id : makers) sessions_[id].maker = true;
  makers_ = makers.size();
}

void LeaseTable::add_session(SessionId session) { sessions_.try_emplace(session); }

void LeaseTable::given_up(SessionId session) {
  const auto it = sessions_.find(session);
  if (it == sessions_.end()) return;
  makers_ -= it->second.maker ? 1 : 0;
  it->second.wildcard = it->second.maker = false;
  it->second.cleared.clear();
}

void LeaseTable::note_maker(SessionId session) {
  const auto it = sessions_.find(session);
  if (it == sessions_.end() || !it->second.wildcard || it->second.maker) return;
  it->second.maker = true;
  ++makers_;
}

void LeaseTable::remove_session(SessionId id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  for (const InodeId inode : it->second.order) {
    Inode* state = find(inode);
    if (state == nullptr) continue;
    lease_count_ -= std::erase_if(state->holders, [&](const Holder& h) { return h.session == id; });
    if (state->exclusive == id) state->exclusive = SessionId();
    drop_if_unused(inode);
  }
  // Openers are in nobody's order: they are few.
  const bool opens = it->second.opens != 0;
  makers_ -= it->second.maker ? 1 : 0;
  sessions_.erase(it);
  for (auto each = inodes_.begin(); opens && each != inodes_.end();) {
    std::erase_if(each->second.openers, [&](const Holder& h) { return h.session == id; });
    each = each->second.unused() ? inodes_.erase(each) : std::next(each);
  }
}

bool LeaseTable::has_session(SessionId session) const { return sessions_.contains(session); }

bool LeaseTable::is_wildcard(SessionId session) const {
  const auto it = sessions_.find(session);
  return it != sessions_.end() && it->second.wildcard;
}

std::size_t LeaseTable::leases_of(SessionId session) const {
  const auto it = sessions_.find(session);
  return it == sessions_.end() ? 0 : it->second.leases;
}

Stamp LeaseTable::next_stamp() { return make_stamp(term_, ++stamp_count_); }

// ---------------------------------------------------------------- grants

LeaseTable::Inode* LeaseTable::find(InodeId inode) {
  const auto it = inodes_.find(inode);
  return it == inodes_.end() ? nullptr : &it->second;
}

const LeaseTable::Inode* LeaseTable::find(InodeId inode) const {
  const auto it = inodes_.find(inode);
  return it == inodes_.end() ? nullptr : &it->second;
}

void LeaseTable::drop_if_unused(InodeId inode) {
  const auto it = inodes_.find(inode);
  if (it != inodes_.end() && it->second.unused()) inodes_.erase(it);
}

bool LeaseTable::hold(SessionId id, InodeId inode, Inode& state) {
  const auto it = sessions_.find(id);
  FM_ASSERT(it != sessions_.end());
  Session& session = it->second;
  const Stamp now = make_stamp(term_, stamp_count_);
  if (const auto holder = find_holder(state.holders, id); holder != state.holders.end()) {
    holder->granted = now;
    return true;
  }
  if (session.leases >= options_.leases_per_session + options_.leases_per_session / 4) return false;
  state.holders.push_back({id, now});
  forget_open(id, state, kEver);
  ++session.leases;
  ++lease_count_;
  session.order.push_back(inode);
  if (session.order.size() > 2 * session.leases + 64) compact(id, session);
  return true;
}

// Nobody else's change is on its way to what it holds alone; its own come to it by their answers,
// in the order of the stamps.
bool LeaseTable::own_only(const Inode& state, SessionId session) {
  return state.exclusive == session && !others_pend(state, session);
}

bool LeaseTable::grant(SessionId session, InodeId inode) {
  if (!sessions_.contains(session)) return false;
  Inode& state = inodes_[inode];
  const bool pending = state.pending_attributes != 0 && !own_only(state, session);
  const bool granted = free_for(state, session) && !pending && hold(session, inode, state);
  if (!granted) drop_if_unused(inode);
  return granted;
}

bool LeaseTable::grant_entry(SessionId session, InodeId parent, std::string_view name) {
  if (!sessions_.contains(session)) return false;
  Inode& state = inodes_[parent];
  const bool pending = (state.pending_entries != 0 || state.pending_names.contains(name)) &&
                       !own_only(state, session);
  const bool granted = free_for(state, session) && !pending && hold(session, parent, state);
  if (!granted) drop_if_unused(parent);
  return granted;
}

bool LeaseTable::grant_entries(SessionId session, InodeId directory) {
  if (!sessions_.contains(session)) return false;
  Inode& state = inodes_[directory];
  const bool pending =
      (state.pending_entries != 0 || !state.pending_names.empty()) && !own_only(state, session);
  const bool granted = free_for(state, session) && !pending && hold(session, directory, state);
  if (!granted) drop_if_unused(directory);
  return granted;
}

void LeaseTable::opened(SessionId session, InodeId inode, bool granted) {
  const auto it = sessions_.find(session);
  if (granted || it == sessions_.end()) return;
  if (it->second.opens >= options_.leases_per_session) {
    it->second.untracked = true;
    return;
  }
  Inode& state = inodes_[inode];
  const Stamp now = make_stamp(term_, stamp_count_);
  if (const auto opener = find_holder(state.openers, session); opener != state.openers.end()) {
    opener->granted = now;
  } else {
    state.openers.push_back({session, now});
    ++it->second.opens;
  }
}

void LeaseTable::forget_open(SessionId id, Inode& state, Stamp before) {
  const auto opener = find_holder(state.openers, id);
  if (opener == state.openers.end() || opener->granted >= before) return;
  state.openers.erase(opener);
  if (const auto it = sessions_.find(id); it != sessions_.end()) --it->second.opens;
}

bool LeaseTable::losing_last_link(InodeId inode) const {
  const Inode* state = find(inode);
  return state != nullptr && state->pending_last_link != 0;
}

void LeaseTable::release(SessionId id, InodeId inode, Stamp before) {
  Inode* state = find(inode);
  if (state == nullptr) return;
  const auto holder = find_holder(state->holders, id);
  // One granted after the callback was issued stays: the mutation that asked was given up
  // meanwhile.
  if (holder == state->holders.end() || holder->granted >= before) return;
  state->holders.erase(holder);
  --lease_count_;
  if (const auto it = sessions_.find(id); it != sessions_.end()) --it->second.leases;
}

void LeaseTable::compact(SessionId id, Session& session) {
  std::unordered_set<InodeId> seen;
  std::erase_if(session.order, [&](InodeId inode) {
    const Inode* state = find(inode);
    const bool held = state != nullptr && find_holder(state->holders, id) != state->holders.end();
    return !held || !seen.insert(inode).second;
  });
}

// ---------------------------------------------------------------- exclusive leases

bool LeaseTable::others_pend(const Inode& state, SessionId but) {
  return std::any_of(state.pending_by.begin(), state.pending_by.end(),
                     [but](const auto& pending) { return pending.first != but; });
}

bool LeaseTable::grant_exclusive(SessionId id, InodeId directory, TimePoint now) {
  // Whoever holds everything holds this, too; as a wildcard one has yet to give up older grants.
  for (const auto& [other, session] : sessions_)
    if (session.wildcard) return false;
  if (!sessions_.contains(id) || recalls_.contains(directory)) return false;
  Inode& state = inodes_[directory];
  const bool alone = std::all_of(state.holders.begin(), state.holders.end(),
                                 [id](const Holder& holder) { return holder.session == id; });
  const bool asked = state.asked != TimePoint{} && now - state.asked < options_.exclusive_after;
  const bool granted = free_for(state, id) && alone && !asked && !others_pend(state, id) &&
                       hold(id, directory, state);
  if (granted) {
    state.exclusive = id;
    state.exclusive_since = make_stamp(term_, stamp_count_);
  }
  drop_if_unused(directory);
  return granted;
}

bool LeaseTable::wants_alone(SessionId id, InodeId directory, TimePoint now) {
  Inode* state = find(directory);
  if (state == nullptr || state->holders.empty()) return false;
  if (state->creator != id) {
    state->creator = id;
    state->creates = 0;
  }
  const bool asked = state->asked != TimePoint{} && now - state->asked < options_.exclusive_after;
  if (asked) {
    state->creates = 0;
    return false;
  }
  if (++state->creates < options_.exclusive_creates) return false;
  return std::any_of(state->holders.begin(), state->holders.end(),
                     [id](const Holder& holder) { return holder.session != id; });
}

bool LeaseTable::held_elsewhere(InodeId directory, SessionId caller) const {
  const Inode* state = find(directory);
  if (state != nullptr && state->exclusive && state->exclusive != caller) return true;
  return makers_ != 0 && std::any_of(sessions_.begin(), sessions_.end(), [&](const auto& each) {
           return each.second.maker && each.first != caller &&
                  !each.second.cleared.contains(directory);
         });
}

std::map<SessionId, CallbackRequest> LeaseTable::recall(const std::vector<InodeId>& directories,
                                                        SessionId caller, TimePoint now) {
  std::map<SessionId, CallbackRequest> requests;
  const Stamp stamp = next_stamp();
  const auto ask = [&](SessionId session, InodeId directory) {
    auto& request = requests[session];
    request.stamp = stamp;
    if (request.items.empty() || request.items.back().inode != directory)
      request.items.push_back({directory, false, false, {}, false});
  };
  for (const InodeId directory : directories) {
    note_asked(directory, caller, now);
    for (const auto& [id, session] : sessions_)
      if (session.maker && id != caller && !session.cleared.contains(directory)) ask(id, directory);
    const Inode* state = find(directory);
    if (state != nullptr && state->exclusive && state->exclusive != caller)
      ask(state->exclusive, directory);
  }
  return requests;
}

void LeaseTable::begin_recall(const std::vector<InodeId>& directories) {
  for (const InodeId directory : directories) ++recalls_[directory];
}

void LeaseTable::end_recall(const std::vector<InodeId>& directories) {
  for (const InodeId directory : directories) {
    const auto it = recalls_.find(directory);  // none: a term began meanwhile
    if (it != recalls_.end() && --it->second == 0) recalls_.erase(it);
  }
}

void LeaseTable::note_asked(InodeId directory, SessionId caller, TimePoint now) {
  Inode* state = find(directory);
  if (state == nullptr || (!state->exclusive && !state->creator)) return;
  if (caller == state->creator || caller == state->exclusive) return;
  state->asked = now;
}

void LeaseTable::give_up_exclusive(SessionId session, InodeId inode, Stamp before) {
  const auto it = sessions_.find(session);
  if (it != sessions_.end() && it->second.maker) it->second.cleared.insert(inode);
  Inode* state = find(inode);
  // One granted after the callback was issued stays.
  if (state == nullptr || state->exclusive != session || state->exclusive_since >= before) return;
  state->exclusive = SessionId();
}

// ---------------------------------------------------------------- mutations

void LeaseTable::mark(const TouchSet& touched, SessionId by) {
  for (const Touch& touch : touched) {
    Inode& state = inodes_[touch.inode];
    const auto same = [by](const auto& pending) { return pending.first == by; };
    const auto mine = std::find_if(state.pending_by.begin(), state.pending_by.end(), same);
    if (mine != state.pending_by.end()) {
      ++mine->second;
    } else {
      state.pending_by.emplace_back(by, 1);
    }
    if (touch.attributes) ++state.pending_attributes;
    if (touch.all_entries) ++state.pending_entries;
    if (touch.last_link) ++state.pending_last_link;
    for (const auto& name : touch.names) ++state.pending_names[name];
  }
}

void LeaseTable::unmark(const TouchSet& touched, SessionId by) {
  for (const Touch& touch : touched) {
    Inode* state = find(touch.inode);
    if (state == nullptr) continue;  // a term began meanwhile: nothing of the older one is left
    const auto lower = [](std::uint32_t& count) { count -= count == 0 ? 0 : 1; };
    const auto same = [by](const auto& pending) { return pending.first == by; };
    const auto mine = std::find_if(state->pending_by.begin(), state->pending_by.end(), same);
    if (mine != state->pending_by.end() && --mine->second == 0) state->pending_by.erase(mine);
    if (touch.attributes) lower(state->pending_attributes);
    if (touch.all_entries) lower(state->pending_entries);
    if (touch.last_link) lower(state->pending_last_link);
    for (const auto& name : touch.names) {
      const auto it = state->pending_names.find(name);
      if (it != state->pending_names.end() && --it->second == 0) state->pending_names.erase(it);
    }
    drop_if_unused(touch.inode);
  }
}

std::map<SessionId, CallbackRequest> LeaseTable::break_leases(const TouchSet& touched,
                                                              SessionId caller) {
  std::map<SessionId, CallbackRequest> requests;
  const Stamp stamp = next_stamp();
  for (const Touch& touch : touched) {
    const CallbackRequest::Item item{touch.inode, touch.attributes, touch.all_entries, touch.names,
                                     !touch.directory};
    const auto ask = [&](SessionId session) {
      if (session == caller) return;
      auto& request = requests[session];
      request.stamp = stamp;
      // A session may be a holder, an opener and a wildcard at once: one item does.
      if (request.items.empty() || request.items.back().inode != touch.inode) {
        request.items.push_back(item);
      }
    };
    for (const auto& [id, session] : sessions_) {
      if (session.wildcard || (touch.last_link && session.untracked)) ask(id);
    }
    const Inode* state = find(touch.inode);
    if (state == nullptr) continue;
    for (const Holder& holder : state->holders) ask(holder.session);
    if (touch.last_link) {
      for (const Holder& opener : state->openers) ask(opener.session);
    }
  }
  return requests;
}

void LeaseTable::answered(SessionId session, const CallbackRequest& request,
                          const CallbackReply& reply) {
  if (!sessions_.contains(session)) return;
  for (const auto& item : request.items) {
    give_up_exclusive(session, item.inode, request.stamp);
    if (ends_lease(item)) release(session, item.inode, request.stamp);
    if (item.asks_open) {
      const bool open =
          std::find(reply.open.begin(), reply.open.end(), item.inode) != reply.open.end();
      Inode* state = find(item.inode);
      if (open) {
        const bool holds =
            state != nullptr && find_holder(state->holders, session) != state->holders.end();
        opened(session, item.inode, holds);
      } else if (state != nullptr) {
        forget_open(session, *state, request.stamp);
      }
    }
    drop_if_unused(item.inode);
  }
}

std::vector<SessionId> LeaseTable::openers(InodeId inode, SessionId caller) const {
  std::vector<SessionId> result;
  if (const Inode* state = find(inode); state != nullptr) {
    for (const Holder& opener : state->openers) {
      if (opener.session != caller) result.push_back(opener.session);
    }
  }
  std::sort(result.begin(), result.end());
  return result;
}

void LeaseTable::forget_inode(InodeId inode) {
  Inode* state = find(inode);
  if (state == nullptr) return;
  for (const Holder& holder : state->holders) {
    --lease_count_;
    if (const auto it = sessions_.find(holder.session); it != sessions_.end()) --it->second.leases;
  }
  for (const Holder& opener : state->openers) {
    if (const auto it = sessions_.find(opener.session); it != sessions_.end()) --it->second.opens;
  }
  state->holders.clear();
  state->openers.clear();
  state->exclusive = SessionId();
  drop_if_unused(inode);
}

// ---------------------------------------------------------------- bounds

CallbackRequest LeaseTable::evict(SessionId id) {
  CallbackRequest request;
  const auto it = sessions_.find(id);
  if (it == sessions_.end() || it->second.leases <= options_.leases_per_session) return request;
  Session& session = it->second;
  const std::size_t surplus =
      session.leases - options_.leases_per_session + options_.leases_per_session / 8;
  const std::size_t count = std::min(surplus, options_.items_per_callback);
  compact(id, session);
  request.stamp = next_stamp();
  for (std::size_t i = 0; i < std::min(count, session.order.size()); ++i) {
    request.items.push_back({session.order[i], true, true, {}, true});
  }
  return request;
}

}  // namespace fermata::serverd

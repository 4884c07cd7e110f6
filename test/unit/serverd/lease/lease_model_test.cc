// The rule of leases against random interleavings: clients with caches, messages that overtake each
// other, mutations in parallel, sessions that expire, new primaries.
#include <catch2/catch_test_macros.hpp>
#include <deque>
#include <map>
#include <optional>
#include <set>

#include "common/env/random.h"
#include "serverd/lease/lease_table.h"

using namespace fermata;
using namespace fermata::serverd;

namespace {

/// Attributes of an inode (name empty) or one entry of a directory.
using Key = std::pair<InodeId, std::string>;

struct Cached {
  std::uint64_t value;
  Stamp stamp;
};

struct Client {
  SessionId session;
  std::map<Key, Cached> cache;
  std::map<InodeId, Stamp> last_callback;
  std::multiset<Key> mutating;  // by its own requests under way: neither used nor cached
  Term void_before;
};

class Model {
 public:
  explicit Model(std::uint64_t seed) : random_(seed), clients_(4) {
    table_.start_term(term_, {});
    for (auto& client : clients_) open_session(client);
  }

  void step() {
    switch (random_.below(12)) {
      case 0:
      case 1:
      case 2:
        read();
        break;
      case 3:
      case 4:
        start_mutation();
        break;
      case 5:
      case 6:
      case 7:
        for (int i = 0; i < 3; ++i) deliver();
        break;
      case 8:
      case 9:
        advance_mutation();
        break;
      case 10:
        if (random_.chance(1, 20)) expire();
        if (random_.chance(1, 10)) evict();
        break;
      default:
        if (random_.chance(1, 40)) new_term();
        if (random_.chance(1, 4)) give_up();
    }
    check();
  }
  std::uint64_t acknowledged = 0, cache_hits = 0, terms = 0, callbacks = 0;

 private:
  struct Mutation {
    std::size_t client;
    SessionId session;
    TouchSet touched;
    std::map<SessionId, CallbackRequest> waiting;
    Term term;
  };
  using Message = std::function<void()>;

  static std::vector<Key> keys_of(const TouchSet& touched) {
    std::vector<Key> keys;
    for (const auto& touch : touched) {
      if (touch.attributes) keys.push_back({touch.inode, ""});
      for (const auto& name : touch.names) keys.push_back({touch.inode, name});
    }
    return keys;
  }
  void open_session(Client& client) {
    client = Client{};
    client.session = SessionId(++last_session_);
    client.void_before = term_;
    table_.add_session(client.session);
  }
  Client* client_of(SessionId session) {
    for (auto& client : clients_) {
      if (client.session == session) return &client;
    }
    return nullptr;
  }

  void read() {
    Client& client = clients_[random_.below(clients_.size())];
    const InodeId inode{1 + random_.below(4)};
    const bool directory = inode.value() <= 2;
    const std::string name = directory && random_.chance(2, 3)
                                 ? std::string(1, static_cast<char>('a' + random_.below(3)))
                                 : "";
    const SessionId session = client.session;
    const Stamp stamp = table_.next_stamp();
    const bool leased =
        name.empty() ? table_.grant(session, inode) : table_.grant_entry(session, inode, name);
    const Cached answer{state_[{inode, name}], stamp};
    messages_.push_back([this, session, inode, name, leased, answer] {
      Client* to = client_of(session);
      if (to == nullptr || !leased) return;
      const Key key{inode, name};
      if (answer.stamp <= to->last_callback[inode] || to->mutating.contains(key)) return;
      if (term_of(answer.stamp) < to->void_before) return;
      const auto it = to->cache.find(key);
      if (it == to->cache.end() || it->second.stamp < answer.stamp) to->cache[key] = answer;
    });
  }

  void start_mutation() {
    const std::size_t index = random_.below(clients_.size());
    Client& client = clients_[index];
    if (mutations_.size() > 6) return;
    TouchSet touched;
    if (random_.chance(1, 2))
      touched.push_back(
          {InodeId(3 + random_.below(2)), false, true, false, {}, random_.chance(1, 4)});
    if (touched.empty() || random_.chance(1, 2)) {
      touched.push_back({InodeId(1 + random_.below(2)),
                         true,
                         true,
                         false,
                         {std::string(1, static_cast<char>('a' + random_.below(3)))},
                         false});
    }
    for (const auto& key : keys_of(touched)) {
      client.cache.erase(key);
      client.mutating.insert(key);
    }
    table_.mark(touched);
    Mutation mutation{index, client.session, touched, table_.break_leases(touched, client.session),
                      term_};
    const std::uint64_t id = ++last_mutation_;
    for (const auto& [session, request] : mutation.waiting) send_callback(session, request, id);
    mutations_.emplace(id, std::move(mutation));
  }

  void send_callback(SessionId session, const CallbackRequest& request, std::uint64_t mutation) {
    ++callbacks;
    messages_.push_back([this, session, request, mutation] {
      Client* to = client_of(session);
      if (to == nullptr) return;
      for (const auto& item : request.items) {
        auto& last = to->last_callback[item.inode];
        last = std::max(last, request.stamp);
        std::erase_if(to->cache, [&](const auto& entry) {
          const auto& [inode, name] = entry.first;
          if (inode != item.inode || entry.second.stamp > request.stamp) return false;
          return name.empty() ? item.attributes
                              : item.all_entries || std::find(item.names.begin(), item.names.end(),
                                                              name) != item.names.end();
        });
      }
      const Term term = term_;
      messages_.push_back([this, session, request, mutation, term] {
        if (term != term_) return;  // the primary that asked is no longer
        table_.answered(session, request, {});
        if (const auto it = mutations_.find(mutation); it != mutations_.end())
          it->second.waiting.erase(session);
      });
    });
  }

  void apply(const Mutation& mutation) {
    for (const auto& key : keys_of(mutation.touched)) ++state_[key];
  }

  void advance_mutation() {
    for (auto it = mutations_.begin(); it != mutations_.end(); ++it) {
      if (!it->second.waiting.empty() || random_.chance(1, 2)) continue;
      const Mutation mutation = it->second;
      mutations_.erase(it);
      apply(mutation);
      table_.unmark(mutation.touched);
      reply(mutation);
      return;
    }
  }

  void reply(const Mutation& mutation) {
    const Stamp stamp = table_.next_stamp();
    std::map<Key, std::pair<bool, std::uint64_t>> values;
    for (const auto& touch : mutation.touched) {
      values[{touch.inode, ""}] = {table_.grant(mutation.session, touch.inode),
                                   state_[{touch.inode, ""}]};
      for (const auto& name : touch.names) {
        values[{touch.inode, name}] = {table_.grant_entry(mutation.session, touch.inode, name),
                                       state_[{touch.inode, name}]};
      }
    }
    messages_.push_back([this, mutation, stamp, values] {
      Client* to = client_of(mutation.session);
      if (to == nullptr) return;
      ++acknowledged;
      for (const auto& key : keys_of(mutation.touched)) {
        to->mutating.erase(to->mutating.find(key));
        const auto& [leased, value] = values.at(key);
        // Newer than a callback, and no other request of its own under way: it may be kept.
        if (leased && stamp > to->last_callback[key.first] && !to->mutating.contains(key) &&
            term_of(stamp) >= to->void_before) {
          to->cache[key] = {value, stamp};
        }
      }
      // Older answers that are still on the way describe the state before.
      for (const auto& touch : mutation.touched) {
        auto& last = to->last_callback[touch.inode];
        last = std::max(last, stamp);
      }
    });
  }

  void deliver() {
    if (messages_.empty()) return;
    const std::size_t at = random_.below(messages_.size());
    const Message message = messages_[at];
    messages_.erase(messages_.begin() + static_cast<std::ptrdiff_t>(at));
    message();
  }

  void expire() {
    Client& client = clients_[random_.below(clients_.size())];
    const SessionId old = client.session;
    client.cache.clear();  // its own clock has ended the lease before
    table_.remove_session(old);
    for (auto& [id, mutation] : mutations_) mutation.waiting.erase(old);
    std::erase_if(mutations_, [&](auto& entry) {
      if (entry.second.session != old) return false;
      table_.unmark(entry.second.touched);  // fenced
      return true;
    });
    open_session(client);
  }

  void evict() {
    Client& client = clients_[random_.below(clients_.size())];
    const auto request = table_.evict(client.session);
    if (!request.items.empty()) send_callback(client.session, request, 0);
  }

  void new_term() {
    ++terms;
    // What was proposed (all answers in) may have been committed, in any number.
    for (auto& [id, mutation] : mutations_) {
      if (mutation.waiting.empty() && random_.chance(1, 2)) {
        apply(mutation);
      }
    }
    term_ = term_.next();
    std::vector<SessionId> live;
    for (const auto& client : clients_) live.push_back(client.session);
    table_.start_term(term_, live);
    // The clients send their requests again.
    auto again = std::move(mutations_);
    mutations_.clear();
    for (auto& [id, mutation] : again) {
      table_.mark(mutation.touched);
      mutation.term = term_;
      mutation.waiting = table_.break_leases(mutation.touched, mutation.session);
      for (const auto& [session, request] : mutation.waiting) send_callback(session, request, id);
      mutations_.emplace(id, std::move(mutation));
    }
  }

  void give_up() {
    Client& client = clients_[random_.below(clients_.size())];
    client.void_before = term_;
    std::erase_if(client.cache, [&](const auto& e) { return term_of(e.second.stamp) < term_; });
    const SessionId session = client.session;
    const Term term = term_;
    messages_.push_back([this, session, term] {
      if (term == term_) table_.given_up(session);
    });
  }

  /// Stronger than the rule: whatever a client may use of its cache is the present state.
  void check() {
    for (const auto& client : clients_) {
      for (const auto& [key, cached] : client.cache) {
        ++cache_hits;
        if (cached.value != state_[key]) {
          CAPTURE(client.session.value(), key.first.value(), key.second, cached.stamp.value());
          REQUIRE(cached.value == state_[key]);
        }
      }
    }
  }

  SeededRandom random_;
  LeaseTable table_{{.leases_per_session = 5, .items_per_callback = 2}};
  Term term_{1};
  std::vector<Client> clients_;
  std::map<Key, std::uint64_t> state_;
  std::deque<Message> messages_;
  std::map<std::uint64_t, Mutation> mutations_;
  std::uint64_t last_session_ = 0;
  std::uint64_t last_mutation_ = 0;
};

}  // namespace

TEST_CASE("LeaseTable: no interleaving leaves a valid lease on an old state", "[lease][model]") {
  std::uint64_t acknowledged = 0, hits = 0, terms = 0, callbacks = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    CAPTURE(seed);
    Model model(seed);
    for (int i = 0; i < 2000; ++i) model.step();
    acknowledged += model.acknowledged;
    hits += model.cache_hits;
    terms += model.terms;
    callbacks += model.callbacks;
  }
  CHECK(acknowledged > 10'000);  // else the test proves nothing
  CHECK(hits > 100'000);
  CHECK(terms > 300);
  CHECK(callbacks > 10'000);
}

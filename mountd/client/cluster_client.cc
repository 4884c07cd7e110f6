#include "mountd/client/cluster_client.h"

#include <spdlog/spdlog.h>

#include "common/base/limits.h"
#include "common/io/task_group.h"
#include "common/wire/message_codec.h"
#include "mountd/client/router.h"

namespace fermata::mountd {

namespace {
/// What goes on in the directory: files made one by one, or a directory for them.
bool makes_name(const Mutation& op) {
  const auto* create = std::get_if<CreateOp>(&op);
  return create != nullptr && !create->inode &&
         (create->type == FileType::kRegular || create->type == FileType::kDirectory);
}
}  // namespace

struct ClusterClient::Impl {
  explicit Impl(std::shared_ptr<Router> router_in)
      : router(std::move(router_in)), tasks(router->env().executor()) {}

  std::shared_ptr<Router> router;
  TaskGroup tasks;

  /// A mutation was given up without knowing its outcome. Its own client is not called back for it,
  /// so no lease holds until a later mutation has been answered that said, by answered_below, that
  /// the old one is not waited for: then it was carried out before that answer, or never will be.
  void settle(SessionId id, Sequence given_up) {
    if (router->stopped() || router->session().id() != id) return;
    router->session().begin_unsettled();
    router->map().report_unsettled();
    tasks.spawn("settle", settle_task(router, id, given_up));
  }
  static boost::asio::awaitable<void> settle_task(std::shared_ptr<Router> router, SessionId id,
                                                  Sequence given_up);

  ReadHeader header(Credentials cred) const {
    return {router->session().id(), router->session().epoch(), std::move(cred)};
  }

  /// A read: `fill` makes the request with the session of the moment.
  template <class Reply, class Message>
  Task<std::pair<Reply, Buffer>> read(Method method, Message message) {
    for (;;) {
      message.header.session = router->session().id();
      message.header.epoch = router->session().epoch();
      FM_CO_TRY(Router::Answer answer, co_await router->call_primary(method, encode(message), {}));
      const std::error_code error = answer.response.error;
      if (error == Errc::kSessionExpired || error == Errc::kStaleEpoch) {
        FM_CO_CHECK(co_await router->wait_for_session(message.header.session));
        continue;
      }
      if (error) co_return error;
      auto reply = decode<Reply>(answer.response.body);
      if (!reply) co_return reply.error();
      co_return std::pair<Reply, Buffer>(std::move(*reply), std::move(answer.response.payload));
    }
  }

  template <class Reply, class Message>
  Task<Reply> simple_read(Method method, Message message) {
    auto result = co_await read<Reply, Message>(method, std::move(message));
    if (!result) co_return result.error();
    co_return std::move(result->first);
  }
};

boost::asio::awaitable<void> ClusterClient::Impl::settle_task(std::shared_ptr<Router> router,
                                                              SessionId id, Sequence given_up) {
  ClientSession& session = router->session();
  Stamp stamp;
  while (!router->stopped() && session.id() == id) {
    const std::error_code stop = co_await router->env().sleep_for(std::chrono::milliseconds(10));
    if (stop) co_return;                                 // the mount ends
    if (session.answered_below() <= given_up) continue;  // an older one is still on its way
    MutationRequest request;
    request.session = id;
    request.epoch = session.epoch();
    request.sequence = session.begin_mutation();
    request.answered_below = session.answered_below();
    request.op = ReleaseOrphansOp{};
    std::string body = encode(request);
    Result<Router::Answer> answer = Errc::kShuttingDown;
    if (request.answered_below > given_up) {
      answer = co_await router->call_primary(Method::kMutate, std::move(body), {});
    }
    session.finish_mutation(request.sequence);
    if (!answer || answer->response.error) continue;
    const auto reply = decode<MutationReply>(answer->response.body);
    if (!reply) continue;
    stamp = reply->stamp;
    break;
  }
  session.settled(stamp);  // none: another session's leases have nothing to do with it
}

ClusterClient::ClusterClient(Env& env, Network& network, ClientSession& session,
                             std::shared_ptr<ClusterMap> map, ClientOptions options)
    : impl_(std::make_shared<Impl>(
          std::make_shared<Router>(env, network, session, std::move(map), std::move(options)))) {}

ClusterClient::~ClusterClient() { stop(); }

void ClusterClient::stop() {
  impl_->router->stop();
  impl_->tasks.cancel_all();
}

std::shared_ptr<Router> ClusterClient::router() { return impl_->router; }

Task<LookupReply> ClusterClient::lookup(Credentials cred, InodeId parent, std::string name) {
  const auto impl = impl_;
  LookupRequest request{impl->header(std::move(cred)), parent, std::move(name)};
  co_return co_await impl->simple_read<LookupReply>(Method::kLookup, std::move(request));
}

Task<GetAttrReply> ClusterClient::getattr(Credentials cred, InodeId inode) {
  const auto impl = impl_;
  GetAttrRequest request{impl->header(std::move(cred)), inode};
  co_return co_await impl->simple_read<GetAttrReply>(Method::kGetAttr, std::move(request));
}

Task<ReadDirReply> ClusterClient::readdir(Credentials cred, InodeId inode, Cookie after,
                                          std::uint32_t bytes_max, bool with_attributes) {
  const auto impl = impl_;
  ReadDirRequest request{impl->header(std::move(cred)), inode, after, bytes_max, with_attributes};
  co_return co_await impl->simple_read<ReadDirReply>(Method::kReadDir, std::move(request));
}

Task<GetXattrsReply> ClusterClient::getxattrs(Credentials cred, InodeId inode) {
  const auto impl = impl_;
  GetXattrsRequest request{impl->header(std::move(cred)), inode};
  co_return co_await impl->simple_read<GetXattrsReply>(Method::kGetXattrs, std::move(request));
}

Task<StatFsReply> ClusterClient::statfs(Credentials cred, InodeId inode) {
  const auto impl = impl_;
  StatFsRequest request{impl->header(std::move(cred)), inode};
  co_return co_await impl->simple_read<StatFsReply>(Method::kStatFs, std::move(request));
}

Task<void> ClusterClient::close_session(SessionId session, Epoch epoch) {
  const auto impl = impl_;
  std::string body = encode(CloseSessionRequest{session, epoch});
  FM_CO_TRY(const auto answer,
            co_await impl->router->call_primary(Method::kCloseSession, std::move(body), {}));
  if (answer.response.error) co_return answer.response.error;
  co_return Status();
}

Task<QuotaList> ClusterClient::quotas(Credentials cred, InodeId inode) {
  const auto impl = impl_;
  QuotasRequest request{impl->header(std::move(cred)), inode};
  co_return co_await impl->simple_read<QuotaList>(Method::kQuotas, std::move(request));
}

Task<FindLockReply> ClusterClient::find_lock(LockOp lock) {
  const auto impl = impl_;
  LockQuery request{impl->header({}), std::move(lock), false, false};
  co_return co_await impl->simple_read<FindLockReply>(Method::kFindLock, std::move(request));
}

Task<bool> ClusterClient::wait_lock(LockOp lock, bool detect_deadlock) {
  const auto impl = impl_;
  LockQuery request{impl->header({}), std::move(lock), detect_deadlock, false};
  FM_CO_TRY(const auto reply,
            co_await impl->simple_read<WaitLockReply>(Method::kWaitLock, std::move(request)));
  co_return reply.free;
}

Task<void> ClusterClient::give_up_lock(LockOp lock) {
  const auto impl = impl_;
  LockQuery request{impl->header({}), std::move(lock), false, true};
  FM_CO_TRY(const auto reply,
            co_await impl->simple_read<WaitLockReply>(Method::kWaitLock, std::move(request)));
  static_cast<void>(reply);
  co_return fermata::Status{};
}

Task<Opened> ClusterClient::open(Credentials cred, InodeId inode, Version have) {
  const auto impl = impl_;
  for (;;) {
    OpenRequest request{impl->header(cred), inode, have};
    auto got = co_await impl->read<OpenReply, OpenRequest>(Method::kOpen, std::move(request));
    if (!got) co_return got.error();
    const OpenReply reply = std::move(got->first);
    const Buffer payload = std::move(got->second);
    Opened opened{reply.stamp, reply.leased, reply.attr, {}};
    opened.content.kind = reply.content;
    if (reply.content == OpenReply::Content::kNone) co_return opened;
    if (reply.content == OpenReply::Content::kInline) {
      if (payload.size() != reply.attr.size_bytes) co_return Errc::kBadMessage;
      opened.content.inline_bytes = payload;
      co_return opened;
    }
    std::size_t at = 0;
    for (const Patch& patch : reply.patches) {
      if (patch.size_bytes > payload.size() - at) co_return Errc::kBadMessage;
      opened.content.patches.emplace_back(patch, payload.slice(at, patch.size_bytes));
      at += patch.size_bytes;
    }
    FM_CO_TRY(opened.content.chunks, parse_chunk_records(payload.view().subspan(at)));
    bool more = reply.more_chunks;
    bool gone = false;
    while (more) {
      const std::uint32_t next =
          opened.content.chunks.empty() ? 0 : opened.content.chunks.back().index + 1;
      ContentRequest rest{impl->header(cred), inode, reply.attr.version, next};
      auto page =
          co_await impl->read<ContentReply, ContentRequest>(Method::kContent, std::move(rest));
      if (!page && page.error() == Errc::kTruncatedHistory) {
        gone = true;  // replaced, and the version that we began with is not kept: begin anew
        break;
      }
      if (!page) co_return page.error();
      FM_CO_TRY(const auto refs, parse_chunk_records(page->second.view()));
      if (!refs.empty() && refs.front().index < next) co_return Errc::kBadMessage;
      if (refs.empty() && page->first.more_chunks) co_return Errc::kBadMessage;
      opened.content.chunks.insert(opened.content.chunks.end(), refs.begin(), refs.end());
      more = page->first.more_chunks;
    }
    if (!gone) co_return opened;
  }
}

Task<SessionId> ClusterClient::session() {
  const auto router = impl_->router;
  for (;;) {
    const SessionId now = router->session().id();
    if (now) co_return now;
    FM_CO_CHECK(co_await router->wait_for_session(SessionId()));
  }
}

Task<MutationReply> ClusterClient::mutate(Credentials cred, Mutation op, Buffer payload,
                                          SessionId under) {
  const auto impl = impl_;
  const auto router = impl->router;
  ClientSession& session = router->session();
  for (;;) {
    if (!session.id()) FM_CO_CHECK(co_await router->wait_for_session(SessionId()));
    MutationRequest request;
    request.session = session.id();
    request.epoch = session.epoch();
    if (under && request.session != under) co_return Errc::kSessionExpired;
    request.sequence = session.begin_mutation();
    request.answered_below = session.answered_below();
    request.cred = cred;
    request.op = op;
    request.asks_exclusive = router->options().asks_exclusive && makes_name(op);
    auto answer = co_await router->call_primary(Method::kMutate, encode(request), payload);
    session.finish_mutation(request.sequence);
    if (!answer) {
      if (answer.error() != Errc::kTooLarge) impl->settle(request.session, request.sequence);
      co_return answer.error();
    }
    const std::error_code error = answer->response.error;
    if (error == Errc::kSessionExpired || error == Errc::kStaleEpoch) {
      if (answer->was_uncertain) {
        spdlog::error(
            "session {} ended while a change was under way: whether it was carried out is unknown",
            request.session.value());
        router->map().report_lost(request.session);
        co_return Errc::kSessionExpired;
      }
      FM_CO_CHECK(co_await router->wait_for_session(request.session));
      // A commit of the old session is fenced: what it was derived from may have changed since.
      if (std::holds_alternative<CommitOp>(op)) co_return Errc::kSessionExpired;
      continue;
    }
    if (error) co_return error;
    co_return decode<MutationReply>(answer->response.body);
  }
}

}  // namespace fermata::mountd

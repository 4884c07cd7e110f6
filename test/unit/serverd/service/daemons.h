// Three real fermata-serverd on loopback, and a client that speaks to them message by message.
#pragma once

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <thread>

#include "common/env/real_env.h"
#include "common/net/tcp_network.h"
#include "common/wire/message_codec.h"
#include "common/wire/methods.h"

namespace fermata::test {

inline constexpr const char* kCluster = "00112233445566778899aabbccddeeff";

/// A program and what it said on stderr.
struct Ran {
  int exit_code = -1;
  std::string output;
};
Ran run_serverd(std::vector<std::string> arguments);

class Daemons {
 public:
  explicit Daemons(std::vector<std::string> more = {});
  ~Daemons();
  void start(int node);
  void start_all();
  void kill(int node, int signal = SIGKILL);  ///< and waits for its end; returns the exit status
  bool running(int node) const { return pids_[static_cast<std::size_t>(node)] > 0; }
  std::string address(int node) const;
  std::string dir(int node) const { return (root_ / std::to_string(node)).string(); }
  std::string peers() const;
  int last_exit() const { return last_exit_; }

 private:
  std::filesystem::path root_;
  std::vector<std::string> more_;
  std::vector<std::uint16_t> ports_;
  std::array<pid_t, 4> pids_{};
  int last_exit_ = 0;
};

/// One client session. Calls run its own event loop until they are done.
class Client final : public Handler {
 public:
  explicit Client(const Daemons& daemons);
  ~Client() override;

  /// To the primary, wherever it is, until it answers or `limit` is over.
  Result<Response> call(Method method, std::string body, Buffer payload = {},
                        Duration limit = std::chrono::seconds(15));
  /// To one node.
  Result<Response> call_node(int node, Method method, std::string body,
                             Duration timeout = std::chrono::seconds(5));
  template <class Reply, class Message>
  Result<Reply> ask(Method method, const Message& message, Buffer payload = {}) {
    FM_TRY(const auto response, call(method, encode(message), std::move(payload)));
    if (response.error) return response.error;
    return decode<Reply>(response.body);
  }

  Status open_session();
  Status bind();
  Status renew(Term given_up = {});
  ReadHeader header() const { return {session, epoch, {}}; }
  Result<MutationReply> mutate(Mutation op, Buffer payload = {});
  Result<MutationReply> mutate_as(Sequence sequence, Mutation op, Buffer payload = {});
  std::optional<int> primary();
  Result<NodeStatus> status(int node);
  void run_for(Duration duration);

  boost::asio::awaitable<Response> handle(std::shared_ptr<Connection> from,
                                          Request request) override;

  SessionId session;
  Epoch epoch;
  Term term;
  Sequence next_sequence{1};
  std::vector<CallbackRequest> callbacks;  ///< that came
  Duration callback_delay{};               ///< before they are answered
  bool answer_callbacks = true;
  std::vector<InodeId> open_inodes;

 private:
  Result<std::shared_ptr<Connection>> connection(int node);
  template <class T>
  Result<T> wait(boost::asio::awaitable<Result<T>> task);

  const Daemons& daemons_;
  boost::asio::io_context io_{1};
  RealEnv env_;
  TcpNetwork network_;
  std::array<std::shared_ptr<Connection>, 4> connections_;
  int guess_ = 1;
};

}  // namespace fermata::test

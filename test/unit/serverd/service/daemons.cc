#include "daemons.h"

#include <fcntl.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>

#include "common/net/free_port.h"

extern char** environ;

namespace fermata::test {

namespace asio = boost::asio;
using namespace std::chrono_literals;

Ran run_serverd(std::vector<std::string> arguments) {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  arguments.insert(arguments.begin(), SERVERD_PROGRAM);
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  pid_t pid = 0;
  REQUIRE(::posix_spawn(&pid, SERVERD_PROGRAM, &actions, nullptr, argv.data(), environ) == 0);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  Ran ran;
  char buffer[4096];
  for (ssize_t got; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    ran.output.append(buffer, static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(pid, &status, 0);
  ran.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ran;
}

Daemons::Daemons(std::vector<std::string> more) : more_(std::move(more)) {
  std::string pattern =
      (std::filesystem::temp_directory_path() / "fermata-service-XXXXXX").string();
  REQUIRE(::mkdtemp(pattern.data()) != nullptr);
  root_ = pattern;
  const auto ports = free_loopback_ports(3);
  REQUIRE(ports.has_value());
  ports_ = *ports;
}

Daemons::~Daemons() {
  for (int node = 1; node <= 3; ++node) {
    if (running(node)) kill(node);
  }
  std::error_code ignored;
  std::filesystem::remove_all(root_, ignored);
}

std::string Daemons::address(int node) const {
  return "127.0.0.1:" + std::to_string(ports_[static_cast<std::size_t>(node) - 1]);
}

std::string Daemons::peers() const {
  return "1=" + address(1) + ",2=" + address(2) + ",3=" + address(3);
}

void Daemons::start(int node) {
  std::filesystem::create_directories(dir(node));
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  std::vector<std::string> arguments = {SERVERD_PROGRAM,
                                        "--data-dir",
                                        dir(node),
                                        "--node-id",
                                        std::to_string(node),
                                        "--peers",
                                        peers(),
                                        "--cluster-id",
                                        kCluster,
                                        "--ready-fd",
                                        "9",
                                        "--log",
                                        dir(node) + ".log"};
  if (!std::filesystem::exists(dir(node) + "/node.toml")) arguments.push_back("--init");
  arguments.insert(arguments.end(), more_.begin(), more_.end());
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 9);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t pid = 0;
  REQUIRE(::posix_spawn(&pid, SERVERD_PROGRAM, &actions, nullptr, argv.data(), environ) == 0);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  char word[6] = {};
  const auto got = ::read(ends[0], word, sizeof word);
  ::close(ends[0]);
  REQUIRE(got == 6);
  pids_[static_cast<std::size_t>(node)] = pid;
}

void Daemons::start_all() {
  for (int node = 1; node <= 3; ++node) {
    if (!running(node)) start(node);
  }
}

void Daemons::kill(int node, int signal) {
  pid_t& pid = pids_[static_cast<std::size_t>(node)];
  ::kill(pid, signal);
  int status = 0;
  ::waitpid(pid, &status, 0);
  last_exit_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  pid = 0;
}

Client::Client(const Daemons& daemons)
    : daemons_(daemons),
      env_(io_.get_executor(), 1),
      network_(io_.get_executor(), {.body_size_max = body_size_max}) {}

Client::~Client() {
  asio::co_spawn(io_, network_.stop(), [](const std::exception_ptr&) {});
  io_.restart();
  io_.run_for(2s);
}

template <class T>
Result<T> Client::wait(asio::awaitable<Result<T>> task) {
  std::optional<Result<T>> result;
  asio::co_spawn(io_, std::move(task), [&](const std::exception_ptr& error, Result<T> value) {
    result = error ? Result<T>(Errc::kBadMessage) : std::move(value);
  });
  io_.restart();
  while (!result) io_.run_one();
  return std::move(*result);
}

Result<std::shared_ptr<Connection>> Client::connection(int node) {
  auto& known = connections_[static_cast<std::size_t>(node)];
  if (known && known->is_open()) return known;
  Hello hello;
  hello.kind = Hello::Kind::kClient;
  hello.name = "service test";
  FM_TRY(known, wait(network_.connect(daemons_.address(node), std::move(hello), this, 1s)));
  return known;
}

Result<Response> Client::call_node(int node, Method method, std::string body, Duration timeout) {
  FM_TRY(const auto to, connection(node));
  Request request;
  request.method = static_cast<std::uint16_t>(method);
  request.body = std::move(body);
  return wait(to->call(std::move(request), timeout));
}

Result<Response> Client::call(Method method, std::string body, Buffer payload, Duration limit) {
  const auto until = std::chrono::steady_clock::now() + limit;
  Result<Response> answer = Errc::kNotPrimary;
  while (std::chrono::steady_clock::now() < until) {
    auto to = connection(guess_);
    answer = to.has_value() ? Result<Response>(Response()) : Result<Response>(to.error());
    if (to) {
      Request request;
      request.method = static_cast<std::uint16_t>(method);
      request.body = body;
      request.payload = payload;
      answer = wait((*to)->call(std::move(request), limit));
      const bool elsewhere = !answer || answer->error == Errc::kNotPrimary ||
                             answer->error == Errc::kConnectionLost ||
                             answer->error == Errc::kShuttingDown;
      if (!elsewhere) return answer;
    }
    guess_ = guess_ % 3 + 1;
    run_for(20ms);
  }
  return answer;
}

void Client::run_for(Duration duration) {
  io_.restart();
  auto work = asio::make_work_guard(io_);
  io_.run_for(duration);
}

Status Client::open_session() {
  OpenSessionRequest message{"client-" + std::to_string(RealRandom().next()), "host", "/mnt"};
  FM_TRY(const auto reply, ask<OpenSessionReply>(Method::kOpenSession, message));
  session = reply.session;
  epoch = reply.epoch;
  term = reply.term;
  return bind();
}

Status Client::bind() {
  FM_TRY(const auto answer,
         call(Method::kBindCallbacks, encode(BindCallbacksRequest{session, epoch})));
  return answer.error ? Status(answer.error) : Status();
}

Status Client::renew(Term given_up) {
  FM_TRY(const auto reply, ask<RenewSessionReply>(Method::kRenewSession,
                                                  RenewSessionRequest{session, epoch, given_up}));
  term = reply.term;
  return {};
}

Result<MutationReply> Client::mutate(Mutation op, Buffer payload) {
  const Sequence sequence = next_sequence;
  next_sequence = next_sequence.next();
  return mutate_as(sequence, std::move(op), std::move(payload));
}

Result<MutationReply> Client::mutate_as(Sequence sequence, Mutation op, Buffer payload) {
  MutationRequest message;
  message.session = session;
  message.epoch = epoch;
  message.sequence = sequence;
  message.answered_below = Sequence(1);
  message.op = std::move(op);
  return ask<MutationReply>(Method::kMutate, message, std::move(payload));
}

Result<NodeStatus> Client::status(int node) {
  FM_TRY(const auto answer, call_node(node, Method::kStatus, {}));
  if (answer.error) return answer.error;
  return decode<NodeStatus>(answer.body);
}

std::optional<int> Client::primary() {
  for (int i = 0; i < 500; ++i) {
    for (int node = 1; node <= 3; ++node) {
      if (!daemons_.running(node)) continue;
      const auto seen = status(node);
      if (seen && seen->role == "primary" && seen->counters.contains("terms_served")) return node;
    }
    run_for(20ms);
  }
  return std::nullopt;
}

asio::awaitable<Response> Client::handle(std::shared_ptr<Connection>, Request request) {
  co_await asio::this_coro::throw_if_cancelled(false);
  Response response;
  auto message = decode<CallbackRequest>(request.body);
  if (!message) {
    response.error = message.error();
    co_return response;
  }
  CallbackReply reply;
  for (const auto& item : message->items) {
    if (item.asks_open &&
        std::find(open_inodes.begin(), open_inodes.end(), item.inode) != open_inodes.end()) {
      reply.open.push_back(item.inode);
    }
  }
  callbacks.push_back(std::move(*message));
  const auto pause = answer_callbacks ? callback_delay : Duration(1h);
  if (pause > Duration::zero()) {
    const auto stopped = co_await env_.sleep_for(pause);
    if (stopped) response.error = stopped;
  }
  response.body = encode(reply);
  co_return response;
}

}  // namespace fermata::test

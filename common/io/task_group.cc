#include "common/io/task_group.h"

#include <spdlog/spdlog.h>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <exception>
#include <map>
#include <utility>
#include <vector>

#include "common/io/waiter.h"

namespace fermata {

namespace asio = boost::asio;

namespace {

struct TaskEntry {
  std::string name;
  asio::cancellation_signal signal;
};

asio::awaitable<void> run(asio::awaitable<void> task) {
  co_await asio::this_coro::throw_if_cancelled(false);
  co_await std::move(task);
}

void log_escaped(const std::string& name, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    spdlog::error("task {}: an exception escaped: {}; this is a bug, please report it", name,
                  e.what());
  } catch (...) {
    spdlog::error("task {}: an unknown exception escaped; this is a bug, please report it", name);
  }
}

}  // namespace

struct TaskGroup::State {
  explicit State(asio::any_io_executor ex) : executor(std::move(ex)), empty(executor) {}
  asio::any_io_executor executor;
  std::map<std::uint64_t, std::shared_ptr<TaskEntry>>
      tasks;  // ordered: cancelled in order of spawn
  std::uint64_t next_id = 1;
  bool cancelled = false;
  Waiter empty;
};

TaskGroup::TaskGroup(asio::any_io_executor executor)
    : state_(std::make_shared<State>(std::move(executor))) {}

TaskGroup::~TaskGroup() { cancel_all(); }

void TaskGroup::spawn(std::string name, asio::awaitable<void> task) {
  auto entry = std::make_shared<TaskEntry>();
  entry->name = std::move(name);
  const std::uint64_t id = state_->next_id++;
  state_->tasks.emplace(id, entry);
  const auto slot = entry->signal.slot();
  auto done = [state = state_, entry, id](const std::exception_ptr& error) {
    if (error) log_escaped(entry->name, error);
    state->tasks.erase(id);
    if (state->tasks.empty()) state->empty.notify();
  };
  asio::co_spawn(state_->executor, run(std::move(task)),
                 asio::bind_cancellation_slot(slot, std::move(done)));
  if (state_->cancelled) entry->signal.emit(asio::cancellation_type::terminal);
}

void TaskGroup::cancel_all() {
  state_->cancelled = true;
  std::vector<std::shared_ptr<TaskEntry>> entries;  // emit may end a task, which changes the map
  entries.reserve(state_->tasks.size());
  for (const auto& [id, entry] : state_->tasks) entries.push_back(entry);
  for (const auto& entry : entries) entry->signal.emit(asio::cancellation_type::terminal);
}

asio::awaitable<void> TaskGroup::join() {
  auto state = state_;
  std::error_code cancelled;
  while (!state->tasks.empty() && !cancelled) cancelled = co_await state->empty.wait();
}

std::size_t TaskGroup::size() const { return state_->tasks.size(); }

}  // namespace fermata

#include "mountd/fuse/loops.h"

#include <pthread.h>
#include <sched.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>

#include "common/base/assert.h"

namespace fermata::mountd {
namespace {

std::vector<int> usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  return cpus;
}

thread_local const Loops* t_loops = nullptr;
thread_local unsigned t_index = 0;

}  // namespace

Loops::Loops(unsigned count) {
  const auto cpus = usable_cpus();
  const auto cpu_count = std::max<std::size_t>(1, cpus.size());
  if (count == 0) count = static_cast<unsigned>(cpu_count);
  const bool pinned = count <= cpus.size();
  for (unsigned index = 0; index < count; ++index) {
    auto loop = std::make_unique<Loop>();
    loop->context = std::make_unique<boost::asio::io_context>(1);
    loop->work.emplace(loop->context->get_executor());
    if (pinned) loop->cpu = static_cast<unsigned>(cpus[index]);
    loops_.push_back(std::move(loop));
  }
  for (unsigned index = 0; index < count; ++index) {
    loops_[index]->thread = std::thread([this, index, cpu = loops_[index]->cpu] {
      t_loops = this;
      t_index = index;
      pthread_setname_np(pthread_self(), ("loop-" + std::to_string(index)).c_str());
      if (cpu) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(*cpu, &one);
        if (sched_setaffinity(0, sizeof one, &one) != 0) {
          spdlog::warn("loop {}: cannot stay on CPU {}", index, *cpu);
        }
      }
      loops_[index]->context->run();
    });
  }
}

Loops::~Loops() { stop(); }

std::optional<unsigned> Loops::current() const {
  if (t_loops != this) return std::nullopt;
  return t_index;
}

void Loops::stop() {
  FM_ASSERT(!current());
  for (auto& loop : loops_) {
    loop->work.reset();
    loop->context->stop();
  }
  for (auto& loop : loops_) {
    if (loop->thread.joinable()) loop->thread.join();
  }
}

}  // namespace fermata::mountd

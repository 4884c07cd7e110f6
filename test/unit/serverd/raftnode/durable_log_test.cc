#include "serverd/raft/durable_log.h"

#include <spdlog/spdlog.h>

#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <map>

#include "common/env/sim_disk.h"
#include "serverd/raft/durable_log_format.h"

using namespace fermata;
using namespace fermata::serverd;

namespace {

constexpr SimDisk::Fault kFaults[] = {SimDisk::Fault::kPowerCutBefore,
                                      SimDisk::Fault::kPowerCutAfter, SimDisk::Fault::kEio,
                                      SimDisk::Fault::kEnospc, SimDisk::Fault::kShortWrite};

ClusterId cluster_id(std::uint8_t tag) {
  ClusterId id;
  id.bytes.fill(tag);
  return id;
}

DurableLogOptions options(std::uint32_t segment_bytes = 400, std::size_t cache_bytes = 1000) {
  return {.dir = "/node/log",
          .cluster = cluster_id(7),
          .group = kFirstGroup,
          .self = NodeId(1),
          .first_membership = "first members",
          .segment_bytes = segment_bytes,
          .cache_bytes = cache_bytes};
}

std::string data_of(std::uint64_t index, std::uint64_t term) {
  return "entry " + std::to_string(index) + " of term " + std::to_string(term) +
         std::string(index % 90, 'x');
}

LogEntry entry(std::uint64_t index, std::uint64_t term, EntryKind kind = EntryKind::kCommand) {
  return {.index = LogIndex(index),
          .term = Term(term),
          .kind = kind,
          .data = std::make_shared<const std::string>(data_of(index, term))};
}

std::vector<LogEntry> entries(std::uint64_t first, std::uint64_t last, std::uint64_t term) {
  std::vector<LogEntry> list;
  for (std::uint64_t i = first; i <= last; ++i) list.push_back(entry(i, term));
  return list;
}

std::unique_ptr<DurableLog> open_ok(Disk& disk, DurableLogOptions opts = options()) {
  std::string why;
  auto log = DurableLog::open(disk, std::move(opts), why);
  INFO(why);
  REQUIRE(log.has_value());
  return std::move(*log);
}

std::error_code open_fails(Disk& disk, std::string& why, DurableLogOptions opts = options()) {
  auto log = DurableLog::open(disk, std::move(opts), why);
  return log ? std::error_code() : log.error();
}

/// A log by value: what it holds, and what a model expects of it.
struct Image {
  HardState hard;
  std::uint64_t base = 0;
  std::uint64_t base_term = 0;
  std::map<std::uint64_t, std::uint64_t> terms;  // by index
  std::uint64_t last() const { return terms.empty() ? base : terms.rbegin()->first; }
  bool operator==(const Image&) const = default;
};

Image image_of(const DurableLog& log) {
  Image image{.hard = log.hard_state(),
              .base = log.base_index().value(),
              .base_term = log.term_at(log.base_index())->value(),
              .terms = {}};
  for (LogIndex i = log.first_index(); i <= log.last_index();) {
    const auto read = log.read(i, log.last_index(), 300);
    REQUIRE(read.has_value());
    REQUIRE_FALSE(read->empty());
    for (const LogEntry& e : *read) {
      REQUIRE(e.index == i);
      REQUIRE(*e.data == data_of(e.index.value(), e.term.value()));
      REQUIRE(log.term_at(i) == e.term);
      image.terms[i.value()] = e.term.value();
      i = i.next();
    }
  }
  return image;
}

/// A workload that does everything a log can do, and what must be there after each step.
struct Workload {
  Image acked;   // durable: persist, compact or reset returned
  Image wanted;  // what the step in progress would make of it
  bool resetting = false;

  Status run(DurableLog& log, std::uint64_t seed, int steps) {
    SeededRandom random(seed);
    std::uint64_t term = 1;
    for (int step = 0; step < steps; ++step) {
      resetting = false;
      const std::uint64_t choice = random.below(20);
      if (choice < 3) {
        wanted.hard = {.term = Term(++term),
                       .voted_for = NodeId(static_cast<std::uint32_t>(random.below(4)))};
        log.set_hard_state(wanted.hard);
      }
      if (choice < 15) {
        const std::uint64_t back =
            random.chance(1, 4) ? random.below(wanted.last() - wanted.base + 1) : 0;
        const std::uint64_t first = wanted.last() + 1 - back;
        if (back > 0) wanted.hard = {.term = Term(++term), .voted_for = NodeId()};
        log.set_hard_state(wanted.hard);
        const std::uint64_t last = first + random.below(8);
        wanted.terms.erase(wanted.terms.lower_bound(first), wanted.terms.end());
        for (std::uint64_t i = first; i <= last; ++i) wanted.terms[i] = term;
        FM_CHECK(log.append(entries(first, last, term)));
        if (random.chance(1, 3)) continue;  // more goes with the same persist
        FM_TRY(const auto done, log.persist());
        CHECK(done.index.value() == wanted.last());
        CHECK(log.durable_index() == done.index);
      } else if (choice < 18) {
        FM_CHECK(log.persist());
        acked = wanted;
        const std::uint64_t up_to = wanted.base + random.below(wanted.last() - wanted.base + 1);
        if (up_to > wanted.base) wanted.base_term = wanted.terms[up_to];
        wanted.base = up_to;
        wanted.terms.erase(wanted.terms.begin(), wanted.terms.upper_bound(up_to));
        log.forget(LogIndex(up_to), "m" + std::to_string(up_to));
        FM_CHECK(log.compact());
      } else {
        FM_CHECK(log.persist());
        acked = wanted;
        resetting = true;
        // A snapshot that conflicts with the log, or lies beyond it.
        const std::uint64_t index =
            wanted.base + 1 + random.below(wanted.last() - wanted.base + 10);
        wanted.base = index;
        wanted.base_term = ++term;
        wanted.hard.term = Term(term);
        wanted.terms.clear();
        log.set_hard_state({.term = Term(term), .voted_for = wanted.hard.voted_for});
        FM_CHECK(log.reset(LogIndex(index), Term(term), "m"));
        log.finish_reset();
      }
      acked = wanted;
    }
    return {};
  }

  /// `got` is what was there after a crash in the middle of the step from `acked` to `wanted`.
  bool allows(const Image& got) const {
    if (got.hard != acked.hard && got.hard != wanted.hard) return false;
    if (got.base != acked.base && got.base != wanted.base) return false;
    if (resetting && got.base == wanted.base && got.base != acked.base) {
      return got.base_term == wanted.base_term && got.terms.empty();
    }
    // What both have must be there; the rest is a prefix of one of them.
    const auto term_in = [&](const Image& image, std::uint64_t i) {
      const auto it = image.terms.find(i);
      return it == image.terms.end() ? std::uint64_t{0} : it->second;
    };
    bool prefix_of_acked = true;
    bool prefix_of_wanted = true;
    for (const auto& [i, t] : got.terms) {
      prefix_of_acked &= term_in(acked, i) == t;
      prefix_of_wanted &= i <= wanted.base || term_in(wanted, i) == t;
    }
    if (!prefix_of_acked && !prefix_of_wanted) return false;
    if (resetting) return got.terms == acked.terms;
    for (const auto& [i, t] : acked.terms) {
      if (i <= got.base) continue;
      if (i > wanted.base && term_in(wanted, i) != t) break;  // being replaced
      if (!got.terms.contains(i)) return false;
    }
    return true;
  }
};

std::string show(const Image& image) {
  std::string text = "hard " + std::to_string(image.hard.term.value()) + "/" +
                     std::to_string(image.hard.voted_for.value()) + " base " +
                     std::to_string(image.base) + " t" + std::to_string(image.base_term) + ":";
  for (const auto& [i, t] : image.terms) text += " " + std::to_string(i) + "t" + std::to_string(t);
  return text;
}

/// The log's files, as names and bytes.
std::map<std::string, Bytes> files_of(Disk& disk) {
  std::map<std::string, Bytes> files;
  const auto names = disk.list("/node/log");
  REQUIRE(names.has_value());
  for (const std::string& name : *names)
    files[name] = *read_file(disk, "/node/log/" + name, 1 << 24);
  return files;
}

/// A disk that calls back before a sync of a file: what the executor does while the pool is busy.
class HookedDisk final : public Disk {
 public:
  explicit HookedDisk(Disk& disk) : disk_(disk) {}
  std::function<void()> before_sync = [] {};

  Result<std::unique_ptr<File>> open(const std::string& path, Mode mode) override {
    FM_TRY(auto file, disk_.open(path, mode));
    return std::unique_ptr<File>(std::make_unique<HookedFile>(*this, std::move(file)));
  }
  Status rename(const std::string& a, const std::string& b) override { return disk_.rename(a, b); }
  Status remove(const std::string& path) override { return disk_.remove(path); }
  Status remove_all(const std::string& path) override { return disk_.remove_all(path); }
  Status make_dirs(const std::string& path) override { return disk_.make_dirs(path); }
  Result<std::vector<std::string>> list(const std::string& path) override {
    return disk_.list(path);
  }
  Result<bool> exists(const std::string& path) override { return disk_.exists(path); }
  Status sync_dir(const std::string& path) override { return disk_.sync_dir(path); }
  Result<DiskSpace> space(const std::string& path) override { return disk_.space(path); }

 private:
  class HookedFile final : public File {
   public:
    HookedFile(HookedDisk& owner, std::unique_ptr<File> file)
        : owner_(owner), file_(std::move(file)) {}
    Result<std::size_t> read_at(std::uint64_t offset, MutableByteView out) const override {
      return file_->read_at(offset, out);
    }
    Status write_at(std::uint64_t offset, ByteView bytes) override {
      return file_->write_at(offset, bytes);
    }
    Status truncate(std::uint64_t size) override { return file_->truncate(size); }
    Status sync() override {
      owner_.before_sync();
      return file_->sync();
    }
    Result<std::uint64_t> size_bytes() const override { return file_->size_bytes(); }

   private:
    HookedDisk& owner_;
    std::unique_ptr<File> file_;
  };
  Disk& disk_;
};

/// Fast: no log lines of expected repairs.
struct Quiet {
  Quiet() { spdlog::set_level(spdlog::level::err); }
  ~Quiet() { spdlog::set_level(spdlog::level::info); }
};

}  // namespace

TEST_CASE("DurableLog: what was appended is readable at once and there after a restart",
          "[raft][log]") {
  SimDisk disk(1);
  {
    const auto log = open_ok(disk);
    CHECK(log->last_index() == LogIndex(0));
    CHECK(log->first_index() == LogIndex(1));
    CHECK(log->term_at(LogIndex(0)) == Term(0));
    CHECK(log->base_membership() == "first members");
    log->set_hard_state({.term = Term(3), .voted_for = NodeId(2)});
    REQUIRE(log->append(entries(1, 40, 3)));
    CHECK(log->has_staged());
    CHECK(log->durable_index() == LogIndex(0));
    CHECK(image_of(*log).last() == 40);
    const auto before = disk.syncs();
    const auto done = log->persist();
    REQUIRE(done.has_value());
    CHECK(done->index == LogIndex(40));
    CHECK(done->term == Term(3));
    CHECK_FALSE(log->has_staged());
    CHECK(disk.syncs() > before);
    REQUIRE(log->append({entry(41, 3, EntryKind::kMembership)}));
    REQUIRE(log->persist().has_value());
  }
  SeededRandom random(1);
  disk.power_cut(random);
  const auto log = open_ok(disk);
  CHECK(log->hard_state() == HardState{Term(3), NodeId(2)});
  CHECK(image_of(*log).last() == 41);
  CHECK(*log->membership_at(LogIndex(41)) == data_of(41, 3));
  CHECK(*log->membership_at(LogIndex(40)) == "first members");
  CHECK(log->term_at(LogIndex(42)) == std::nullopt);
  CHECK(log->read(LogIndex(1), LogIndex(41), 0)->size() == 1);
}

TEST_CASE("DurableLog: a batch within a segment costs one sync", "[raft][log]") {
  SimDisk disk(1);
  const auto log = open_ok(disk, options(1 << 20));
  REQUIRE(log->append(entries(1, 5, 1)));
  REQUIRE(log->persist().has_value());
  const auto before = disk.syncs();
  for (std::uint64_t i = 6; i < 106; ++i) REQUIRE(log->append({entry(i, 1)}));
  REQUIRE(log->persist().has_value());
  CHECK(disk.syncs() == before + 1);
}

TEST_CASE(
    "DurableLog: a crash at any disk operation keeps what was acknowledged and a prefix of the "
    "rest",
    "[raft][log]") {
  const Quiet quiet;
  std::uint64_t crashes = 0;
  std::uint64_t partly = 0;
  std::uint64_t full = 0;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    std::uint64_t operations = 0;
    {
      SimDisk disk(seed);
      Workload workload;
      const auto log = open_ok(disk);
      REQUIRE(workload.run(*log, seed, 40));
      REQUIRE(log->persist().has_value());
      CHECK(image_of(*log) == workload.wanted);
      operations = disk.operations();
    }
    REQUIRE(operations > 100);
    for (const auto fault : kFaults) {
      for (std::uint64_t k = 0; k < operations; ++k) {
        for (std::uint64_t cut_seed = 0; cut_seed < 2; ++cut_seed) {
          SimDisk disk(seed);
          disk.fail_at(k, fault);
          Workload workload;
          std::string why;
          {
            auto log = DurableLog::open(disk, options(), why);
            if (log) {
              const Status status = workload.run(**log, seed, 40);
              const bool no_space = !status && status.error() == std::errc::no_space_on_device;
              if (no_space && workload.resetting) {
                // Named as what it is, and final: half of a reset is no state to go on from.
                CHECK((*log)->persist().error() == std::errc::io_error);
              } else if (no_space) {
                // Nothing is lost: once there is room the rest goes there.
                REQUIRE((*log)->persist().has_value());
                CHECK(image_of(**log) == workload.wanted);
                workload.acked = workload.wanted;
                ++full;
              } else if (!status) {
                // Fail-stop: whatever comes after says the same.
                CHECK((*log)->persist().error() == status.error());
                CHECK((*log)->append(entries(1, 1, 1)).error() == status.error());
              }
            } else {
              CHECK_FALSE(why.empty());
            }
          }
          SeededRandom random(seed * 1000003 + k * 31 + cut_seed);
          disk.power_cut(random);
          ++crashes;
          CAPTURE(seed, static_cast<int>(fault), k, cut_seed);
          const auto log = open_ok(disk);
          const Image got = image_of(*log);
          INFO("acked  " << show(workload.acked) << "\nwanted " << show(workload.wanted)
                         << "\ngot    " << show(got));
          REQUIRE(workload.allows(got));
          partly += got != workload.acked && got != workload.wanted;
          // And it goes on from there.
          const std::uint64_t next = got.last() + 1;
          const std::uint64_t term =
              std::max<std::uint64_t>(got.terms.empty() ? got.base_term : 0, 1000);
          REQUIRE(log->append(entries(next, next + 5, term)));
          REQUIRE(log->persist().has_value());
          const Image after = image_of(*log);
          if (cut_seed == 0) REQUIRE(image_of(*open_ok(disk)) == after);
        }
      }
    }
  }
  CHECK(crashes > 2000);
  CHECK(partly > 50);  // or the test proves little
  CHECK(full > 50);
  UNSCOPED_INFO(crashes << " crashes, " << partly << " with a part of the last step");
}

TEST_CASE("DurableLog: entries may be replaced, from any index on, while a persist is at work",
          "[raft][log]") {
  const Quiet quiet;
  int hooked = 0;
  for (std::uint64_t from = 2; from <= 20; ++from) {
    for (int at = 0;; ++at) {
      CAPTURE(from, at);
      SimDisk medium(1);
      HookedDisk disk(medium);
      const auto log = open_ok(disk);
      log->set_hard_state({.term = Term(1), .voted_for = NodeId()});
      REQUIRE(log->append(entries(1, 12, 1)));
      REQUIRE(log->persist().has_value());
      // A persist of a new term, a cut and several segments; at one of its syncs yet another
      // primary's entries come.
      log->set_hard_state({.term = Term(2), .voted_for = NodeId()});
      REQUIRE(log->append(entries(9, 20, 2)));
      int syncs = 0;
      disk.before_sync = [&] {
        if (syncs++ != at) return;
        log->set_hard_state({.term = Term(3), .voted_for = NodeId()});
        REQUIRE(log->append(entries(from, from + 3, 3)));
      };
      REQUIRE(log->persist().has_value());
      disk.before_sync = [] {};
      if (syncs <= at) break;
      ++hooked;
      Image expected;
      expected.hard.term = Term(3);
      for (std::uint64_t i = 1; i <= from + 3; ++i)
        expected.terms[i] = i >= from ? 3u : i >= 9 ? 2u : 1u;
      CHECK(image_of(*log) == expected);
      CHECK(log->durable_index() < LogIndex(from));
      REQUIRE(log->persist().has_value());
      CHECK(log->durable_index() == LogIndex(from + 3));
      CHECK(image_of(*log) == expected);
      SeededRandom random(from);
      medium.power_cut(random);
      CHECK(image_of(*open_ok(medium)) == expected);
    }
  }
  CHECK(hooked > 100);
}

TEST_CASE("DurableLog: a full disk is waited for, whatever is replaced meanwhile", "[raft][log]") {
  const Quiet quiet;
  int waits = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SeededRandom random(seed);
    CAPTURE(seed);
    SimDisk disk(seed);
    int asked = 0;
    auto opts = options();
    opts.make_room = [&] { return ++asked % 2 == 1 && random.chance(1, 3); };
    const auto log = open_ok(disk, opts);
    std::uint64_t last = 0;
    std::uint64_t term = 1;
    for (int step = 0; step < 30; ++step) {
      const std::uint64_t durable = log->durable_index().value();
      if (random.chance(1, 3)) {
        // Another primary's entries in place of some that may or may not have come to the disk.
        last = durable + random.below(last - durable + 1);
        ++term;
      }
      const std::uint64_t first = last + 1;
      last += 1 + random.below(5);
      REQUIRE(log->append(entries(first, last, term)));
      log->set_hard_state({.term = Term(term), .voted_for = NodeId()});
      const auto space = disk.space("/");
      disk.set_capacity(space->total_bytes - space->free_bytes + random.below(900));
      const auto done = log->persist();
      disk.set_capacity(1 << 30);
      if (!done) {
        REQUIRE(done.error() == std::errc::no_space_on_device);
        ++waits;
        CHECK(log->durable_index().value() >= std::min(durable, first - 1));
        if (random.chance(1, 2)) continue;
        REQUIRE(log->persist().has_value());
      }
      CHECK(log->durable_index() == LogIndex(last));
    }
    const Image before = image_of(*log);
    const std::uint64_t durable = log->durable_index().value();
    disk.power_cut(random);
    const Image after = image_of(*open_ok(disk));
    for (std::uint64_t i = 1; i <= durable; ++i) CHECK(after.terms.at(i) == before.terms.at(i));
  }
  CHECK(waits > 500);
}

TEST_CASE("DurableLog: records are written over zeros that are there already", "[raft][log]") {
  constexpr std::uint32_t kSegment = 64U << 10;
  constexpr std::uint64_t kStep = kSegment / 16;
  SimDisk disk(5);
  SeededRandom random(5);
  const std::string path = "/node/log/" + log_format::segment_name(LogIndex(1));
  const auto size = [&] { return read_file(disk, path, 1U << 20)->size(); };
  {
    const auto log = open_ok(disk, options(kSegment));
    for (std::uint64_t i = 1; i <= 100; ++i) {
      REQUIRE(log->append(entries(i, i, 1)).has_value());
      REQUIRE(log->persist().has_value());
      CHECK(size() % kStep == 0);
    }
    disk.power_cut(random);  // all of it was synced
  }
  std::uint64_t last = 0;
  {
    const auto log = open_ok(disk, options(kSegment));
    last = log->last_index().value();
    CHECK(last > 50);
    CHECK(image_of(*log).terms.size() == last);
    CHECK(size() % kStep != 0);  // the zeros are gone
    REQUIRE(log->append(entries(last + 1, last + 1, 2)).has_value());
    REQUIRE(log->persist().has_value());
    CHECK(size() % kStep == 0);
  }
  CHECK(open_ok(disk, options(kSegment))->last_index().value() == last + 1);

  SECTION("zeros where a durable record was are damage") {
    auto bytes = *read_file(disk, path, 1U << 20);
    const std::size_t from = bytes.size() - log_format::record_bytes(data_of(last + 1, 2).size());
    const Bytes zeros(bytes.size() - from);
    REQUIRE((*disk.open(path, Disk::Mode::kReadWrite))->write_at(from, zeros).has_value());
    std::string why;
    CHECK(open_fails(disk, why, options(kSegment)) == Errc::kCorruptLog);
  }
}

TEST_CASE("DurableLog: what a stopped process left in the cache is durable once the log is open",
          "[raft][log]") {
  const Quiet quiet;
  int kept = 0;
  for (const auto fault : {SimDisk::Fault::kEio, SimDisk::Fault::kEnospc}) {
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
      SimDisk disk(seed);
      {
        const auto log = open_ok(disk, options(1 << 20));
        REQUIRE(log->append(entries(1, 5, 1)));
        REQUIRE(log->persist().has_value());
        REQUIRE(log->append(entries(6, 9, 1)));
        disk.fail_at(disk.operations() + 1, fault);  // written; the sync fails and drops it
        REQUIRE_FALSE(log->persist().has_value());
      }
      disk.close_all();
      const Image first = image_of(*open_ok(disk, options(1 << 20)));
      CHECK(first.last() >= 5);
      kept += first.last() == 9;
      SeededRandom random(seed);
      disk.power_cut(random);
      CHECK(image_of(*open_ok(disk, options(1 << 20))) == first);
    }
  }
  CHECK(kept > 0);
}

TEST_CASE("DurableLog: one flipped bit anywhere is found or harmless", "[raft][log]") {
  const Quiet quiet;
  SimDisk disk(1);
  Image before;
  {
    const auto log = open_ok(disk);
    log->set_hard_state({.term = Term(2), .voted_for = NodeId(3)});
    for (std::uint64_t i = 1; i <= 16; i += 4) {
      REQUIRE(log->append(entries(i, i + 3, 2)));
      REQUIRE(log->persist().has_value());
    }
    before = image_of(*log);
  }
  (void)open_ok(disk);  // notes the last batch as durable
  int refused = 0;
  int survived = 0;
  for (const auto& [name, bytes] : files_of(disk)) {
    for (std::size_t offset = 0; offset < bytes.size(); ++offset) {
      if (name == "state" && offset % log_format::kStateCopyBytes > 200) continue;  // unused
      const auto mask = static_cast<std::uint8_t>(1U << (offset % 8));
      const std::string path = "/node/log/" + name;
      REQUIRE(disk.corrupt(path, offset, mask));
      const auto damaged = files_of(disk);
      std::string why;
      auto log = DurableLog::open(disk, options(), why);
      CAPTURE(name, offset, why);
      if (log) {
        ++survived;
        REQUIRE(image_of(**log) == before);
        if (name == "state") continue;  // repaired by the way
      } else {
        ++refused;
        REQUIRE(log.error() == Errc::kCorruptLog);
        REQUIRE(why.find(name) != std::string::npos);
        REQUIRE(files_of(disk) == damaged);
      }
      REQUIRE(disk.corrupt(path, offset, mask));
    }
  }
  CHECK(refused > 1000);
  CHECK(survived >= 400);  // either copy of the state
}

TEST_CASE("DurableLog: a damaged record is told from a torn one by what follows it",
          "[raft][log]") {
  const Quiet quiet;
  for (const bool later_batch : {false, true}) {
    SimDisk disk(1);
    {
      const auto log = open_ok(disk, options(1 << 20));
      REQUIRE(log->append(entries(1, 3, 1)));
      REQUIRE(log->persist().has_value());
      REQUIRE(log->append(entries(4, 6, 1)));
      REQUIRE(log->persist().has_value());
      if (later_batch) {
        REQUIRE(log->append(entries(7, 9, 1)));
        REQUIRE(log->persist().has_value());
      }
    }
    std::uint64_t offset = sizeof(log_format::SegmentHeader);
    for (std::uint64_t i = 1; i < 4; ++i) offset += log_format::record_bytes(data_of(i, 1).size());
    REQUIRE(disk.corrupt("/node/log/" + log_format::segment_name(LogIndex(1)), offset + 45, 1));
    std::string why;
    if (later_batch) {
      CHECK(open_fails(disk, why, options(1 << 20)) == Errc::kCorruptLog);
      CHECK(why.find("entry 4") != std::string::npos);
      CHECK(why.find("valid records follow") != std::string::npos);
    } else {
      // Records 5 and 6 are valid, but of the same batch: the sync may never have returned.
      CHECK(image_of(*open_ok(disk, options(1 << 20))).last() == 3);
    }
  }
}

TEST_CASE("DurableLog: once it is marked durable, a damaged last batch is no torn one",
          "[raft][log]") {
  const Quiet quiet;
  for (const bool marked : {false, true}) {
    CAPTURE(marked);
    SimDisk disk(1);
    {
      const auto log = open_ok(disk, options(1 << 20));
      REQUIRE(log->append(entries(1, 4, 1)));
      REQUIRE(log->persist().has_value());
      CHECK_FALSE(log->has_unmarked());  // the segment is new, and was said to be there
      REQUIRE(log->append(entries(5, 5, 1)));
      REQUIRE(log->persist().has_value());
      CHECK(log->has_unmarked());
      if (marked) {
        REQUIRE(log->mark_durable());
        CHECK_FALSE(log->has_unmarked());
        const auto before = disk.syncs();
        REQUIRE(log->mark_durable());  // costs nothing when there is nothing new
        CHECK(disk.syncs() == before);
        // And being replaced is no damage.
        log->set_hard_state({.term = Term(2), .voted_for = NodeId()});
        REQUIRE(log->append(entries(4, 5, 2)));
        CHECK_FALSE(log->has_unmarked());
        REQUIRE(log->persist().has_value());
        REQUIRE(log->mark_durable());
      }
    }
    const std::string path = "/node/log/" + log_format::segment_name(LogIndex(1));
    const Bytes bytes = *read_file(disk, path, 1 << 24);
    const auto last_used =
        std::find_if(bytes.rbegin(), bytes.rend(), [](std::byte b) { return b != std::byte{0}; });
    REQUIRE(disk.corrupt(path, static_cast<std::size_t>(bytes.rend() - last_used) - 2, 1));
    std::string why;
    if (marked) {
      CHECK(open_fails(disk, why, options(1 << 20)) == Errc::kCorruptLog);
      CHECK(why.find("--rejoin") != std::string::npos);
    } else {
      CHECK(open_ok(disk, options(1 << 20))->last_index() == LogIndex(4));
    }
  }
}

TEST_CASE("DurableLog: the state remembers a loss, and is read as version 1 wrote it",
          "[raft][log]") {
  SimDisk disk(1);
  auto lost = options();
  lost.rejoining = true;
  CHECK(open_ok(disk, lost)->hard_state().rejoining);
  HardState hard = open_ok(disk)->hard_state();  // the flag counts when the log is made
  CHECK(hard.rejoining);
  {
    const auto log = open_ok(disk);
    hard = {.term = Term(4), .voted_for = NodeId(2), .rejoining = false, .silence_ms = 700};
    log->set_hard_state(hard);
    REQUIRE(log->persist().has_value());
  }
  CHECK(open_ok(disk, lost)->hard_state() == hard);

  auto bytes = *read_file(disk, "/node/log/state", 1 << 20);
  auto block = load_le<log_format::StateBlock>(bytes.data());
  block.version = 1;
  const std::string membership = "first members";
  const auto crc_of = [&] {
    const auto whole = std::as_bytes(std::span(&block, 1));
    return crc32c(as_bytes(membership),
                  crc32c(whole.subspan(16, log_format::kStateBlockBytesV1 - 16), 1));
  };
  block.crc = crc_of();
  for (const std::size_t at : {std::size_t{0}, log_format::kStateCopyBytes}) {
    std::memcpy(bytes.data() + at, &block, log_format::kStateBlockBytesV1);
    std::memcpy(bytes.data() + at + log_format::kStateBlockBytesV1, membership.data(),
                membership.size());
  }
  REQUIRE(write_file_atomically(disk, "/node/log/state", bytes));
  hard.silence_ms = 0;
  CHECK(open_ok(disk)->hard_state() == hard);
  CHECK(open_ok(disk)->base_membership() == membership);
}

TEST_CASE("DurableLog: missing files are found", "[raft][log]") {
  const Quiet quiet;
  for (int which = 0; which < 4; ++which) {
    SimDisk disk(1);
    {
      const auto log = open_ok(disk);
      for (std::uint64_t i = 1; i <= 40; ++i) {
        REQUIRE(log->append({entry(i, 1)}));
        REQUIRE(log->persist().has_value());
      }
    }
    (void)open_ok(disk);
    auto names = *disk.list("/node/log");
    REQUIRE(names.size() > 4);
    const std::string victim = which == 0   ? names.front()
                               : which == 1 ? names[2]
                               : which == 2 ? names[names.size() - 2]
                                            : "state";
    REQUIRE(disk.remove("/node/log/" + victim));
    const auto before = files_of(disk);
    std::string why;
    CAPTURE(victim);
    CHECK(open_fails(disk, why) == Errc::kCorruptLog);
    CHECK_FALSE(why.empty());
    CHECK(files_of(disk) == before);
  }
}

TEST_CASE("DurableLog: a foreign or newer log is refused and not touched", "[raft][log]") {
  SimDisk disk(1);
  {
    const auto log = open_ok(disk);
    REQUIRE(log->append(entries(1, 10, 1)));
    REQUIRE(log->persist().has_value());
  }
  const auto before = files_of(disk);
  std::string why;
  auto foreign = options();
  foreign.cluster = cluster_id(8);
  CHECK(open_fails(disk, why, foreign) == Errc::kWrongCluster);
  CHECK(why.find("belongs to cluster 0707") != std::string::npos);
  auto other_node = options();
  other_node.self = NodeId(2);
  CHECK(open_fails(disk, why, other_node) == Errc::kWrongCluster);
  CHECK(why.find("node 1") != std::string::npos);
  CHECK(files_of(disk) == before);

  // A newer program wrote the state.
  auto bytes = before.at("state");
  auto block = load_le<log_format::StateBlock>(bytes.data());
  block.version = log_format::kStateVersion + 1;
  const std::string membership = "first members";
  block.crc = log_format::header_crc(block, as_bytes(membership), block.version);
  std::memcpy(bytes.data(), &block, sizeof block);
  REQUIRE(write_file_atomically(disk, "/node/log/state", bytes));
  const auto newer = files_of(disk);
  CHECK(open_fails(disk, why) == Errc::kVersionMismatch);
  CHECK(why.find("version 3") != std::string::npos);
  CHECK(files_of(disk) == newer);
}

TEST_CASE("DurableLog: compaction drops whole segments and remembers the base", "[raft][log]") {
  SimDisk disk(1);
  const auto log = open_ok(disk);
  REQUIRE(log->append(entries(1, 60, 4)));
  REQUIRE(log->persist().has_value());
  const std::size_t files = disk.list("/node/log")->size();
  log->forget(LogIndex(50), "members at 50");
  REQUIRE(log->compact());
  CHECK(disk.list("/node/log")->size() < files);
  for (const auto* at : {log.get(), open_ok(disk).release()}) {
    const std::unique_ptr<const DurableLog> owned(at == log.get() ? nullptr : at);
    CHECK(at->first_index() == LogIndex(51));
    CHECK(at->term_at(LogIndex(50)) == Term(4));
    CHECK(at->term_at(LogIndex(49)) == std::nullopt);
    CHECK(at->base_membership() == "members at 50");
    CHECK(at->read(LogIndex(50), LogIndex(51), 1).error() == Errc::kTruncatedHistory);
    CHECK(image_of(*at).terms.size() == 10);
  }
}

TEST_CASE("DurableLog: after a reset the log is empty and stands at the snapshot", "[raft][log]") {
  SimDisk disk(1);
  const auto log = open_ok(disk);
  REQUIRE(log->append(entries(1, 30, 4)));
  REQUIRE(log->persist().has_value());
  REQUIRE(log->reset(LogIndex(25), Term(5), "n"));
  log->finish_reset();
  CHECK(log->last_index() == LogIndex(25));
  CHECK(log->first_index() == LogIndex(26));
  REQUIRE(log->append(entries(26, 28, 5)));
  REQUIRE(log->persist().has_value());
  CHECK(image_of(*open_ok(disk)) == image_of(*log));
}

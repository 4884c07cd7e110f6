#include "serverd/store/patient_files.h"

#include <rocksdb/db.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "common/env/real_env.h"

namespace fermata::serverd {
namespace {

using rocksdb::FSWritableFile;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

constexpr std::chrono::milliseconds kLookAgain{10};
/// Tables leave so much to the log, which must go on for anything to be removed.
constexpr std::uint64_t kLeftMin = 256u << 10, kLeftMax = 4u << 20;
constexpr std::uint64_t kLeftPart = 64;  // of the disk

/// What RocksDB does in a thread of its pools, as it told the listener last.
enum class Job { kNone, kFlush, kCompaction };
thread_local Job job = Job::kNone;
/// The compaction in this thread was refused room: the error that follows is none.
thread_local bool put_off_here = false;

}  // namespace

struct PatientFiles::State {
  explicit State(std::string directory_path) : directory(std::move(directory_path)) {}

  /// Does what takes room, in time: `takes` returns NoSpace as long as there is none.
  template <typename Takes>
  IOStatus with_room(bool table, std::uint64_t bytes, const Takes& takes) {
    IOStatus done;
    const auto attempt = [&] {
      done = !table || leaves_room(bytes) ? takes() : IOStatus::NoSpace();
      return !done.IsNoSpace();
    };
    if (attempt() || job == Job::kNone) return done;
    if (job == Job::kCompaction && table) {
      put_off_here = put_off = true;
      // Of such a one RocksDB thinks that it may go well the next time.
      done = IOStatus::IOError("no room for a compaction");
      done.SetRetryable(true);
    } else {
      wait_for(attempt);
    }
    return done;
  }

  /// A flush that began without room for all of it could take what a compaction needs to make some.
  void wait_to_begin(rocksdb::DB& db) {
    const auto fits = [&] {
      std::uint64_t all = 0, active = 0;
      using Properties = rocksdb::DB::Properties;
      db.GetAggregatedIntProperty(Properties::kCurSizeAllMemTables, &all);
      db.GetAggregatedIntProperty(Properties::kCurSizeActiveMemTable, &active);
      return leaves_room(all - std::min(all, active));
    };
    if (!fits()) wait_for(fits);
  }

  const std::string directory;
  std::atomic<int> flushes_waiting{0};
  std::atomic<std::uint64_t> refusals{0};
  std::atomic<bool> put_off{false}, closed{false};
  mutable Mutex mutex;
  rocksdb::Status error FM_GUARDED_BY(mutex);

 private:
  /// Of a flush, or of a few bytes that say what a flush or a compaction has done.
  template <typename Attempt>
  void wait_for(const Attempt& attempt) {
    ++flushes_waiting;
    do {
      ++refusals;
      std::this_thread::sleep_for(kLookAgain);
    } while (!closed && !attempt());
    --flushes_waiting;
  }
  /// A flush may take more than a compaction, of which it is not known when it ends.
  bool leaves_room(std::uint64_t bytes) const {
    const auto space = RealDisk().space(directory);
    if (job == Job::kNone || !space) return true;
    const std::uint64_t left = std::clamp(space->total_bytes / kLeftPart, kLeftMin, kLeftMax);
    return space->free_bytes >= bytes + (job == Job::kFlush ? left : 2 * left);
  }
};

namespace {

using State = PatientFiles::State;

/// Sets room aside before it writes: a write that finds the disk full half way cannot be repeated.
class PatientFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  PatientFile(std::unique_ptr<FSWritableFile> file, std::shared_ptr<State> state, bool table)
      : FSWritableFileOwnerWrapper(std::move(file)), state_(std::move(state)), table_(table) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  IODebugContext* debug) override {
    const auto take = [&]() -> IOStatus {
      const IOStatus set = target()->Allocate(size_, data.size(), options, debug);
      if (set.IsNoSpace()) return set;
      IOStatus done = target()->Append(data, options, debug);
      // Of a file system that cannot: a part may be written, and must not be once more.
      if (done.IsNoSpace() && !set.ok()) return IOStatus::IOError("full", done.ToString());
      return done;
    };
    IOStatus done = state_->with_room(table_, data.size(), take);
    if (done.ok()) size_ += data.size();
    return done;
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo&, IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  /// Not more than what is written: others want the room, too.
  void PrepareWrite(std::size_t, std::size_t, const IOOptions&, IODebugContext*) override {}

 private:
  const std::shared_ptr<State> state_;
  const bool table_;
  std::uint64_t size_ = 0;
};

class Listener final : public rocksdb::EventListener {
 public:
  explicit Listener(std::shared_ptr<State> state) : state_(std::move(state)) {}

  void OnFlushBegin(rocksdb::DB* db, const rocksdb::FlushJobInfo&) override {
    job = Job::kFlush;
    state_->wait_to_begin(*db);
  }
  void OnCompactionBegin(rocksdb::DB*, const rocksdb::CompactionJobInfo&) override {
    job = Job::kCompaction;
    put_off_here = false;
  }
  void OnCompactionCompleted(rocksdb::DB*, const rocksdb::CompactionJobInfo& info) override {
    if (info.status.ok()) state_->put_off = false;
  }
  void OnBackgroundError(rocksdb::BackgroundErrorReason reason, rocksdb::Status* error) override {
    if (reason == rocksdb::BackgroundErrorReason::kCompaction && put_off_here) return;
    const MutexLock lock(state_->mutex);
    if (state_->error.ok()) state_->error = *error;
  }
  /// RocksDB's own recovery waits until a whole memtable more is free than it needs, and lets
  /// nobody else try meanwhile: on a small disk for ever.
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* auto_recovery) override {
    *auto_recovery = false;
  }

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace

PatientFiles::PatientFiles(std::string directory)
    : FileSystemWrapper(rocksdb::FileSystem::Default()),
      state_(std::make_shared<State>(std::move(directory))) {}

std::shared_ptr<rocksdb::EventListener> PatientFiles::listener() const {
  return std::make_shared<Listener>(state_);
}
bool PatientFiles::flush_waits() const { return state_->flushes_waiting != 0; }
std::uint64_t PatientFiles::refusals() const { return state_->refusals; }
bool PatientFiles::compaction_put_off() const { return state_->put_off; }
rocksdb::Status PatientFiles::error() const {
  const MutexLock lock(state_->mutex);
  return state_->error;
}
void PatientFiles::forget_error() {
  const MutexLock lock(state_->mutex);
  state_->error = rocksdb::Status::OK();
}
void PatientFiles::close() { state_->closed = true; }

IOStatus PatientFiles::NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                                       std::unique_ptr<FSWritableFile>* result,
                                       IODebugContext* debug) {
  const bool table = path.ends_with(".sst");
  const auto take = [&] { return target()->NewWritableFile(path, options, result, debug); };
  IOStatus made = state_->with_room(table, 0, take);
  if (made.ok()) *result = std::make_unique<PatientFile>(std::move(*result), state_, table);
  return made;
}

}  // namespace fermata::serverd

#include "serverd/store/rocks_store.h"

#include <rocksdb/cache.h>
#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/utilities/table_properties_collectors.h>
#include <rocksdb/write_buffer_manager.h>
#include <spdlog/spdlog.h>

#include <charconv>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <limits>
#include <thread>
#include <utility>

#include "common/base/assert.h"
#include "common/base/checksum.h"
#include "common/env/real_env.h"
#include "serverd/store/format_file.h"
#include "serverd/store/patient_files.h"

namespace fermata::serverd {
namespace {

constexpr std::string_view kActiveMagic = "FERMACTV";
constexpr const char* kFormatName = "/FORMAT";
constexpr const char* kActiveName = "/ACTIVE";
constexpr const char* kDirectoryPrefix = "db-";
constexpr std::chrono::milliseconds kFlushPoll{1};

std::error_code to_code(const rocksdb::Status& status) {
  if (status.IsCorruption()) return make_error_code(Errc::kCorruptStore);
  if (status.IsNoSpace()) return std::make_error_code(std::errc::no_space_on_device);
  if (status.IsShutdownInProgress()) return make_error_code(Errc::kShuttingDown);
  return std::make_error_code(std::errc::io_error);
}
Status to_status(const rocksdb::Status& status) {
  if (status.ok()) return {};
  return to_code(status);
}

rocksdb::Slice slice(std::string_view text) { return {text.data(), text.size()}; }

/// RocksDB's messages go with ours. Its own log file would end the process on a full disk (an
/// assertion in WritableFileWriter), and must not be left in a checkpoint that is only read.
class OurLog final : public rocksdb::Logger {
 public:
  OurLog() : Logger(rocksdb::WARN_LEVEL) {}
  using rocksdb::Logger::Logv;
  void Logv(const char* format, va_list arguments) override {
    char text[512];
    std::vsnprintf(text, sizeof text, format, arguments);
    spdlog::debug("rocksdb: {}", text);
  }
};

rocksdb::CompressionType compression() {
  for (const auto type : rocksdb::GetSupportedCompressions())
    if (type == rocksdb::kLZ4Compression) return type;
  return rocksdb::kNoCompression;
}

rocksdb::DBOptions database_options(const RocksOptions& options,
                                    const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::DBOptions db;
  db.atomic_flush = true;
  db.avoid_flush_during_shutdown = true;  // durable is what flush() made so, in tests as in a crash
  db.paranoid_checks = true;
  db.max_background_jobs = options.background_jobs;
  db.max_open_files = 256;
  db.write_buffer_manager =
      std::make_shared<rocksdb::WriteBufferManager>(options.memtable_bytes, cache);
  db.info_log = std::make_shared<OurLog>();
  db.stats_dump_period_sec = 0;
  db.stats_persist_period_sec = 0;
  db.bytes_per_sync = 1u << 20;
  return db;
}

rocksdb::ColumnFamilyOptions family_options(const RocksOptions& options,
                                            const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = cache;
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));  // creates ask for what is absent
  table.whole_key_filtering = true;
  table.cache_index_and_filter_blocks = true;
  table.cache_index_and_filter_blocks_with_high_priority = true;
  table.pin_l0_filter_and_index_blocks_in_cache = true;
  rocksdb::ColumnFamilyOptions family;
  family.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  family.write_buffer_size = options.memtable_bytes / 2;
  family.max_write_buffer_number = 4;
  family.memtable_prefix_bloom_size_ratio = 0.05;
  family.memtable_whole_key_filtering = true;
  family.arena_block_size = 64u << 10;  // many families are nearly empty
  family.compression = compression();
  family.level_compaction_dynamic_level_bytes = true;
  family.target_file_size_base = options.table_bytes;
  family.max_compaction_bytes = 4 * options.table_bytes;  // its output is beside its input
  // What comes new is merged with a level of this size at once. With RocksDB's 256 MiB a smaller
  // state is one level, and is rewritten whole, for which a disk that it fills has no room.
  family.max_bytes_for_level_base = 4 * options.table_bytes;
  if (options.memtable_bytes < RocksOptions().memtable_bytes)  // the disk is small
    family.level0_file_num_compaction_trigger = 2;
  // Tables in which much was removed are compacted at once: that is what gives the room back.
  constexpr std::size_t kWindow = 1000, kRemoved = 300;
  constexpr double kRemovedPart = 0.3;
  family.table_properties_collector_factories.push_back(
      rocksdb::NewCompactOnDeletionCollectorFactory(kWindow, kRemoved, kRemovedPart));
  return family;
}

std::string encode_active(std::uint64_t number) {
  std::string out(kActiveMagic);
  append_le(out, number);
  append_le(out, crc32c(as_bytes(out)));
  return out;
}

/// The number in ACTIVE; 0 if there is no such file.
Result<std::uint64_t> read_active(Disk& disk, const std::string& path) {
  FM_TRY(const bool there, disk.exists(path + kActiveName));
  if (!there) return std::uint64_t{0};
  FM_TRY(const Bytes bytes, read_file(disk, path + kActiveName, 4096));
  if (bytes.size() < 8 || as_text(ByteView(bytes).first(8)) != kActiveMagic)
    return Errc::kVersionMismatch;
  if (bytes.size() != 20) return Errc::kCorruptStore;
  const auto number = load_le<std::uint64_t>(bytes.data() + 8);
  if (number == 0 || as_text(bytes) != encode_active(number)) return Errc::kCorruptStore;
  return number;
}

std::string directory_name(const std::string& path, std::uint64_t number) {
  return path + "/" + kDirectoryPrefix + std::to_string(number);
}

}  // namespace

struct RocksStore::Database {
  explicit Database(std::string path)
      : directory(std::move(path)),
        files(std::make_shared<PatientFiles>(directory)),
        env(rocksdb::NewCompositeEnv(files)) {}

  const std::string directory;
  const std::shared_ptr<PatientFiles> files;
  const std::unique_ptr<rocksdb::Env> env;
  std::unique_ptr<rocksdb::DB> db;
  std::vector<rocksdb::ColumnFamilyHandle*> handles;  // [0] is RocksDB's default family, unused
  std::atomic<bool> remove_when_closed{false};

  rocksdb::ColumnFamilyHandle* handle(Family family) const {
    return handles[static_cast<std::size_t>(family)];
  }
  /// Memtables, of all families, that are full or to be flushed and are not on the disk yet.
  std::uint64_t unflushed() const {
    std::uint64_t count = 0;
    const std::string property = rocksdb::DB::Properties::kNumImmutableMemTable;
    return db->GetAggregatedIntProperty(property, &count) ? count : 0;
  }
  /// An error that stopped the database; it goes on if it was only for want of room.
  Status resume() const {
    const rocksdb::Status error = files->error();
    if (error.ok()) return {};
    if (!error.IsNoSpace() || !db->Resume().ok()) return to_code(error);
    files->forget_error();
    return {};
  }
  ~Database() {
    files->close();
    for (auto* handle : handles) static_cast<void>(db->DestroyColumnFamilyHandle(handle));
    if (db) static_cast<void>(db->Close());
    db.reset();
    if (remove_when_closed) static_cast<void>(RealDisk().remove_all(directory));
  }

  enum class Mode { kCreate, kOpen, kReadOnly };
  static Result<std::shared_ptr<Database>> open(const std::string& directory, Mode mode,
                                                const RocksOptions& options) {
    auto cache = rocksdb::NewLRUCache(options.cache_bytes);
    rocksdb::DBOptions db_options = database_options(options, cache);
    const auto family_option = family_options(options, cache);
    std::vector<rocksdb::ColumnFamilyDescriptor> descriptors{
        {rocksdb::kDefaultColumnFamilyName, family_option}};
    for (const Family family : kFamilies)
      descriptors.emplace_back(to_string(family), family_option);
    auto database = std::make_shared<Database>(directory);
    db_options.env = database->env.get();
    db_options.listeners.push_back(database->files->listener());
    rocksdb::DB* raw = nullptr;
    rocksdb::Status status;
    if (mode == Mode::kReadOnly) {
      status = rocksdb::DB::OpenForReadOnly(db_options, directory, descriptors, &database->handles,
                                            &raw);
    } else {
      db_options.create_if_missing = mode == Mode::kCreate;
      db_options.error_if_exists = mode == Mode::kCreate;
      db_options.create_missing_column_families = mode == Mode::kCreate;
      status = rocksdb::DB::Open(db_options, directory, descriptors, &database->handles, &raw);
    }
    if (!status.ok()) {
      // What is missing or contradicts itself in a directory whose FORMAT is ours is damage.
      if (status.IsInvalidArgument() || status.IsNotFound() || status.IsPathNotFound())
        return Errc::kCorruptStore;
      return to_code(status);
    }
    database->db.reset(raw);
    return database;
  }
};

namespace {

using Database = RocksStore::Database;

/// A RocksDB snapshot, released with its last user; the database lives at least as long.
struct Hold {
  explicit Hold(std::shared_ptr<Database> of)
      : database(std::move(of)), snapshot(database->db->GetSnapshot()) {}
  ~Hold() { database->db->ReleaseSnapshot(snapshot); }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  std::shared_ptr<Database> database;
  const rocksdb::Snapshot* snapshot;
};

class RocksIterator final : public KvIterator {
 public:
  RocksIterator(std::shared_ptr<Database> database, std::shared_ptr<Hold> hold, Family family,
                std::string_view lower, std::string_view upper)
      : database_(std::move(database)), hold_(std::move(hold)), lower_(lower), upper_(upper) {
    lower_slice_ = lower_;
    upper_slice_ = upper_;
    rocksdb::ReadOptions options;
    options.iterate_lower_bound = &lower_slice_;
    if (!upper_.empty()) options.iterate_upper_bound = &upper_slice_;
    if (hold_) options.snapshot = hold_->snapshot;
    it_.reset(database_->db->NewIterator(options, database_->handle(family)));
    if (upper_.empty() || lower_ < upper_) it_->Seek(lower_slice_);
  }
  bool valid() const override { return it_->Valid(); }
  void next() override { it_->Next(); }
  std::string_view key() const override { return it_->key().ToStringView(); }
  std::string_view value() const override { return it_->value().ToStringView(); }
  Status status() const override { return to_status(it_->status()); }

 private:
  std::shared_ptr<Database> database_;
  std::shared_ptr<Hold> hold_;
  std::string lower_, upper_;
  rocksdb::Slice lower_slice_, upper_slice_;
  std::unique_ptr<rocksdb::Iterator> it_;  // first to go
};

Result<std::optional<std::string>> get_from(const Database& database,
                                            const rocksdb::Snapshot* snapshot, Family family,
                                            std::string_view key) {
  rocksdb::ReadOptions options;
  options.snapshot = snapshot;
  std::string value;
  const auto status = database.db->Get(options, database.handle(family), slice(key), &value);
  if (status.IsNotFound()) return std::optional<std::string>();
  if (!status.ok()) return to_code(status);
  return std::optional(std::move(value));
}

class RocksReader final : public KvReader {
 public:
  explicit RocksReader(std::shared_ptr<Database> database)
      : hold_(std::make_shared<Hold>(std::move(database))) {}
  Result<std::optional<std::string>> get(Family family, std::string_view key) const override {
    return get_from(*hold_->database, hold_->snapshot, family, key);
  }
  std::unique_ptr<KvIterator> iterate(Family family, std::string_view lower,
                                      std::string_view upper) const override {
    return std::make_unique<RocksIterator>(hold_->database, hold_, family, lower, upper);
  }

 private:
  std::shared_ptr<Hold> hold_;
};

/// Makes db-1. An earlier attempt that was cut short has no table file; one that has is not ours to
/// remove.
Result<std::uint64_t> create(Disk& disk, const std::string& path, const RocksOptions& options) {
  FM_CHECK(disk.make_dirs(path));
  FM_TRY(const auto names, disk.list(path));
  const std::string directory = directory_name(path, 1);
  for (const std::string& name : names) {
    if (name == "ACTIVE.tmp") continue;
    if (name != "db-1") return Errc::kVersionMismatch;
    FM_TRY(const auto files, disk.list(directory));
    for (const std::string& file : files)
      if (file.ends_with(".sst")) return Errc::kCorruptStore;
  }
  FM_CHECK(disk.remove_all(directory));
  FM_CHECK(disk.make_dirs(directory));
  FM_CHECK(write_format(disk, directory + kFormatName, {.cluster = options.cluster}));
  { FM_TRY(const auto database, Database::open(directory, Database::Mode::kCreate, options)); }
  FM_CHECK(disk.sync_dir(directory));
  FM_CHECK(disk.sync_dir(path));
  FM_CHECK(write_file_atomically(disk, path + kActiveName, as_bytes(encode_active(1))));
  FM_CHECK(disk.sync_dir(parent_of(path)));
  return std::uint64_t{1};
}

/// Directories that an interrupted install left.
Status remove_others(Disk& disk, const std::string& path, std::uint64_t active) {
  FM_TRY(const auto names, disk.list(path));
  for (const std::string& name : names)
    if (name.starts_with(kDirectoryPrefix) && path + "/" + name != directory_name(path, active))
      FM_CHECK(disk.remove_all(path + "/" + name));
  return {};
}

}  // namespace

RocksStore::RocksStore(std::string path, RocksOptions options)
    : path_(std::move(path)), options_(options) {}
RocksStore::~RocksStore() = default;

Result<std::unique_ptr<RocksStore>> RocksStore::open(const std::string& path,
                                                     RocksOptions options) {
  RealDisk disk;
  std::unique_ptr<RocksStore> store(new RocksStore(path, options));
  FM_TRY(store->number_, read_active(disk, path));
  if (store->number_ == 0) {
    FM_TRY(store->number_, create(disk, path, options));
  }
  const std::string directory = directory_name(path, store->number_);
  FM_TRY(const auto format, read_format(disk, directory + kFormatName));
  if (!format) return Errc::kCorruptStore;
  FM_CHECK(check_cluster(format->cluster, options.cluster));
  FM_TRY(auto database, Database::open(directory, Database::Mode::kOpen, options));
  store->database_.store(std::move(database));
  store->set_cluster(format->cluster);
  FM_CHECK(remove_others(disk, path, store->number_));
  if (!format->cluster && options.cluster) FM_CHECK(store->bind_cluster(options.cluster));
  return store;
}

Result<std::optional<std::string>> RocksStore::get(Family family, std::string_view key) const {
  return get_from(*database(), nullptr, family, key);
}

std::unique_ptr<KvIterator> RocksStore::iterate(Family family, std::string_view lower,
                                                std::string_view upper) const {
  return std::make_unique<RocksIterator>(database(), nullptr, family, lower, upper);
}

Status RocksStore::write(const KvBatch& batch) {
  const auto database = this->database();
  rocksdb::WriteBatch writes;
  for (const KvBatch::Write& write : batch.writes()) {
    auto* handle = database->handle(write.family);
    const auto status = write.value ? writes.Put(handle, slice(write.key), slice(*write.value))
                                    : writes.Delete(handle, slice(write.key));
    if (!status.ok()) return to_code(status);
  }
  if (database->files->flush_waits()) return std::errc::no_space_on_device;
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  options.no_slowdown = true;
  auto status = database->db->Write(options, &writes);
  if (status.IsIncomplete()) {  // flushes or compactions have not kept up
    if (database->files->flush_waits() || database->files->compaction_put_off())
      return std::errc::no_space_on_device;
    options.no_slowdown = false;
    status = database->db->Write(options, &writes);
  }
  return to_status(status);
}

std::unique_ptr<KvReader> RocksStore::snapshot() const {
  return std::make_unique<RocksReader>(database());
}

Status RocksStore::flush() {
  const auto database = this->database();
  const PatientFiles& files = *database->files;
  FM_CHECK(database->resume());
  const std::uint64_t refused_before = files.refusals();
  rocksdb::FlushOptions options;
  options.wait = false;  // it may wait for room
  options.allow_write_stall = true;
  bool asked = false;
  while (!asked || database->unflushed() != 0) {
    if (files.refusals() != refused_before) return std::errc::no_space_on_device;
    if (const auto error = files.error(); !error.ok()) return to_code(error);
    if (!asked && !files.flush_waits()) {  // one that waits takes what there was before
      const auto status = database->db->Flush(options, database->handles);
      if (!status.ok() && !status.IsTryAgain()) return to_code(status);
      asked = status.ok();
      continue;
    }
    std::this_thread::sleep_for(kFlushPoll);
  }
  return {};
}

Result<std::unique_ptr<KvReader>> RocksStore::checkpoint(const std::string& path) {
  RealDisk disk;
  const auto database = this->database();
  rocksdb::Checkpoint* raw = nullptr;
  if (const auto made = rocksdb::Checkpoint::Create(database->db.get(), &raw); !made.ok())
    return to_code(made);
  const std::unique_ptr<rocksdb::Checkpoint> maker(raw);
  FM_CHECK(flush());
  FM_CHECK(disk.make_dirs(parent_of(path)));
  // Without a flush of its own, which could wait for room.
  constexpr auto kNoFlush = std::numeric_limits<std::uint64_t>::max();
  if (const auto status = maker->CreateCheckpoint(path, kNoFlush); !status.ok())
    return to_code(status);
  FM_CHECK(write_format(disk, path + kFormatName, {.cluster = cluster()}));
  FM_CHECK(disk.sync_dir(parent_of(path)));
  RocksOptions small = options_;
  small.cache_bytes = 4u << 20;
  small.memtable_bytes = 1u << 20;
  FM_TRY(auto copy, Database::open(path, Database::Mode::kReadOnly, small));
  return std::unique_ptr<KvReader>(std::make_unique<RocksReader>(std::move(copy)));
}

Status RocksStore::install(const std::string& path) {
  RealDisk disk;
  FM_TRY(const auto format, read_format(disk, path + kFormatName));
  if (!format) return Errc::kCorruptStore;
  FM_CHECK(check_cluster(format->cluster, cluster()));
  {  // a checkpoint that cannot be opened must not replace what can
    FM_TRY(const auto readable, Database::open(path, Database::Mode::kReadOnly, options_));
    const auto checked = readable->db->VerifyChecksum();
    if (!checked.ok()) return to_code(checked);
  }
  const std::string directory = directory_name(path_, number_ + 1);
  FM_CHECK(disk.remove_all(directory));
  FM_CHECK(disk.rename(path, directory));
  FM_CHECK(disk.sync_dir(directory));
  FM_CHECK(disk.sync_dir(path_));
  FM_CHECK(disk.sync_dir(parent_of(path)));
  FM_TRY(auto next, Database::open(directory, Database::Mode::kOpen, options_));
  FM_CHECK(write_file_atomically(disk, path_ + kActiveName, as_bytes(encode_active(number_ + 1))));
  ++number_;
  const ClusterId bound = cluster();
  const auto old = database_.exchange(std::move(next));
  old->remove_when_closed = true;
  set_cluster(format->cluster);
  if (!format->cluster && bound) return bind_cluster(bound);
  return {};
}

ClusterId RocksStore::cluster() const {
  const MutexLock lock(mutex_);
  return cluster_;
}
void RocksStore::set_cluster(ClusterId cluster) {
  const MutexLock lock(mutex_);
  cluster_ = cluster;
}

Status RocksStore::bind_cluster(ClusterId cluster) {
  FM_CHECK(check_cluster(this->cluster(), cluster));
  if (this->cluster() == cluster) return {};
  RealDisk disk;
  FM_CHECK(write_format(disk, directory_name(path_, number_) + kFormatName, {.cluster = cluster}));
  set_cluster(cluster);
  return {};
}

std::uint64_t RocksStore::approximate_bytes(Family family) const {
  const auto database = this->database();
  std::uint64_t tables = 0, memory = 0;
  database->db->GetIntProperty(database->handle(family),
                               rocksdb::DB::Properties::kEstimateLiveDataSize, &tables);
  database->db->GetIntProperty(database->handle(family),
                               rocksdb::DB::Properties::kCurSizeAllMemTables, &memory);
  return tables + memory;
}

}  // namespace fermata::serverd

#include "common/base/errc.h"

#include <cerrno>
#include <string>

namespace fermata {
namespace {

constexpr std::uint32_t kWireOwn = 4096;
constexpr int kErrcMax = 20;

class Category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "fermata"; }

  std::string message(int value) const override {
    switch (static_cast<Errc>(value)) {
      case Errc::kBadMessage:
        return "malformed message";
      case Errc::kHashMismatch:
        return "bytes do not match their id";
      case Errc::kCorruptChunk:
        return "chunk is corrupt on disk";
      case Errc::kCorruptLog:
        return "replicated log is corrupt on disk";
      case Errc::kCorruptStore:
        return "metadata store is corrupt on disk";
      case Errc::kStaleEpoch:
        return "session epoch is over (fenced)";
      case Errc::kStaleBase:
        return "a newer version was committed meanwhile";
      case Errc::kSessionExpired:
        return "session is unknown or expired";
      case Errc::kNotPrimary:
        return "this node is not the primary";
      case Errc::kNoQuorum:
        return "no majority of nodes can be reached";
      case Errc::kDeadlineExceeded:
        return "deadline exceeded";
      case Errc::kConnectionLost:
        return "connection lost";
      case Errc::kVersionMismatch:
        return "unsupported protocol or format version";
      case Errc::kWrongCluster:
        return "belongs to another cluster";
      case Errc::kRetry:
        return "state changed, try again";
      case Errc::kShuttingDown:
        return "shutting down";
      case Errc::kMissingChunk:
        return "a chunk of the commit is not on a majority of nodes";
      case Errc::kTooLarge:
        return "size over its limit";
      case Errc::kTruncatedHistory:
        return "that version is no longer kept";
      case Errc::kUnsupported:
        return "request not supported";
    }
    return "unknown error " + std::to_string(value);
  }

  std::error_condition default_error_condition(int value) const noexcept override {
    switch (static_cast<Errc>(value)) {
      case Errc::kBadMessage:
        return std::errc::bad_message;
      case Errc::kHashMismatch:
      case Errc::kCorruptChunk:
      case Errc::kCorruptLog:
      case Errc::kCorruptStore:
      case Errc::kMissingChunk:
        return std::errc::io_error;
      case Errc::kStaleEpoch:
      case Errc::kStaleBase:
      case Errc::kSessionExpired:
      case Errc::kTruncatedHistory:
        return {ESTALE, std::generic_category()};
      case Errc::kNotPrimary:
      case Errc::kRetry:
        return std::errc::resource_unavailable_try_again;
      case Errc::kNoQuorum:
      case Errc::kDeadlineExceeded:
      case Errc::kConnectionLost:
        return std::errc::timed_out;
      case Errc::kVersionMismatch:
        return std::errc::protocol_not_supported;
      case Errc::kWrongCluster:
        return std::errc::operation_not_permitted;
      case Errc::kShuttingDown:
        return {ESHUTDOWN, std::generic_category()};
      case Errc::kTooLarge:
        return std::errc::message_size;
      case Errc::kUnsupported:
        return std::errc::operation_not_supported;
    }
    return std::errc::io_error;
  }
};

}  // namespace

const std::error_category& fermata_category() noexcept {
  static const Category category;
  return category;
}

std::error_code from_errno(int value) noexcept { return {value, std::generic_category()}; }

std::error_code last_errno() noexcept { return from_errno(errno); }

int to_errno(const std::error_code& code) noexcept {
  if (!code) return 0;
  if (code.category() == std::generic_category()) return code.value();
  const std::error_condition condition = code.default_error_condition();
  return condition.category() == std::generic_category() ? condition.value() : EIO;
}

std::uint32_t to_wire(const std::error_code& code) noexcept {
  if (!code) return 0;
  if (code.category() == fermata_category())
    return kWireOwn + static_cast<std::uint32_t>(code.value());
  return static_cast<std::uint32_t>(to_errno(code));
}

std::error_code from_wire(std::uint32_t value) noexcept {
  if (value == 0) return {};
  if (value < kWireOwn) return from_errno(static_cast<int>(value));
  if (value > kWireOwn && value <= kWireOwn + kErrcMax) return static_cast<Errc>(value - kWireOwn);
  return from_errno(EIO);
}

}  // namespace fermata

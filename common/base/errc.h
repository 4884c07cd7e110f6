// Fermata's own error codes, beside the POSIX ones of std::errc.
//
// An operating error is a value of std::error_code. POSIX errors (ENOENT, ENOSPC, ...) are
// std::errc in the generic category; what POSIX has no word for is an Errc. Each Errc maps to one
// std::errc by default_error_condition(), so to_errno() has one answer for every code.
#pragma once

#include <cstdint>
#include <system_error>

namespace fermata {

/// Numbers travel on the wire (schema/): never reuse or renumber one.
enum class Errc : std::uint16_t {
  kBadMessage = 1,         ///< malformed frame, message or record             -> EBADMSG
  kHashMismatch = 2,       ///< bytes do not match the id they were sent under -> EIO
  kCorruptChunk = 3,       ///< a stored chunk fails its hash                  -> EIO
  kCorruptLog = 4,         ///< damage in the log that is not a torn tail      -> EIO
  kCorruptStore = 5,       ///< damage in the metadata store                   -> EIO
  kStaleEpoch = 6,         ///< fenced: the session's epoch is over            -> ESTALE
  kStaleBase = 7,          ///< a commit's base version is not the newest      -> ESTALE
  kSessionExpired = 8,     ///< the session is unknown or over                 -> ESTALE
  kNotPrimary = 9,         ///< ask the primary (a hint may come along)        -> EAGAIN
  kNoQuorum = 10,          ///< no majority could be reached                   -> ETIMEDOUT
  kDeadlineExceeded = 11,  ///<                                                -> ETIMEDOUT
  kConnectionLost = 12,    ///< outcome unknown: retry with the same sequence  -> ETIMEDOUT
  kVersionMismatch = 13,   ///< protocol or on-disk format of another version  -> EPROTONOSUPPORT
  kWrongCluster = 14,      ///< peer or directory belongs to another cluster   -> EPERM
  kRetry = 15,             ///< the state moved under the request: run it anew -> EAGAIN
  kShuttingDown = 16,      ///<                                                -> ESHUTDOWN
  kMissingChunk = 17,      ///< a commit names a chunk that no majority has    -> EIO
  kTooLarge = 18,          ///< a size over its limit                          -> EMSGSIZE
  kTruncatedHistory = 19,  ///< that version or log index was compacted away   -> ESTALE
  kUnsupported = 20,       ///< the peer does not know this request            -> EOPNOTSUPP
};

const std::error_category& fermata_category() noexcept;
inline std::error_code make_error_code(Errc e) noexcept {
  return {static_cast<int>(e), fermata_category()};
}
inline std::error_code make_error_code(std::errc e) noexcept { return std::make_error_code(e); }

/// The code for a positive errno value.
std::error_code from_errno(int value) noexcept;
/// The code for the calling thread's errno.
std::error_code last_errno() noexcept;

/// The one errno an application sees for `code`; 0 for no error, EIO for what nothing maps.
int to_errno(const std::error_code& code) noexcept;

/// Wire form: 0 is success, below 4096 an errno, above it 4096 + Errc.
std::uint32_t to_wire(const std::error_code& code) noexcept;
/// Unknown numbers become EIO.
std::error_code from_wire(std::uint32_t value) noexcept;

}  // namespace fermata

template <>
struct std::is_error_code_enum<fermata::Errc> : std::true_type {};

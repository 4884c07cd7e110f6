// Strong types for the numbers that name things. Two different ids never compare or convert.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

namespace fermata {

template <class Tag, class Rep = std::uint64_t>
class Id {
 public:
  constexpr Id() = default;
  constexpr explicit Id(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  constexpr explicit operator bool() const { return value_ != 0; }
  constexpr auto operator<=>(const Id&) const = default;
  constexpr Id next() const { return Id(static_cast<Rep>(value_ + 1)); }
  constexpr Id prev() const { return Id(static_cast<Rep>(value_ - 1)); }

 private:
  Rep value_ = 0;  // 0 is "none" for every id
};

using InodeId = Id<struct InodeTag>;      ///< st_ino; the volume in its top 16 bits; never reused
using Version = Id<struct VersionTag>;    ///< of a file's content: the log index that committed it
using Term = Id<struct TermTag>;          ///< of the Raft group, from 1
using LogIndex = Id<struct IndexTag>;     ///< from 1
using SessionId = Id<struct SessionTag>;  ///< the log index that registered it
using Epoch = Id<struct EpochTag>;        ///< of a session, from 1: the fencing token
using Sequence = Id<struct SequenceTag>;  ///< of a session's mutations, from 1
using Cookie = Id<struct CookieTag>;      ///< a place in a directory, stable; 0 is its start
using NodeId = Id<struct NodeTag, std::uint32_t>;    ///< a storage node, from 1
using GroupId = Id<struct GroupTag, std::uint32_t>;  ///< a replica group, from 1
using VolumeId =
    Id<struct VolumeTag, std::uint16_t>;  ///< 0 is the first volume (top bits of InodeId)
/// Orders what the primary said to one session: the term in the top 24 bits, a count below.
using Stamp = Id<struct StampTag>;

inline constexpr InodeId kRootInode{1};
inline constexpr GroupId kFirstGroup{1};
inline constexpr int kStampCountBits = 40;
constexpr Stamp make_stamp(Term term, std::uint64_t count) {
  return Stamp((term.value() << kStampCountBits) | count);
}
constexpr Term term_of(Stamp stamp) { return Term(stamp.value() >> kStampCountBits); }

/// A chunk's name: the algorithm and the digest of its bytes.
struct ChunkId {
  enum Algorithm : std::uint8_t { kNone = 0, kSha256 = 1 };
  std::uint8_t algorithm = kNone;
  std::array<std::uint8_t, 32> digest{};

  constexpr auto operator<=>(const ChunkId&) const = default;
  explicit operator bool() const { return algorithm != kNone; }  ///< false: a hole
  static constexpr std::size_t kSizeBytes = 33;                  ///< algorithm, then digest
  /// 64 lower-case hexadecimal digits of the digest.
  std::string hex() const;
};

/// A cluster's name for itself, made once by the first start; 16 random bytes.
struct ClusterId {
  std::array<std::uint8_t, 16> bytes{};
  constexpr auto operator<=>(const ClusterId&) const = default;
  explicit operator bool() const { return *this != ClusterId{}; }
  std::string hex() const;
};

std::string to_hex(const std::uint8_t* data, std::size_t size);

}  // namespace fermata

template <class Tag, class Rep>
struct std::hash<fermata::Id<Tag, Rep>> {
  std::size_t operator()(const fermata::Id<Tag, Rep>& id) const noexcept {
    std::uint64_t x = id.value();  // SplitMix64's finalizer: ids are dense
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
  }
};
template <>
struct std::hash<fermata::ChunkId> {
  std::size_t operator()(const fermata::ChunkId& id) const noexcept {
    std::size_t h;
    std::memcpy(&h, id.digest.data(), sizeof h);
    return h;
  }
};

// Assertions that stay on in release. A failed one logs where and what, and aborts: a broken
// invariant must not reach a disk. Never assert on bytes that came from outside.
#pragma once

namespace fermata {
[[noreturn]] void assert_failed(const char* condition, const char* file, int line) noexcept;
}

#define FM_ASSERT(condition) \
  (static_cast<bool>(condition) ? void() : ::fermata::assert_failed(#condition, __FILE__, __LINE__))

#ifdef NDEBUG
#define FM_DASSERT(condition) static_cast<void>(sizeof(static_cast<bool>(condition)))
#else
#define FM_DASSERT(condition) FM_ASSERT(condition)
#endif

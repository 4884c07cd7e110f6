// Result<T>: a value or a std::error_code. Task<T>: a coroutine that ends with one.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/system/result.hpp>
#include <system_error>
#include <utility>

#include "common/base/errc.h"

namespace fermata {

/// std::expected's place while g++ 12 is supported. Converts from T, Errc, std::errc and
/// std::error_code. A default-constructed one holds a default T (co_spawn needs that).
template <class T>
struct [[nodiscard]] Result : boost::system::result<T, std::error_code> {
  using boost::system::result<T, std::error_code>::result;
  using Base = boost::system::result<T, std::error_code>;
  Result() = default;
  Result(Base base) : Base(std::move(base)) {}
  Result(Errc e) : Base(boost::system::in_place_error, make_error_code(e)) {}
  Result(std::errc e) : Base(boost::system::in_place_error, std::make_error_code(e)) {}
  Result(std::error_code e) : Base(boost::system::in_place_error, e) {}
};

using Status = Result<void>;

template <class T>
using Task = boost::asio::awaitable<Result<T>>;

}  // namespace fermata

#define FM_CONCAT2(a, b) a##b
#define FM_CONCAT(a, b) FM_CONCAT2(a, b)

/// FM_TRY(auto x, expression): x is the value, or the function returns the error.
#define FM_TRY(declaration, ...) \
  FM_TRY_IMPL(FM_CONCAT(fm_result_, __COUNTER__), return, declaration, __VA_ARGS__)
/// The same inside a coroutine.
#define FM_CO_TRY(declaration, ...) \
  FM_TRY_IMPL(FM_CONCAT(fm_result_, __COUNTER__), co_return, declaration, __VA_ARGS__)
#define FM_TRY_IMPL(name, leave, declaration, ...) \
  auto name = (__VA_ARGS__);                       \
  if (!name) leave name.error();                   \
  declaration = std::move(*name)
/// For a Status: leaves with the error, or goes on.
#define FM_CHECK(...)                                                         \
  do {                                                                        \
    if (auto fm_status = (__VA_ARGS__); !fm_status) return fm_status.error(); \
  } while (false)
#define FM_CO_CHECK(...)                                                         \
  do {                                                                           \
    if (auto fm_status = (__VA_ARGS__); !fm_status) co_return fm_status.error(); \
  } while (false)

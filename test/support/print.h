// Teaches Catch2 to print our results and ids.
#pragma once

#include <catch2/catch_tostring.hpp>

#include "common/base/ids.h"
#include "common/base/result.h"

namespace Catch {

template <class T>
struct StringMaker<fermata::Result<T>> {
  static std::string convert(const fermata::Result<T>& result) {
    return result ? "value" : "error: " + result.error().message();
  }
};
template <class Tag, class Rep>
struct StringMaker<fermata::Id<Tag, Rep>> {
  static std::string convert(const fermata::Id<Tag, Rep>& id) { return std::to_string(id.value()); }
};
template <>
struct StringMaker<std::error_code> {
  static std::string convert(const std::error_code& code) {
    return std::string(code.category().name()) + ": " + code.message();
  }
};

}  // namespace Catch

// Numbers as unsigned integers of the same order.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace tfkd_fast {

template <typename T>
using SortKey = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;  // T is float or double

// Ascending with `value`: -0 equals 0, and every NaN is the same and comes after infinity.
template <typename T>
SortKey<T> sort_key(T value) {
  using Key = SortKey<T>;
  constexpr Key kSign = Key(1) << (std::numeric_limits<Key>::digits - 1);
  if (std::isnan(value)) return std::numeric_limits<Key>::max();
  const Key bits = std::bit_cast<Key>(value == T(0) ? T(0) : value);
  return bits & kSign ? ~bits : bits | kSign;
}

}  // namespace tfkd_fast

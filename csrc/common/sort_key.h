// Numbers as unsigned integers of the same order, on every device.
#pragma once

#include "host_and_device.h"

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace tfkd_fast {

template <typename T>
using SortKey = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;  // T is float or double

// Ascending with `value`: -0 equals 0, and every NaN is the same and comes after infinity. Never 0.
template <typename T>
TFKD_HOST_AND_DEVICE SortKey<T> sort_key(T value) {
  using Key = SortKey<T>;
  constexpr Key kSign = Key(1) << (sizeof(Key) * 8 - 1);
  if (value != value) return ~Key(0);
  const T number = value == T(0) ? T(0) : value;
  Key bits;
  memcpy(&bits, &number, sizeof(bits));  // std::bit_cast is for the host alone
  return bits & kSign ? ~bits : bits | kSign;
}

}  // namespace tfkd_fast

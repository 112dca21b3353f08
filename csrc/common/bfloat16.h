// bfloat16 as the upper half of a float, by operations that become vectors.
#pragma once

#include "vector_widths.h"

#include <bit>
#include <cstdint>

namespace tfkd_fast {

TFKD_INLINE float widened(uint16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

// The nearest bfloat16, of two equally near ones the even one.
TFKD_INLINE uint16_t nearest_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value == value ? nearest : 0x7fc0);
}

// The larger one, and NaN where there is one.
TFKD_INLINE float largest(float a, float b) {
  const float larger = a > b ? a : b;
  return a == a ? larger : a;
}

}  // namespace tfkd_fast

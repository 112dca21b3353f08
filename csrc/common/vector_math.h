// Vectors of numbers, with exp and log.
#pragma once

#include "vector_widths.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace tfkd_fast {

// 64 bytes of numbers: one register of AVX-512, two of AVX2. The compiler's vectors, so + - * / < == and ?: go by lane.
using Floats = float __attribute__((vector_size(64)));
using Doubles = double __attribute__((vector_size(64)));

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = Floats;
  using Lane = int32_t;
  using Index = Lane __attribute__((vector_size(64)));
  static constexpr int64_t kLanes = 16;
};
template <>
struct VectorOf<double> {
  using Type = Doubles;
  using Lane = int64_t;
  using Index = Lane __attribute__((vector_size(64)));
  static constexpr int64_t kLanes = 8;
};

template <typename T>
using Vector = typename VectorOf<T>::Type;

template <typename T>
TFKD_INLINE Vector<T> load(const T* from) {
  Vector<T> vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <typename T>
TFKD_INLINE void store(const Vector<T>& vector, T* to) {
  std::memcpy(to, &vector, sizeof(vector));
}

template <int kStep, size_t... kLanes>
TFKD_INLINE auto rotated(const auto& vector, std::index_sequence<kLanes...>) {
  return __builtin_shufflevector(vector, vector, ((kLanes + kStep) % sizeof...(kLanes))...);
}

// In pairs: the order is fixed.
template <typename T, typename Combine>
TFKD_INLINE T over_lanes(Vector<T> vector, Combine combine) {
  constexpr auto kLanes = std::make_index_sequence<VectorOf<T>::kLanes>();
  if constexpr (kLanes.size() == 16) vector = combine(vector, rotated<8>(vector, kLanes));
  vector = combine(vector, rotated<4>(vector, kLanes));
  vector = combine(vector, rotated<2>(vector, kLanes));
  vector = combine(vector, rotated<1>(vector, kLanes));
  return vector[0];
}

template <typename T>
TFKD_INLINE T sum_over_lanes(Vector<T> vector) {
  return over_lanes<T>(vector, [](const auto& a, const auto& b) __attribute__((always_inline)) { return a + b; });
}

// The integers beside a float, or beside a vector of floats.
TFKD_INLINE int32_t to_bits(float x) { return std::bit_cast<int32_t>(x); }
TFKD_INLINE float from_bits(int32_t bits) { return std::bit_cast<float>(bits); }
TFKD_INLINE float to_float(int32_t n) { return static_cast<float>(n); }
TFKD_INLINE VectorOf<float>::Index to_bits(const Floats& x) { return reinterpret_cast<VectorOf<float>::Index>(x); }
TFKD_INLINE Floats from_bits(const VectorOf<float>::Index& bits) { return reinterpret_cast<Floats>(bits); }
TFKD_INLINE Floats to_float(const VectorOf<float>::Index& n) { return __builtin_convertvector(n, Floats); }

// exp(x) for x <= 0, and NaN; of a float or of Floats: 2^n * e^r with |r| <= ln(2)/2, e^r by the polynomial whose
// largest relative error is the least, 3e-9; float32 makes it 2e-7. Without branches, so that loops over it become
// vectors, and with the terms in pairs, so that they do not wait for each other. Where the result would be subnormal it
// is 0.
template <typename F>
TFKD_INLINE F exp_nonpositive(const F& x) {
  constexpr float kLowest = -87.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const F shifted = x * 1.44269504f + kRound;
  const F n = shifted - kRound;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  const F square = r * r;
  const F low = 0.166665204f * r + 0.4999999343f;
  const F high = 0.001381454011f * square + (0.008368745111f * r + 0.04166839079f);
  const F series = (high * square + low) * square + (r + 1.0f);
  const auto exponent = to_bits(shifted + 127.0f) << 23;
  return x < kLowest ? 0.0f : series * from_bits(exponent);
}
TFKD_INLINE double exp_nonpositive(double x) { return std::exp(x); }
TFKD_INLINE Doubles exp_nonpositive(const Doubles& x) {
  Doubles result;
  for (int64_t i = 0; i < VectorOf<double>::kLanes; ++i) result[i] = std::exp(x[i]);
  return result;
}

// log(x) for normal x > 0, likewise: x = 2^n * m with m in [sqrt(1/2), sqrt(2)), log(m) = 2 atanh((m-1)/(m+1)) by its
// series. NaN for negative x and NaN.
template <typename F>
TFKD_INLINE F log_positive(const F& x) {
  constexpr int32_t kRootHalf = 0x3f3504f3;
  const auto offset = (to_bits(x) & 0x7fffffff) - kRootHalf;  // without its sign, it cannot overflow
  const F n = to_float(offset >> 23);
  const F m = from_bits((offset & 0x007fffff) + kRootHalf);
  const F s = (m - 1.0f) / (m + 1.0f);  // |s| <= 0.172
  const F square = s * s;
  F series = 2.0f / 9 * square + 2.0f / 7;
  series = series * square + 2.0f / 5;
  series = series * square + 2.0f / 3;
  const F log_m = 2.0f * s + s * square * series;
  return x >= 0.0f ? (n * -2.12194440e-4f + log_m) + n * 0.693359375f : std::numeric_limits<float>::quiet_NaN();
}
TFKD_INLINE double log_positive(double x) { return std::log(x); }
TFKD_INLINE Doubles log_positive(const Doubles& x) {
  Doubles result;
  for (int64_t i = 0; i < VectorOf<double>::kLanes; ++i) result[i] = std::log(x[i]);
  return result;
}

}  // namespace tfkd_fast

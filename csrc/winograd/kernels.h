// The parts of a Winograd convolution for one thread: transforms into panels, products of panels, transforms back. They
// need AVX512-BF16; `TFKD_HAS_BF16_PRODUCTS` says whether the compiler can be asked for it.
//
// Two vectors of 16 numbers, `even` and `odd`, become one of 16 dwords, two bfloat16 each, of which a product sums both.
// A panel is a matrix of dwords (pairs of the summed index, 32 columns).
#pragma once

#include "../common/arguments.h"

#include <array>
#include <utility>

#if defined(__x86_64__) && defined(__GNUC__)
#define TFKD_HAS_BF16_PRODUCTS 1
#else
#define TFKD_HAS_BF16_PRODUCTS 0
#endif

#if TFKD_HAS_BF16_PRODUCTS
#include <immintrin.h>

// No lambdas in such functions: they would be compiled without these instructions.
#define TFKD_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define TFKD_BF16_INLINE inline __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

namespace tfkd_fast {
namespace winograd {

constexpr int64_t kLanes = 16;
constexpr int64_t kGroup = 2 * kLanes;  // channels of a bfloat16 vector, and columns of a panel
constexpr int64_t kPositions = 16;      // of a transformed tile: 4x4

constexpr int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t rounded_up(int64_t a, int64_t b) { return divided(a, b) * b; }

using Dwords = int32_t __attribute__((vector_size(64)));

struct Pair {
  __m512 even, odd;
};

TFKD_BF16_INLINE Pair operator+(const Pair& a, const Pair& b) {
  return {a.even + b.even, a.odd + b.odd};
}
TFKD_BF16_INLINE Pair operator-(const Pair& a, const Pair& b) {
  return {a.even - b.even, a.odd - b.odd};
}
TFKD_BF16_INLINE Pair half(const Pair& a) {
  return {0.5f * a.even, 0.5f * a.odd};
}
TFKD_BF16_INLINE Pair zero_pair() { return {_mm512_setzero_ps(), _mm512_setzero_ps()}; }

// How many of `count` values from `first` on a vector of `most` has, as a mask.
TFKD_BF16_INLINE uint32_t first_bits(int64_t count, int64_t most) {
  if (count <= 0) return 0;
  return count >= most ? static_cast<uint32_t>((uint64_t{1} << most) - 1) : (uint32_t{1} << count) - 1;
}

// Rounded; the lanes of `even`, then those of `odd`.
TFKD_BF16_INLINE __m512i one_after_the_other(const Pair& p) { return (__m512i)_mm512_cvtne2ps_pbh(p.odd, p.even); }

// Rounded; lane i of both in dword i.
TFKD_BF16_INLINE __m512i interleaved(const Pair& p) {
  const Dwords even = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, odd = even + 16;
  return _mm512_maskz_permutexvar_epi16(~__mmask32{0}, (__m512i)(even | odd << 16), one_after_the_other(p));
}

// 32 values: those at even indices and those at odd ones.
TFKD_BF16_INLINE Pair load_alternating(const BFloat16* from, uint32_t mask) {
  const auto values = (Dwords)_mm512_maskz_loadu_epi16(mask, from);
  return {(__m512)(values << 16), (__m512)(values & ~0xffff)};
}
TFKD_BF16_INLINE Pair load_alternating(const float* from, uint32_t mask) {
  const __m512 low = _mm512_maskz_loadu_ps(mask & 0xffff, from);
  const __m512 high = _mm512_maskz_loadu_ps(mask >> 16, from + kLanes);
  const Dwords even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  return {_mm512_permutex2var_ps(low, (__m512i)even, high), _mm512_permutex2var_ps(low, (__m512i)(even + 1), high)};
}

// 16 values.
TFKD_BF16_INLINE __m512 load_lanes(const BFloat16* from, uint32_t mask) {
  return (__m512)((Dwords)_mm512_maskz_cvtepu16_epi32(~__mmask16{0}, _mm256_maskz_loadu_epi16(mask, from)) << 16);
}
TFKD_BF16_INLINE __m512 load_lanes(const float* from, uint32_t mask) { return _mm512_maskz_loadu_ps(mask, from); }

TFKD_BF16_INLINE void store_lanes(const __m512& values, BFloat16* to, uint32_t mask) {
  _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(values));
}
TFKD_BF16_INLINE void store_lanes(const __m512& values, float* to, uint32_t mask) {
  _mm512_mask_storeu_ps(to, mask, values);
}

// The transforms along one axis, of values that lie `kStep` apart. V is numbers (Pair) or a single vector.

// B^T x
template <int kStep>
TFKD_BF16_INLINE void transform_inputs(Pair* x) {
  const Pair x0 = x[0], x1 = x[kStep], x2 = x[2 * kStep], x3 = x[3 * kStep];
  x[0] = x0 - x2;
  x[kStep] = x1 + x2;
  x[2 * kStep] = x2 - x1;
  x[3 * kStep] = x1 - x3;
}

// B^T x B of a tile 4x4.
TFKD_BF16_INLINE void transform_inputs_of_tile(Pair* x) {
  transform_inputs<4>(x), transform_inputs<4>(x + 1), transform_inputs<4>(x + 2), transform_inputs<4>(x + 3);
  transform_inputs<1>(x), transform_inputs<1>(x + 4), transform_inputs<1>(x + 8), transform_inputs<1>(x + 12);
}

// A y A^T: 2x2 -> 4x4.
template <int kFrom, int kTo>
TFKD_BF16_INLINE void spread_outputs(const Pair* y, Pair* to) {
  const Pair y0 = y[0], y1 = y[kFrom];
  to[0] = y0;
  to[kTo] = y0 + y1;
  to[2 * kTo] = y0 - y1;
  to[3 * kTo] = zero_pair() - y1;
}
TFKD_BF16_INLINE void spread_outputs_of_tile(const Pair* y, Pair* to) {
  Pair rows[8];  // 4x2
  spread_outputs<2, 2>(y, rows), spread_outputs<2, 2>(y + 1, rows + 1);
  spread_outputs<1, 1>(rows, to), spread_outputs<1, 1>(rows + 2, to + 4);
  spread_outputs<1, 1>(rows + 4, to + 8), spread_outputs<1, 1>(rows + 6, to + 12);
}

// G w G^T: 3x3 -> 4x4.
template <int kFrom, int kTo>
TFKD_BF16_INLINE void spread_weights(const Pair* w, Pair* to) {
  const Pair w0 = w[0], w1 = w[kFrom], w2 = w[2 * kFrom];
  const Pair outer = half(w0 + w2), inner = half(w1);
  to[0] = w0;
  to[kTo] = outer + inner;
  to[2 * kTo] = outer - inner;
  to[3 * kTo] = w2;
}
TFKD_BF16_INLINE void spread_weights_of_tile(const Pair* w, Pair* to) {
  Pair rows[12];  // 4x3
  spread_weights<3, 3>(w, rows), spread_weights<3, 3>(w + 1, rows + 1), spread_weights<3, 3>(w + 2, rows + 2);
  spread_weights<1, 1>(rows, to), spread_weights<1, 1>(rows + 3, to + 4);
  spread_weights<1, 1>(rows + 6, to + 8), spread_weights<1, 1>(rows + 9, to + 12);
}

// Where the tiles of maps (B,channels,H,W), channels last, lie: 2x2 outputs, and the 4x4 inputs around them.
struct Tiles {
  int64_t batch, height, width;

  int64_t rows() const { return divided(height, 2); }
  int64_t columns() const { return divided(width, 2); }
  int64_t count() const { return batch * rows() * columns(); }
};

// The pixels under a tile; `outside` for those that are none.
template <int kSize, typename scalar>
struct Pixels {
  scalar* at[kSize * kSize];

  Pixels(const Tiles& tiles, int64_t tile, scalar* values, int64_t channels, scalar* outside) {
    constexpr int64_t kMargin = (kSize - 2) / 2;
    const int64_t column = tile % tiles.columns(), line = tile / tiles.columns();
    const int64_t row = line % tiles.rows(), b = line / tiles.rows();
    for (int64_t r = 0; r < kSize; ++r) {
      for (int64_t s = 0; s < kSize; ++s) {
        const int64_t i = 2 * row + r - kMargin, j = 2 * column + s - kMargin;
        const bool inside = b < tiles.batch && i >= 0 && i < tiles.height && j >= 0 && j < tiles.width;
        at[r * kSize + s] = inside ? values + ((b * tiles.height + i) * tiles.width + j) * channels : outside;
      }
    }
  }
};

// Transformed inputs of a block of tiles, (position, tile, channel) with channels rounded up and in the order of
// `one_after_the_other`. The padding keeps the positions of a tile out of each other's way in the cache.
struct InputBlock {
  BFloat16* values;
  int64_t channels;  // rounded up
  int64_t stride;    // of positions

  static int64_t stride_of(int64_t tiles, int64_t channels) { return tiles * channels + kGroup; }
};

TFKD_BF16 inline void transform_input_block(const Tiles& tiles, int64_t first, int64_t count, const BFloat16* x,
                                            int64_t channels, const BFloat16* zeros, const InputBlock& to) {
  for (int64_t t = 0; t < count; ++t) {
    const Pixels<4, const BFloat16> pixels(tiles, first + t, x, channels, zeros);
    BFloat16* row = to.values + t * to.channels;
    for (int64_t c = 0; c < channels; c += kGroup) {
      const uint32_t mask = first_bits(channels - c, kGroup);
      Pair tile[kPositions];
      for (int64_t p = 0; p < kPositions; ++p) tile[p] = load_alternating(pixels.at[p] + c, mask);
      transform_inputs_of_tile(tile);
      for (int64_t p = 0; p < kPositions; ++p) {
        _mm512_storeu_si512(row + p * to.stride + c, one_after_the_other(tile[p]));
      }
    }
  }
}

// The channel of a group that is the even one of the pair in dword d of `one_after_the_other`; the odd one is 2 further.
constexpr int64_t even_channel(int64_t d) { return d < 8 ? 4 * d : 4 * (d - 8) + 1; }

// Transposes 16x16 dwords: four times, rows i and i + 8 are riffled into rows 2i and 2i + 1.
TFKD_BF16_INLINE void transpose(__m512i* rows, int32_t* to, int64_t stride) {
  const Dwords low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  __m512i riffled[kLanes];
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      riffled[2 * i] = _mm512_permutex2var_epi32(rows[i], (__m512i)low, rows[i + 8]);
      riffled[2 * i + 1] = _mm512_permutex2var_epi32(rows[i], (__m512i)(low + 8), rows[i + 8]);
    }
    std::copy_n(riffled, kLanes, rows);
  }
  for (int i = 0; i < kLanes; ++i) _mm512_storeu_si512(to + i * stride, rows[i]);
}

// A weight (K,3,3,C), float32 or bfloat16.
template <typename scalar>
struct Weight {
  scalar* values;
  int64_t outputs, inputs;

  scalar* at(int64_t output, int64_t tap) const { return values + (output * 9 + tap) * inputs; }
};

// Transformed weights: panels (columns in 32s, position, pair, column).
struct WeightPanels {
  int32_t* values;
  int64_t summed, columns;  // channels, rounded up

  int32_t* at(int64_t panel, int64_t position) const {
    return values + (panel * kPositions + position) * (summed / 2) * kGroup;
  }
};

// Of a group of inputs, for the outputs of a panel: sums over inputs.
template <typename scalar>
TFKD_BF16 void transform_weights(const Weight<const scalar>& weight, int64_t panel, int64_t group, const WeightPanels& to) {
  const int64_t c = group * kGroup;
  const uint32_t mask = first_bits(weight.inputs - c, kGroup);
  alignas(64) __m512i rows[kPositions][kLanes];
  for (int64_t side = 0; side < 2; ++side) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t k = panel * kGroup + side * kLanes + lane;
      Pair taps[9], transformed[kPositions];
      for (int64_t tap = 0; tap < 9; ++tap) {
        taps[tap] = k < weight.outputs ? load_alternating(weight.at(k, tap) + c, mask) : zero_pair();
      }
      spread_weights_of_tile(taps, transformed);
      for (int64_t p = 0; p < kPositions; ++p) rows[p][lane] = one_after_the_other(transformed[p]);
    }
    for (int64_t p = 0; p < kPositions; ++p) {
      transpose(rows[p], to.at(panel, p) + group * kLanes * kGroup + side * kLanes, kGroup);
    }
  }
}

// Of a group of outputs, for the inputs of a panel, the kernel turned around: sums over outputs.
template <typename scalar>
TFKD_BF16 void transform_turned_weights(const Weight<const scalar>& weight, int64_t panel, int64_t group,
                                        const WeightPanels& to) {
  for (int64_t d = 0; d < kLanes; ++d) {
    const int64_t even = group * kGroup + even_channel(d), odd = even + 2;
    for (int64_t side = 0; side < 2; ++side) {
      const int64_t c = panel * kGroup + side * kLanes;
      const uint32_t mask = first_bits(weight.inputs - c, kLanes);
      const uint32_t even_mask = even < weight.outputs ? mask : 0, odd_mask = odd < weight.outputs ? mask : 0;
      Pair taps[9], transformed[kPositions];
      for (int64_t tap = 0; tap < 9; ++tap) {
        taps[8 - tap] = {even_mask ? load_lanes(weight.at(even, tap) + c, even_mask) : _mm512_setzero_ps(),
                         odd_mask ? load_lanes(weight.at(odd, tap) + c, odd_mask) : _mm512_setzero_ps()};
      }
      spread_weights_of_tile(taps, transformed);
      for (int64_t p = 0; p < kPositions; ++p) {
        _mm512_storeu_si512(to.at(panel, p) + (group * kLanes + d) * kGroup + side * kLanes, interleaved(transformed[p]));
      }
    }
  }
}

// The product of `kRows` rows and a panel of which it takes 32 columns. The dwords of a row are `kStep` apart.
template <int kRows, int kStep, bool kAdd, size_t... kRow>
TFKD_BF16_INLINE void multiply_rows(int64_t pairs, const int32_t* rows, int64_t row_stride, const int32_t* panel,
                                    float* sums, int64_t sum_stride, std::index_sequence<kRow...>) {
  __m512 low[kRows], high[kRows];
  ((low[kRow] = kAdd ? _mm512_loadu_ps(sums + kRow * sum_stride) : _mm512_setzero_ps()), ...);
  ((high[kRow] = kAdd ? _mm512_loadu_ps(sums + kRow * sum_stride + kLanes) : _mm512_setzero_ps()), ...);
  for (int64_t i = 0; i < pairs; ++i) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(panel + i * kGroup);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(panel + i * kGroup + kLanes);
    const int32_t* of_rows = rows + i * kStep;
    __m512bh value;
    ((value = (__m512bh)_mm512_set1_epi32(of_rows[kRow * row_stride]),
      low[kRow] = _mm512_dpbf16_ps(low[kRow], value, left), high[kRow] = _mm512_dpbf16_ps(high[kRow], value, right)),
     ...);
  }
  ((_mm512_storeu_ps(sums + kRow * sum_stride, low[kRow])), ...);
  ((_mm512_storeu_ps(sums + kRow * sum_stride + kLanes, high[kRow])), ...);
}

constexpr int64_t kRowsAtOnce = 12;  // 24 sums: all registers but those for the factors

template <int kRows>
TFKD_BF16 inline void multiply(int64_t pairs, const int32_t* rows, int64_t row_stride, const int32_t* panel, float* sums) {
  multiply_rows<kRows, 1, false>(pairs, rows, row_stride, panel, sums, kGroup, std::make_index_sequence<kRows>());
}

using Multiply = void (*)(int64_t, const int32_t*, int64_t, const int32_t*, float*);
template <size_t... kRows>
constexpr std::array<Multiply, sizeof...(kRows)> multiply_table(std::index_sequence<kRows...>) {
  return {multiply<kRows + 1>...};
}
constexpr auto kMultiply = multiply_table(std::make_index_sequence<kRowsAtOnce>());

// Products of a block of tiles with a panel, (position, tile, column).
struct Products {
  float* values;
  static int64_t stride_of(int64_t tiles) { return tiles * kGroup + kGroup; }
};

TFKD_BF16 inline void multiply_block(int64_t tiles, const InputBlock& inputs, const WeightPanels& weights, int64_t panel,
                                     float* products) {
  const int64_t pairs = inputs.channels / 2;
  for (int64_t p = 0; p < kPositions; ++p) {
    const int32_t* rows = reinterpret_cast<const int32_t*>(inputs.values + p * inputs.stride);
    float* sums = products + p * Products::stride_of(tiles);
    for (int64_t t = 0; t < tiles; t += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, tiles - t);
      kMultiply[count - 1](pairs, rows + t * pairs, pairs, weights.at(panel, p), sums + t * kGroup);
    }
  }
}

// A^T m: 4 -> 2
template <int kFrom, int kTo>
TFKD_BF16_INLINE void gather_outputs(const Pair* m, Pair* to) {
  const Pair m0 = m[0], m1 = m[kFrom], m2 = m[2 * kFrom], m3 = m[3 * kFrom];
  to[0] = m0 + m1 + m2;
  to[kTo] = m1 - m2 - m3;
}

// Sums of products of a block of tiles, transformed back, with bias, into y.
TFKD_BF16 inline void write_outputs(const Tiles& tiles, int64_t first, int64_t count, const float* products,
                                    int64_t panel, const float* bias, BFloat16* y, int64_t channels) {
  const int64_t k = panel * kGroup, stride = Products::stride_of(count);
  const uint32_t mask = first_bits(channels - k, kGroup);
  const Pair offset = {_mm512_loadu_ps(bias + k), _mm512_loadu_ps(bias + k + kLanes)};
  for (int64_t t = 0; t < count; ++t) {
    const Pixels<2, BFloat16> pixels(tiles, first + t, y, channels, nullptr);
    Pair m[kPositions], rows[8], outputs[4];
    for (int64_t p = 0; p < kPositions; ++p) {
      const float* from = products + p * stride + t * kGroup;
      m[p] = {_mm512_loadu_ps(from), _mm512_loadu_ps(from + kLanes)};
    }
    gather_outputs<4, 4>(m, rows), gather_outputs<4, 4>(m + 1, rows + 1);
    gather_outputs<4, 4>(m + 2, rows + 2), gather_outputs<4, 4>(m + 3, rows + 3);
    gather_outputs<1, 1>(rows, outputs), gather_outputs<1, 1>(rows + 4, outputs + 2);
    for (int64_t i = 0; i < 4; ++i) {
      if (pixels.at[i]) _mm512_mask_storeu_epi16(pixels.at[i] + k, mask, one_after_the_other(outputs[i] + offset));
    }
  }
}

// For the gradient of the weights: panels (position, channels in 32s, pair of tiles, channel).
struct TilePanels {
  int32_t* values;
  int64_t pairs;   // of tiles
  int64_t panels;  // of channels
  int64_t stride;  // of panels

  static int64_t stride_of(int64_t pairs) { return pairs * kGroup + kLanes; }
  int32_t* at(int64_t position, int64_t panel) const { return values + (position * panels + panel) * stride; }
};

// The tiles 2 * pair and 2 * pair + 1 after `first`, transformed: kSize 4, inputs; 2, gradients of outputs.
template <int kSize>
TFKD_BF16 void transform_pairs(const Tiles& tiles, int64_t first, int64_t begin, int64_t end, const BFloat16* values,
                               int64_t channels, const BFloat16* zeros, const TilePanels& to) {
  for (int64_t pair = begin; pair < end; ++pair) {
    const Pixels<kSize, const BFloat16> even(tiles, first + 2 * pair, values, channels, zeros);
    const Pixels<kSize, const BFloat16> odd(tiles, first + 2 * pair + 1, values, channels, zeros);
    for (int64_t c = 0; c < to.panels * kGroup; c += kLanes) {
      const uint32_t mask = first_bits(channels - c, kLanes);
      Pair pixels[kSize * kSize], transformed[kPositions];
      for (int64_t i = 0; i < kSize * kSize; ++i) {
        pixels[i] = {load_lanes(even.at[i] + c, mask), load_lanes(odd.at[i] + c, mask)};
      }
      if constexpr (kSize == 4) {
        transform_inputs_of_tile(pixels);
        std::copy_n(pixels, kPositions, transformed);
      } else {
        spread_outputs_of_tile(pixels, transformed);
      }
      int32_t* row = to.at(0, c / kGroup) + pair * kGroup + c % kGroup;
      for (int64_t p = 0; p < kPositions; ++p) {
        _mm512_storeu_si512(row + p * to.panels * to.stride, interleaved(transformed[p]));
      }
    }
  }
}

// Adds the products of 32 outputs and all inputs at a position to sums (position, output, input).
template <bool kAdd>
TFKD_BF16 void add_products(const TilePanels& outputs, const TilePanels& inputs, int64_t position, int64_t panel,
                            float* sums) {
  constexpr int64_t kRows = 8;
  const int64_t columns = inputs.panels * kGroup;
  float* of_panel = sums + (position * outputs.panels + panel) * kGroup * columns;
  for (int64_t c = 0; c < inputs.panels; ++c) {
    for (int64_t k = 0; k < kGroup; k += kRows) {
      multiply_rows<kRows, kGroup, kAdd>(outputs.pairs, outputs.at(position, panel) + k, 1, inputs.at(position, c),
                                         of_panel + k * columns + c * kGroup, columns,
                                         std::make_index_sequence<kRows>());
    }
  }
}

// G^T u: 4 -> 3
template <int kFrom, int kTo>
TFKD_BF16_INLINE void gather_weights(const Pair* u, Pair* to) {
  const Pair u0 = u[0], u1 = u[kFrom], u2 = u[2 * kFrom], u3 = u[3 * kFrom];
  const Pair sum = half(u1 + u2);
  to[0] = u0 + sum;
  to[kTo] = half(u1 - u2);
  to[2 * kTo] = sum + u3;
}

// Of an output: sums (position, output, input), transformed back, into the gradient of the weights.
template <typename scalar>
TFKD_BF16 void write_weights(const float* sums, int64_t position_stride, int64_t k, int64_t columns,
                             const Weight<scalar>& to) {
  for (int64_t c = 0; c < to.inputs; c += kGroup) {
    const uint32_t mask = first_bits(to.inputs - c, kGroup);
    Pair u[kPositions], rows[12], taps[9];
    for (int64_t p = 0; p < kPositions; ++p) {
      const float* from = sums + p * position_stride + k * columns + c;
      u[p] = {_mm512_loadu_ps(from), _mm512_loadu_ps(from + kLanes)};
    }
    gather_weights<4, 4>(u, rows), gather_weights<4, 4>(u + 1, rows + 1);
    gather_weights<4, 4>(u + 2, rows + 2), gather_weights<4, 4>(u + 3, rows + 3);
    gather_weights<1, 1>(rows, taps), gather_weights<1, 1>(rows + 4, taps + 3), gather_weights<1, 1>(rows + 8, taps + 6);
    for (int64_t tap = 0; tap < 9; ++tap) {
      scalar* row = to.at(k, tap) + c;
      store_lanes(taps[tap].even, row, mask & 0xffff);
      if (mask >> 16) store_lanes(taps[tap].odd, row + kLanes, mask >> 16);
    }
  }
}

}  // namespace winograd
}  // namespace tfkd_fast

#endif

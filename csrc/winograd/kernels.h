// The parts of a Winograd convolution for one thread: transforms into panels, products of panels, transforms back.
//
// Two vectors of 16 numbers, `even` and `odd`, become one of 16 dwords, two bfloat16 each, of which a product sums
// both. A panel is a matrix of dwords (pairs of the summed index, 32 columns).
#pragma once

#include "../common/bf16_products.h"
#include "../common/vector_widths.h"

#include <array>
#include <utility>

#if TFKD_HAS_BF16
namespace tfkd_fast {
namespace winograd {

constexpr int64_t kGroup = 2 * kLanes;  // channels of a bfloat16 vector, and columns of a panel
constexpr int64_t kPositions = 16;      // of a transformed tile: 4x4

using Dwords = int32_t __attribute__((vector_size(64)));

struct Pair {
  __m512 even, odd;
};

TFKD_BF16_INLINE Pair operator+(const Pair& a, const Pair& b) { return {a.even + b.even, a.odd + b.odd}; }
TFKD_BF16_INLINE Pair operator-(const Pair& a, const Pair& b) { return {a.even - b.even, a.odd - b.odd}; }
TFKD_BF16_INLINE Pair half(const Pair& a) { return {0.5f * a.even, 0.5f * a.odd}; }
TFKD_BF16_INLINE Pair zero_pair() { return {_mm512_setzero_ps(), _mm512_setzero_ps()}; }

// The mask of the first `count` of at most 32 lanes.
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

// Past the caches where a whole line is stored, which is then not read before: for results that nobody reads soon.
TFKD_BF16_INLINE void stream_lanes(const __m512& values, float* to, uint32_t mask) {
  const bool whole = mask == 0xffff && reinterpret_cast<uintptr_t>(to) % sizeof(values) == 0;
  whole ? _mm512_stream_ps(to, values) : _mm512_mask_storeu_ps(to, mask, values);
}
TFKD_BF16_INLINE void stream_lanes(const __m512& values, BFloat16* to, uint32_t mask) {
  _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

// The transforms along one axis: of values that lie `kStep` apart, or `kFrom` apart to results that lie `kTo` apart.

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

// The tiles of maps (B,H,W,channels): 2x2 outputs, and the 4x4 inputs around them.
struct Tiles {
  int64_t batch, height, width;

  int64_t rows() const { return divided_up(height, 2); }
  int64_t columns() const { return divided_up(width, 2); }
  int64_t count() const { return batch * rows() * columns(); }
};

// One of them, and then the next.
class Tile {
 public:
  Tile(const Tiles& tiles, int64_t index) : tiles_(tiles) {
    column_ = index % tiles.columns();
    row_ = index / tiles.columns() % tiles.rows();
    sample_ = index / tiles.columns() / tiles.rows();
  }

  void next() {
    if (++column_ < tiles_.columns()) return;
    column_ = 0;
    if (++row_ < tiles_.rows()) return;
    row_ = 0;
    ++sample_;
  }

  // The kSize x kSize pixels around the middle of the tile; `outside` for those that are none.
  template <int kSize, typename scalar>
  TFKD_INLINE void pixels(scalar* values, int64_t channels, scalar* outside, scalar** to) const {
    constexpr int64_t kMargin = (kSize - 2) / 2;
    const int64_t top = 2 * row_ - kMargin, left = 2 * column_ - kMargin;
    const int64_t line = tiles_.width * channels;
    scalar* first = values + (sample_ * tiles_.height + top) * line + left * channels;
    for (int r = 0; r < kSize; ++r) {
      const bool inside = sample_ < tiles_.batch && top + r >= 0 && top + r < tiles_.height;
      for (int s = 0; s < kSize; ++s) {
        const bool found = inside && left + s >= 0 && left + s < tiles_.width;
        to[r * kSize + s] = found ? first + r * line + s * channels : outside;
      }
    }
  }

 private:
  const Tiles& tiles_;
  int64_t sample_, row_, column_;
};

// Has the pixels on their way from memory that a later tile of the row adds: the last two of the last two lines.
template <int kSize>
TFKD_INLINE void prefetch(const BFloat16* const* pixels, int64_t begin, int64_t end) {
  constexpr int64_t kAhead = 512;  // values
  for (int r = kSize - 2; r < kSize; ++r) {
    for (int s = kSize - 2; s < kSize; ++s) {
      for (int64_t c = begin; c < end; c += kGroup) __builtin_prefetch(pixels[r * kSize + s] + c + kAhead);
    }
  }
}

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
  Tile tile(tiles, first);
  for (int64_t t = 0; t < count; ++t, tile.next()) {
    const BFloat16* pixels[kPositions];
    tile.pixels<4>(x, channels, zeros, pixels);
    prefetch<4>(pixels, 0, channels);
    BFloat16* row = to.values + t * to.channels;
    for (int64_t c = 0; c < channels; c += kGroup) {
      const uint32_t mask = first_bits(channels - c, kGroup);
      Pair values[kPositions];
      for (int64_t p = 0; p < kPositions; ++p) values[p] = load_alternating(pixels[p] + c, mask);
      transform_inputs_of_tile(values);
      for (int64_t p = 0; p < kPositions; ++p) {
        _mm512_storeu_si512(row + p * to.stride + c, one_after_the_other(values[p]));
      }
    }
  }
}

// The channel of a group that is the even one of the pair in dword d of `one_after_the_other`; the odd one is 2
// further.
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

// The transformed weights of 32 results, (position, pair of summed channels, result).
struct WeightPanel {
  int32_t* values;
  int64_t summed;  // channels, rounded up

  static int64_t size_of(int64_t summed) { return kPositions * summed / 2 * kGroup; }
  int32_t* at(int64_t position, int64_t pair = 0) const { return values + (position * summed / 2 + pair) * kGroup; }
};

// For the outputs of a panel: sums over a group of inputs.
template <typename scalar>
TFKD_BF16 void transform_weights(const Weight<const scalar>& weight, int64_t panel, int64_t group,
                                 const WeightPanel& to) {
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
    for (int64_t p = 0; p < kPositions; ++p) transpose(rows[p], to.at(p, group * kLanes) + side * kLanes, kGroup);
  }
}

// For the inputs of a panel, the kernel turned around: sums over a group of outputs.
template <typename scalar>
TFKD_BF16 void transform_turned_weights(const Weight<const scalar>& weight, int64_t panel, int64_t group,
                                        const WeightPanel& to) {
  for (int64_t d = 0; d < kLanes; ++d) {
    const int64_t even = group * kGroup + even_channel(d), odd = even + 2;
    for (int64_t side = 0; side < 2; ++side) {
      const int64_t c = panel * kGroup + side * kLanes;
      const uint32_t mask = first_bits(weight.inputs - c, kLanes);
      Pair taps[9], transformed[kPositions];
      for (int64_t tap = 0; tap < 9; ++tap) {
        taps[8 - tap] = {even < weight.outputs ? load_lanes(weight.at(even, tap) + c, mask) : _mm512_setzero_ps(),
                         odd < weight.outputs ? load_lanes(weight.at(odd, tap) + c, mask) : _mm512_setzero_ps()};
      }
      spread_weights_of_tile(taps, transformed);
      for (int64_t p = 0; p < kPositions; ++p) {
        _mm512_storeu_si512(to.at(p, group * kLanes + d) + side * kLanes, interleaved(transformed[p]));
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
TFKD_BF16 inline void multiply(int64_t pairs, const int32_t* rows, int64_t row_stride, const int32_t* panel,
                               float* sums) {
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

TFKD_BF16 inline void multiply_block(int64_t tiles, const InputBlock& inputs, const WeightPanel& weights,
                                     float* products) {
  const int64_t pairs = inputs.channels / 2;
  for (int64_t p = 0; p < kPositions; ++p) {
    const int32_t* rows = reinterpret_cast<const int32_t*>(inputs.values + p * inputs.stride);
    float* sums = products + p * Products::stride_of(tiles);
    for (int64_t t = 0; t < tiles; t += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, tiles - t);
      kMultiply[count - 1](pairs, rows + t * pairs, pairs, weights.at(p), sums + t * kGroup);
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
  Tile tile(tiles, first);
  for (int64_t t = 0; t < count; ++t, tile.next()) {
    BFloat16* pixels[4];
    tile.pixels<2, BFloat16>(y, channels, nullptr, pixels);
    Pair m[kPositions], rows[8], outputs[4];
    for (int64_t p = 0; p < kPositions; ++p) {
      const float* from = products + p * stride + t * kGroup;
      m[p] = {_mm512_loadu_ps(from), _mm512_loadu_ps(from + kLanes)};
    }
    gather_outputs<4, 4>(m, rows), gather_outputs<4, 4>(m + 1, rows + 1);
    gather_outputs<4, 4>(m + 2, rows + 2), gather_outputs<4, 4>(m + 3, rows + 3);
    gather_outputs<1, 1>(rows, outputs), gather_outputs<1, 1>(rows + 4, outputs + 2);
    for (int64_t i = 0; i < 4; ++i) {
      if (pixels[i]) _mm512_mask_storeu_epi16(pixels[i] + k, mask, one_after_the_other(outputs[i] + offset));
    }
  }
}

// For the gradient of the weights: transformed tiles in pairs, (position, channels in 32s, pair of tiles, channel). The
// padding keeps the positions out of each other's way in the cache.
struct TilePanels {
  int32_t* values;
  int64_t pairs;   // of tiles
  int64_t panels;  // of channels

  static int64_t stride_of(int64_t pairs, int64_t panels) { return panels * pairs * kGroup + kLanes; }
  static int64_t size_of(int64_t pairs, int64_t panels) { return kPositions * stride_of(pairs, panels); }
  int32_t* at(int64_t position, int64_t panel) const {
    return values + position * stride_of(pairs, panels) + panel * pairs * kGroup;
  }
};

// Maps (B,H,W,channels), from a channel on.
struct Maps {
  const BFloat16* values;
  int64_t channels, from;
};

// Transforms the pairs of tiles from `first` on: kSize 4, of inputs; 2, of gradients of outputs.
template <int kSize>
TFKD_BF16 void transform_pairs(const Tiles& tiles, int64_t first, const Maps& maps, const BFloat16* zeros,
                               const TilePanels& to) {
  Tile tile(tiles, 2 * first);
  for (int64_t pair = 0; pair < to.pairs; ++pair) {
    const BFloat16 *even[kSize * kSize], *odd[kSize * kSize];
    tile.pixels<kSize>(maps.values, maps.channels, zeros, even);
    tile.next();
    tile.pixels<kSize>(maps.values, maps.channels, zeros, odd);
    tile.next();
    for (const auto& pixels : {even, odd}) prefetch<kSize>(pixels, maps.from, maps.from + to.panels * kGroup);
    for (int64_t c = 0; c < to.panels * kGroup; c += kLanes) {
      const uint32_t mask = first_bits(maps.channels - maps.from - c, kLanes);
      Pair pixels[kSize * kSize], transformed[kPositions];
      for (int64_t i = 0; i < kSize * kSize; ++i) {
        pixels[i] = {load_lanes(even[i] + maps.from + c, mask), load_lanes(odd[i] + maps.from + c, mask)};
      }
      if constexpr (kSize == 4) {
        transform_inputs_of_tile(pixels);
        std::copy_n(pixels, kPositions, transformed);
      } else {
        spread_outputs_of_tile(pixels, transformed);
      }
      for (int64_t p = 0; p < kPositions; ++p) {
        _mm512_storeu_si512(to.at(p, c / kGroup) + pair * kGroup + c % kGroup, interleaved(transformed[p]));
      }
    }
  }
}

// The products of all pairs of tiles, added to sums (position, output, input) or put into them.
template <bool kAdd>
TFKD_BF16 void add_products(const TilePanels& outputs, const TilePanels& inputs, float* sums) {
  constexpr int64_t kRows = 8;
  const int64_t columns = inputs.panels * kGroup;
  for (int64_t p = 0; p < kPositions; ++p) {
    for (int64_t c = 0; c < inputs.panels; ++c) {
      for (int64_t k = 0; k < outputs.panels * kGroup; k += kRows) {
        float* of_rows = sums + (p * outputs.panels * kGroup + k) * columns + c * kGroup;
        multiply_rows<kRows, kGroup, kAdd>(outputs.pairs, outputs.at(p, k / kGroup) + k % kGroup, 1, inputs.at(p, c),
                                           of_rows, columns, std::make_index_sequence<kRows>());
      }
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

// Sums (part, position, output, input) of outputs and inputs in 32s, added up over the parts and transformed back, into
// the gradient of the weights from an output and an input on.
template <typename scalar>
TFKD_BF16 void write_weights(const float* sums, int64_t parts, int64_t part_stride, int64_t outputs, int64_t inputs,
                             int64_t first_output, int64_t first_input, const Weight<scalar>& to) {
  for (int64_t k = 0; k < std::min(outputs, to.outputs - first_output); ++k) {
    for (int64_t c = 0; c < std::min(inputs, to.inputs - first_input); c += kGroup) {
      const uint32_t mask = first_bits(to.inputs - first_input - c, kGroup);
      Pair u[kPositions], rows[12], taps[9];
      for (int64_t p = 0; p < kPositions; ++p) {
        u[p] = zero_pair();
        for (int64_t part = 0; part < parts; ++part) {
          const float* from = sums + part * part_stride + (p * outputs + k) * inputs + c;
          u[p] = u[p] + Pair{_mm512_loadu_ps(from), _mm512_loadu_ps(from + kLanes)};
        }
      }
      gather_weights<4, 4>(u, rows), gather_weights<4, 4>(u + 1, rows + 1);
      gather_weights<4, 4>(u + 2, rows + 2), gather_weights<4, 4>(u + 3, rows + 3);
      gather_weights<1, 1>(rows, taps), gather_weights<1, 1>(rows + 4, taps + 3);
      gather_weights<1, 1>(rows + 8, taps + 6);
      for (int64_t tap = 0; tap < 9; ++tap) {
        scalar* row = to.at(first_output + k, tap) + first_input + c;
        stream_lanes(taps[tap].even, row, mask & 0xffff);
        if (mask >> 16) stream_lanes(taps[tap].odd, row + kLanes, mask >> 16);
      }
    }
  }
  _mm_sfence();
}

}  // namespace winograd
}  // namespace tfkd_fast

#endif

// Maps from maps: the result of a convolution from its inputs, and the gradient of the inputs from that of the result.
//
// Each position of the targets is a sum over positions of the sources. 16 sums are channels of a target, and a pair is
// two channels of a source; it is read once and serves every tap in a row of the kernel. Sources that are outside of
// the map are left out.
#pragma once

#include "pairs.h"

#include <array>

#if TFKD_HAS_BF16
namespace tfkd_fast::direct {

// A target t is the sum over taps of the source stride * t + tap - pad: the result from the inputs.
template <int taps, int stride>
struct Gathered {
  static constexpr int kTaps = taps;
  static constexpr std::array<int, 4> kTileWidths = {16, 8, 4, 1};

  static constexpr int sources(int targets) { return stride * (targets - 1) + taps; }
  // Of a source and a target of a tile, counted from its first ones; no target, or none of the tile, is outside of it.
  static constexpr int target(int source, int tap) {
    return source >= tap && (source - tap) % stride == 0 ? (source - tap) / stride : -1;
  }
  static int64_t first_source(int64_t target) { return stride * target - taps / 2; }
  static int64_t source_row(int64_t target, int64_t tap) { return stride * target + tap - taps / 2; }
  static int64_t target_size(int64_t sources) { return (sources - 1) / stride + 1; }
};

// A source s adds to the target stride * s + tap - pad for each tap: the gradient of the inputs from that of the
// result. There are `stride` times as many targets along an axis, and a tile begins at a multiple of it.
template <int taps, int stride>
struct Scattered {
  static constexpr int kTaps = taps;
  static constexpr std::array<int, 4> kTileWidths = {16, 8, 4, stride};

  static constexpr int sources(int targets) { return (targets - 1 + taps / 2) / stride + 1; }
  static constexpr int target(int source, int tap) { return stride * source + tap - taps / 2; }
  static int64_t first_source(int64_t target) { return target / stride; }
  static int64_t source_row(int64_t target, int64_t tap) {
    const int64_t distance = target + taps / 2 - tap;
    return distance >= 0 && distance % stride == 0 ? distance / stride : -1;
  }
  static int64_t target_size(int64_t sources) { return sources * stride; }
};

// Some columns of a row of targets, and some vectors of their channels.
struct Tile {
  std::array<const uint16_t*, 3> sources;  // under each row of the kernel, the first column; null: outside of the map
  int64_t source_channels;                 // even
  bool first_is_inside, last_is_inside;    // columns of the sources
  const Pair* weight;                      // [row of the kernel][pair][column of the kernel][lane of all vectors]
  const float* bias;                       // of each lane; null: none
  uint16_t* targets;
  int64_t target_channels;
  uint32_t lanes;  // a bit for each lane of the last vector that is a channel
};

template <typename Direction, int kVectors, int kWidth>
TFKD_BF16 void compute(const Tile& tile) {
  constexpr int kTaps = Direction::kTaps, kSources = Direction::sources(kWidth);
  __m512 sums[kVectors][kWidth];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const __m512 start = tile.bias ? _mm512_loadu_ps(tile.bias + v * kLanes) : _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int t = 0; t < kWidth; ++t) sums[v][t] = start;
  }
  const int64_t pairs = tile.source_channels / 2;
  for (int row = 0; row < kTaps; ++row) {
    if (tile.sources[row] == nullptr) continue;
    const uint16_t* sources = tile.sources[row];
    const Pair* weight = tile.weight + row * pairs * kTaps * kVectors * kLanes;
    for (int64_t pair = 0; pair < pairs; ++pair, sources += 2, weight += kTaps * kVectors * kLanes) {
      __m512i taps[kTaps][kVectors];
#pragma GCC unroll 3
      for (int tap = 0; tap < kTaps; ++tap) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) taps[tap][v] = _mm512_load_si512(weight + (tap * kVectors + v) * kLanes);
      }
#pragma GCC unroll 33
      for (int s = 0; s < kSources; ++s) {
        if (s == 0 && !tile.first_is_inside) continue;
        if (s == kSources - 1 && !tile.last_is_inside) continue;
        int32_t both;
        std::memcpy(&both, sources + s * tile.source_channels, sizeof(both));
        const __m512i source = _mm512_set1_epi32(both);
#pragma GCC unroll 3
        for (int tap = 0; tap < kTaps; ++tap) {
          const int t = Direction::target(s, tap);
          if (t < 0 || t >= kWidth) continue;
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            sums[v][t] = _mm512_dpbf16_ps(sums[v][t], (__m512bh)source, (__m512bh)taps[tap][v]);
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
    for (int t = 0; t < kWidth; ++t) {
      uint16_t* to = tile.targets + t * tile.target_channels + v * kLanes;
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(sums[v][t]);
      if (v < kVectors - 1) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
      } else {
        _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(tile.lanes), rounded);
      }
    }
  }
}

// The tiles of maps of one width: so many columns, and up to so many vectors of channels.
struct Tiles {
  int64_t width, most_vectors;
  int64_t sources;                               // columns
  std::array<void (*)(const Tile&), 5> compute;  // by the number of vectors: 1, 2 or 4
};

template <typename Direction, int kWidth>
Tiles tiles_of() {
  constexpr int kMost = kWidth == 16 ? 1 : kWidth == 4 ? 4 : 2;  // 16 sums, enough to hide how long a product takes
  Tiles tiles{kWidth, kMost, Direction::sources(kWidth), {}};
  tiles.compute[1] = compute<Direction, 1, kWidth>;
  if constexpr (kMost >= 2) tiles.compute[2] = compute<Direction, 2, kWidth>;
  if constexpr (kMost >= 4) tiles.compute[4] = compute<Direction, 4, kWidth>;
  return tiles;
}

template <typename Direction>
Tiles tiles_for(int64_t map_width) {
  constexpr auto kWidths = Direction::kTileWidths;
  if (map_width >= kWidths[0]) return tiles_of<Direction, kWidths[0]>();
  if (map_width >= kWidths[1]) return tiles_of<Direction, kWidths[1]>();
  if (map_width >= kWidths[2]) return tiles_of<Direction, kWidths[2]>();
  return tiles_of<Direction, kWidths[3]>();
}

// Vectors of target channels that tiles have together.
struct Block {
  int64_t first, vectors;
};

inline std::vector<Block> blocks_of(int64_t channels, const Tiles& tiles) {
  std::vector<Block> blocks;
  for (int64_t first = 0, left = divided_up(channels, kLanes); left > 0;) {
    int64_t vectors = tiles.most_vectors;
    while (vectors > left) vectors /= 2;
    blocks.push_back({first, vectors});
    first += vectors, left -= vectors;
  }
  return blocks;
}

// The values of a weight (K,C,taps,taps) in bfloat16, as (K,taps,taps,C).
inline Lines<uint16_t> in_bfloat16(const Tensor& weight) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1), taps = weight.size(2);
  const int64_t strides[] = {weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
  Lines<uint16_t> result(weight.numel());
  for_weight_type(weight, [&](auto scalar) {
    const auto* values = static_cast<const decltype(scalar)*>(weight.const_data_ptr());
    auto* to = reinterpret_cast<BFloat16*>(result.get());
    torch::stable::parallel_for(0, outputs, rows_per_task(taps * taps * inputs), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * taps * taps; row < end * taps * taps; ++row) {
        const int64_t k = row / (taps * taps), i = row / taps % taps, j = row % taps;
        const auto* from = values + k * strides[0] + i * strides[2] + j * strides[3];
        if constexpr (std::is_same_v<decltype(scalar), float>) {
          if (strides[1] == 1) {
            store_row(inputs, from, to + row * inputs);
            continue;
          }
        }
        for (int64_t c = 0; c < inputs; ++c) {
          to[row * inputs + c] = BFloat16(static_cast<float>(from[c * strides[1]]));
        }
      }
    });
  });
  return result;
}

// How a weight of bfloat16 (K,taps,taps,C) is seen: how far the next target, source and tap are, and where the first
// is.
struct View {
  int64_t target, source, tap, first;
};

// [block][row of the kernel][pair of sources][column of the kernel][lane]; lanes and sources that are no channels are
// 0.
inline Lines<Pair> packed(const uint16_t* weight, const View& view, const std::vector<Block>& blocks, int64_t taps,
                          int64_t sources, int64_t targets) {
  const int64_t pairs = divided_up(sources, 2), rows = taps * pairs * taps;  // of a block
  Lines<Pair> result(rounded_up(targets, kLanes) * rows);
  for (const Block& block : blocks) {
    const int64_t first = block.first * kLanes, lanes = block.vectors * kLanes;
    const int64_t channels = std::min(lanes, targets - first);
    Pair* of_block = result.get() + first * rows;
    torch::stable::parallel_for(0, rows, rows_per_task(2 * lanes), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t tap = row / (pairs * taps) * taps + row % taps, source = row / taps % pairs * 2;
        const uint16_t* low = weight + view.first + first * view.target + source * view.source + tap * view.tap;
        const uint16_t* high = low + view.source;
        Pair* to = of_block + row * lanes;
        if (source + 1 < sources) {
          for (int64_t i = 0; i < channels; ++i) {
            to[i] = low[i * view.target] | static_cast<Pair>(high[i * view.target]) << 16;
          }
        } else {
          for (int64_t i = 0; i < channels; ++i) to[i] = low[i * view.target];
        }
        std::fill(to + channels, to + lanes, 0);
      }
    });
  }
  return result;
}

// x with one more channel, of zeros, where the number of channels is odd.
inline Tensor with_whole_pairs(const Tensor& x) {
  const Maps from(x);
  const int64_t channels = from.channels;
  if (channels % 2 == 0) return x;
  const Tensor result = new_maps(x, channels + 1);
  auto* to = static_cast<uint16_t*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, from.positions(), rows_per_task(channels), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t c = 0; c < channels; ++c) to[i * (channels + 1) + c] = from.values[i * channels + c];
      to[i * (channels + 1) + channels] = 0;
    }
  });
  return result;
}

// A value in float32 for each lane of the vectors of channels, rounded to bfloat16.
inline std::vector<float> rounded_bias(const Tensor& bias) {
  std::vector<float> values(rounded_up(bias.size(0), kLanes));
  for_weight_type(bias, [&](auto scalar) {
    const auto* from = static_cast<const decltype(scalar)*>(bias.const_data_ptr());
    const int64_t stride = bias.stride(0);
    for (int64_t k = 0; k < bias.size(0); ++k) values[k] = BFloat16(static_cast<float>(from[k * stride]));
  });
  return values;
}

// Targets from sources x. `turned`: they are the inputs of the convolution and x is the gradient of its result.
template <typename Direction>
Tensor maps_from(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool turned) {
  constexpr int64_t kTaps = Direction::kTaps;
  const Tensor sources = with_whole_pairs(channels_last(x));
  const Maps from(sources);
  const int64_t outputs = weight.size(0), inputs = weight.size(1), channels = turned ? inputs : outputs;
  const int64_t height = Direction::target_size(from.height), width = Direction::target_size(from.width);
  const Tensor targets = new_maps(x, channels, height, width);
  auto* to = static_cast<uint16_t*>(targets.mutable_data_ptr());

  const Tiles tiles = tiles_for<Direction>(width);
  const auto blocks = blocks_of(channels, tiles);
  View view{kTaps * kTaps * inputs, 1, inputs, 0};
  if (turned) {
    view = {1, kTaps * kTaps * inputs, inputs, 0};
    // Of targets that are gathered, the first tap of the gradient is the last one of the convolution.
    if (std::is_same_v<Direction, Gathered<kTaps, 1>>) view.tap = -inputs, view.first = (kTaps * kTaps - 1) * inputs;
  }
  const auto rounded = in_bfloat16(weight);
  const auto pairs = packed(rounded.get(), view, blocks, kTaps, turned ? outputs : inputs, channels);
  std::vector<float> biases;
  if (bias) biases = rounded_bias(*bias);

  const int64_t per_vector = kTaps * kTaps * from.channels / 2 * kLanes;  // pairs of the weight
  const int64_t products = width * divided_up(channels, kLanes) * per_vector / kLanes;
  torch::stable::parallel_for(0, from.batch * height, rows_per_task(products), [&](int64_t begin, int64_t end) {
    for (int64_t image = begin / height; image * height < end; ++image) {
      const int64_t first = std::max(begin - image * height, int64_t{0}), last = std::min(end - image * height, height);
      for (const Block& block : blocks) {  // whose weight stays in the cache meanwhile
        Tile tile{};
        tile.source_channels = from.channels, tile.target_channels = channels;
        tile.weight = pairs.get() + block.first * per_vector;
        tile.bias = bias ? biases.data() + block.first * kLanes : nullptr;
        tile.lanes = (1u << std::min(kLanes, channels - (block.first + block.vectors - 1) * kLanes)) - 1;
        for (int64_t i = first; i < last; ++i) {
          for (int64_t next = 0; next < width; next += tiles.width) {
            const int64_t j = std::min(next, width - tiles.width);  // the last one may overlap
            const int64_t source = Direction::first_source(j);
            for (int64_t tap = 0; tap < kTaps; ++tap) {
              const int64_t row = Direction::source_row(i, tap);
              tile.sources[tap] = from.has_row(row) ? from.row(image, row) + source * from.channels : nullptr;
            }
            tile.first_is_inside = source >= 0;
            tile.last_is_inside = source + tiles.sources <= from.width;
            tile.targets = to + ((image * height + i) * width + j) * channels + block.first * kLanes;
            tiles.compute[block.vectors](tile);
          }
        }
      }
    }
  });
  return targets;
}

}  // namespace tfkd_fast::direct
#endif

// What follows a convolution in inference: the sum with a residual, ReLU, and the largest value of each window of 2x2,
// in one pass over maps in bfloat16. NaN stays NaN, as in torch's functions.

#include "../common/bfloat16.h"
#include "../common/convolution.h"

#include <limits>

namespace tfkd_fast {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 14;

// Of `count` numbers that lie side by side.
template <bool kResidual>
TFKD_FOR_EVERY_VECTOR_WIDTH void finish(const uint16_t* maps, const uint16_t* residual, int64_t count, bool relu,
                                        uint16_t* out) {
  const float floor = relu ? 0.0f : -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    float value = widened(maps[i]);
    if constexpr (kResidual) value = widened(nearest_bfloat16(value + widened(residual[i])));
    out[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(largest(value, floor)) >> 16);
  }
}

// Of a row of windows; `line` is how many numbers lie between two rows of the maps.
TFKD_FOR_EVERY_VECTOR_WIDTH void pool_row(const uint16_t* __restrict maps, int64_t line, int64_t channels,
                                          int64_t windows, bool relu, uint16_t* __restrict out) {
  const float floor = relu ? 0.0f : -std::numeric_limits<float>::infinity();
  for (int64_t w = 0; w < windows; ++w, maps += 2 * channels, out += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float upper = largest(widened(maps[c]), widened(maps[channels + c]));
      const float lower = largest(widened(maps[line + c]), widened(maps[line + channels + c]));
      out[c] = static_cast<uint16_t>(std::bit_cast<uint32_t>(largest(largest(upper, lower), floor)) >> 16);
    }
  }
}

const uint16_t* bits_of(const Tensor& tensor) { return reinterpret_cast<const uint16_t*>(values_of(tensor)); }

// Without a pool of the size of the maps.
Tensor relu_pool_cpu(const Tensor& x, const std::optional<Tensor>& residual, bool relu, bool pool) {
  check_maps("x", x);
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  STD_TORCH_CHECK(!(residual && pool), "a residual is added without pooling");
  const Tensor maps = channels_last(x);
  const uint16_t* values = bits_of(maps);
  if (!pool) {
    Tensor result = new_maps(x, channels);
    auto* out = static_cast<uint16_t*>(result.mutable_data_ptr());
    std::optional<Tensor> added;
    if (residual) {
      check_maps("residual", *residual);
      STD_TORCH_CHECK(has_shape(*residual, {batch, channels, height, width}), "residual must have the shape of x");
      added = channels_last(*residual);
    }
    const uint16_t* others = added ? bits_of(*added) : nullptr;
    torch::stable::parallel_for(0, maps.numel(), kNumbersPerTask, [&](int64_t begin, int64_t end) {
      if (others) {
        finish<true>(values + begin, others + begin, end - begin, relu, out + begin);
      } else {
        finish<false>(values + begin, nullptr, end - begin, relu, out + begin);
      }
    });
    return result;
  }
  STD_TORCH_CHECK(height > 1 && width > 1, "x must have a window of 2x2");
  const int64_t rows = height / 2, windows = width / 2, line = width * channels;
  Tensor result = new_maps(x, channels, rows, windows);
  auto* out = static_cast<uint16_t*>(result.mutable_data_ptr());
  const int64_t rows_per_task = std::max<int64_t>(1, kNumbersPerTask / (2 * line));
  torch::stable::parallel_for(0, batch * rows, rows_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint16_t* upper = values + (row / rows * height + row % rows * 2) * line;
      pool_row(upper, line, channels, windows, relu, out + row * windows * channels);
    }
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("relu_pool", TORCH_BOX(&relu_pool_cpu)); }

}  // namespace tfkd_fast

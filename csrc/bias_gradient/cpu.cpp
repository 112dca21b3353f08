// The gradient of the bias of a convolution: sums over all positions, by channel.
//
// torch makes a copy of the maps in float32 first. Here blocks of positions are summed in float32, and the sums of the
// blocks in float64, in an order that depends on the shapes alone.

#include "../common/bfloat16.h"
#include "../common/convolution.h"

namespace tfkd_fast {
namespace {

constexpr int64_t kPositionsOfBlock = 256;
constexpr int64_t kNumbersPerTask = 1 << 14;

// Four positions at once, so that a sum in memory is read and written once for them.
TFKD_FOR_EVERY_VECTOR_WIDTH void add_positions(const uint16_t* values, int64_t positions, int64_t channels,
                                               float* __restrict sums) {
  int64_t at = 0;
  for (; at + 4 <= positions; at += 4, values += 4 * channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float first = widened(values[c]) + widened(values[channels + c]);
      const float last = widened(values[2 * channels + c]) + widened(values[3 * channels + c]);
      sums[c] += first + last;
    }
  }
  for (; at < positions; ++at, values += channels) {
    for (int64_t c = 0; c < channels; ++c) sums[c] += widened(values[c]);
  }
}

Tensor bias_gradient_cpu(const Tensor& gradient) {
  check_maps("gradient", gradient);
  const Tensor maps = channels_last(gradient);
  const int64_t channels = maps.size(1), positions = maps.size(0) * maps.size(2) * maps.size(3);
  const auto* values = reinterpret_cast<const uint16_t*>(values_of(maps));
  const int64_t blocks = (positions + kPositionsOfBlock - 1) / kPositionsOfBlock;
  std::vector<float> sums(blocks * channels);
  const int64_t blocks_per_task = std::max<int64_t>(1, kNumbersPerTask / (kPositionsOfBlock * channels));
  torch::stable::parallel_for(0, blocks, blocks_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kPositionsOfBlock, count = std::min(kPositionsOfBlock, positions - first);
      add_positions(values + first * channels, count, channels, sums.data() + block * channels);
    }
  });
  Tensor result = torch::stable::empty(std::vector<int64_t>{channels}, ScalarType::Float, std::nullopt,
                                       gradient.device(), std::nullopt, std::nullopt);
  auto* out = static_cast<float*>(result.mutable_data_ptr());
  std::vector<double> totals(channels);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t c = 0; c < channels; ++c) totals[c] += sums[block * channels + c];
  }
  for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<float>(totals[c]);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("bias_gradient", TORCH_BOX(&bias_gradient_cpu)); }

}  // namespace tfkd_fast

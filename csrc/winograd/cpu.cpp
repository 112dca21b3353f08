// 3x3 convolution in bfloat16 by Winograd's minimal filtering, F(2x2,3x3), and its gradients.
#include "../common/convolution.h"
#include "kernels.h"

namespace tfkd_fast {
namespace {

void check_processor() {
#if TFKD_HAS_BF16_PRODUCTS
  static const bool serves = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  constexpr bool serves = false;
#endif
  STD_TORCH_CHECK(serves, "winograd needs a processor with AVX512-BF16");
}

#if TFKD_HAS_BF16_PRODUCTS

using namespace winograd;

Tiles tiles_of(const Tensor& x) { return {x.size(0), x.size(2), x.size(3)}; }

// Memory of a thread that calls of one kind use one after the other.
template <typename T>
T* scratch(std::vector<T>& memory, int64_t count) {
  if (static_cast<int64_t>(memory.size()) < count) memory.resize(count);
  return memory.data();
}

constexpr int64_t kMostTiles = 48;
constexpr int64_t kBlockBytes = 1 << 19;  // stay in the second-level cache beside products and a panel

int64_t tiles_at_once(int64_t tiles, int64_t channels) {
  const int64_t fitting = kBlockBytes / (kPositions * channels * 2) / kRowsAtOnce * kRowsAtOnce;
  const int64_t most = std::clamp(fitting, kRowsAtOnce, kMostTiles);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t blocks = rounded_up(divided(tiles, most), threads);
  return std::min(most, std::max<int64_t>(1, divided(tiles, blocks)));
}

Tensor convolved(const Tensor& x, const Tensor& weight, bool turned, const std::optional<Tensor>& bias) {
  const Tiles tiles = tiles_of(x);
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const int64_t in_channels = turned ? outputs : inputs, out_channels = turned ? inputs : outputs;
  const int64_t summed = rounded_up(in_channels, kGroup), columns = rounded_up(out_channels, kGroup);
  const int64_t panels = columns / kGroup, groups = summed / kGroup;
  const Tensor y = new_maps(x, out_channels);
  if (y.numel() == 0) return y;

  const Tensor transformed = new_contiguous(x, {kPositions * columns * summed / 2}, ScalarType::Int);
  const WeightPanels weights{static_cast<int32_t*>(transformed.mutable_data_ptr()), summed, columns};
  for_weight_type(weight, [&](auto scalar) {
    const Weight<const decltype(scalar)> from{static_cast<const decltype(scalar)*>(weight.const_data_ptr()), outputs,
                                              inputs};
    torch::stable::parallel_for(0, panels * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        turned ? transform_turned_weights(from, i / groups, i % groups, weights)
               : transform_weights(from, i / groups, i % groups, weights);
      }
    });
  });

  std::vector<float> offsets(columns, 0.0f);
  if (bias) {
    const Tensor values = as_contiguous(torch::stable::to(*bias, ScalarType::Float));
    std::copy_n(static_cast<const float*>(values.const_data_ptr()), out_channels, offsets.data());
  }
  const std::vector<BFloat16> zeros(summed);
  const int64_t at_once = tiles_at_once(tiles.count(), summed);
  auto* to = static_cast<BFloat16*>(y.mutable_data_ptr());
  torch::stable::parallel_for(0, divided(tiles.count(), at_once), 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<BFloat16> input_memory;
    thread_local std::vector<float> product_memory;
    const int64_t stride = InputBlock::stride_of(at_once, summed);
    const InputBlock block{scratch(input_memory, kPositions * stride), summed, stride};
    float* products = scratch(product_memory, kPositions * Products::stride_of(at_once));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * at_once, count = std::min(at_once, tiles.count() - first);
      transform_input_block(tiles, first, count, values_of(x), in_channels, zeros.data(), block);
      for (int64_t panel = 0; panel < panels; ++panel) {
        multiply_block(count, block, weights, panel, products);
        write_outputs(tiles, first, count, products, panel, offsets.data(), to, out_channels);
      }
    }
  });
  return y;
}

constexpr int64_t kPairsAtOnce = 512;

Tensor weight_gradients(const Tensor& gradient, const Tensor& x, const Tensor& weight) {
  const Tiles tiles = tiles_of(x);
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const int64_t out_panels = divided(outputs, kGroup), in_panels = divided(inputs, kGroup);
  const int64_t at_once = std::min(kPairsAtOnce, divided(tiles.count(), 2));
  Tensor result = torch::stable::empty_like(weight);
  if (tiles.count() == 0) return torch::stable::fill_(result, 0.0);
  const Tensor dense = channels_last(result);
  const int64_t stride = TilePanels::stride_of(at_once);
  const Tensor of_outputs = new_contiguous(x, {kPositions * out_panels * stride}, ScalarType::Int);
  const Tensor of_inputs = new_contiguous(x, {kPositions * in_panels * stride}, ScalarType::Int);
  const int64_t columns = in_panels * kGroup, position_stride = out_panels * kGroup * columns;
  const Tensor sums = new_contiguous(x, {kPositions * position_stride}, ScalarType::Float);
  auto* sum = static_cast<float*>(sums.mutable_data_ptr());
  const std::vector<BFloat16> zeros(std::max(out_panels, in_panels) * kGroup);

  for (int64_t first = 0; first < tiles.count(); first += 2 * at_once) {
    const int64_t pairs = std::min(at_once, divided(tiles.count() - first, 2));
    const TilePanels left{static_cast<int32_t*>(of_outputs.mutable_data_ptr()), pairs, out_panels, stride};
    const TilePanels right{static_cast<int32_t*>(of_inputs.mutable_data_ptr()), pairs, in_panels, stride};
    torch::stable::parallel_for(0, pairs, 8, [&](int64_t begin, int64_t end) {
      transform_pairs<2>(tiles, first, begin, end, values_of(gradient), outputs, zeros.data(), left);
      transform_pairs<4>(tiles, first, begin, end, values_of(x), inputs, zeros.data(), right);
    });
    torch::stable::parallel_for(0, kPositions * out_panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        (first ? add_products<true> : add_products<false>)(left, right, i / out_panels, i % out_panels, sum);
      }
    });
  }
  for_weight_type(weight, [&](auto scalar) {
    const Weight<decltype(scalar)> to{static_cast<decltype(scalar)*>(dense.mutable_data_ptr()), outputs, inputs};
    torch::stable::parallel_for(0, outputs, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) write_weights(sum, position_stride, k, columns, to);
    });
  });
  if (dense.const_data_ptr() != result.const_data_ptr()) torch::stable::copy_(result, dense);
  return result;
}

#else

Tensor convolved(const Tensor& x, const Tensor&, bool, const std::optional<Tensor>&) { return x; }
Tensor weight_gradients(const Tensor&, const Tensor&, const Tensor& weight) { return weight; }

#endif

Tensor winograd_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_convolution(x, weight, bias);
  check_processor();
  return convolved(channels_last(x), channels_last(weight), false, bias);
}

Tensor input_gradient_cpu(const Tensor& gradient, const Tensor& weight) {
  check_input_gradient(gradient, weight);
  check_processor();
  return convolved(channels_last(gradient), channels_last(weight), true, std::nullopt);
}

Tensor weight_gradient_cpu(const Tensor& gradient, const Tensor& x, const Tensor& weight) {
  check_weight_gradient(gradient, x, weight);
  check_processor();
  return weight_gradients(channels_last(gradient), channels_last(x), weight);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("winograd", TORCH_BOX(&winograd_cpu));
  library.impl("winograd_input_gradient", TORCH_BOX(&input_gradient_cpu));
  library.impl("winograd_weight_gradient", TORCH_BOX(&weight_gradient_cpu));
}

}  // namespace tfkd_fast

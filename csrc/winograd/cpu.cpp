// 3x3 convolution in bfloat16 by Winograd's minimal filtering, F(2x2,3x3), and its gradients.
#include "../common/convolution.h"
#include "kernels.h"

namespace tfkd_fast {
namespace {

#if TFKD_HAS_BF16

using namespace winograd;

Tiles tiles_of(const Tensor& x) { return {x.size(0), x.size(2), x.size(3)}; }

// Memory of a thread that its calls use one after the other, from the beginning of a cache line on.
class Scratch {
 public:
  template <typename T>
  T* get(int64_t count) {
    memory_.resize(std::max<size_t>(memory_.size(), count * sizeof(T) + kLine));
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory_.data()) + kLine - 1) / kLine * kLine);
  }

 private:
  static constexpr size_t kLine = 64;
  std::vector<char> memory_;
};

// A convolution to compute: of x for the outputs, or turned, of the gradient of the outputs for that of the inputs.
struct Layer {
  Tiles tiles;
  const BFloat16* x;
  BFloat16* y;
  const Tensor& weight;
  bool turned;
  int64_t in_channels, out_channels, summed, panels;
  std::vector<float> bias;
  std::vector<BFloat16> zeros;
  int64_t tiles_at_once;

  int64_t blocks() const { return divided_up(tiles.count(), tiles_at_once); }
  int64_t first_tile(int64_t block) const { return block * tiles_at_once; }
  int64_t tiles_of(int64_t block) const { return std::min(tiles_at_once, tiles.count() - first_tile(block)); }
  int64_t block_size() const { return kPositions * InputBlock::stride_of(tiles_at_once, summed); }
  InputBlock block_in(BFloat16* memory) const { return {memory, summed, InputBlock::stride_of(tiles_at_once, summed)}; }

  void transform_weight(int64_t panel, const WeightPanel& to) const {
    for_weight_type(weight, [&](auto scalar) {
      const Weight<const decltype(scalar)> from{static_cast<const decltype(scalar)*>(weight.const_data_ptr()),
                                                weight.size(0), weight.size(1)};
      for (int64_t group = 0; group < summed / kGroup; ++group) {
        turned ? transform_turned_weights(from, panel, group, to) : transform_weights(from, panel, group, to);
      }
    });
  }
  void transform_inputs(int64_t block, const InputBlock& to) const {
    transform_input_block(tiles, first_tile(block), tiles_of(block), x, in_channels, zeros.data(), to);
  }
  void compute(int64_t block, const InputBlock& inputs, int64_t panel, const WeightPanel& weights) const {
    thread_local Scratch memory;
    float* products = memory.get<float>(kPositions * Products::stride_of(tiles_at_once));
    multiply_block(tiles_of(block), inputs, weights, products);
    write_outputs(tiles, first_tile(block), tiles_of(block), products, panel, bias.data(), y, out_channels);
  }
};

// All weights are transformed first, then each block of inputs when its turn comes.
void compute_by_blocks(const Layer& layer, const Tensor& like) {
  const int64_t size = WeightPanel::size_of(layer.summed);
  const Tensor transformed = new_contiguous(like, {layer.panels * size}, ScalarType::Int);
  auto* weights = static_cast<int32_t*>(transformed.mutable_data_ptr());
  const auto at = [&](int64_t panel) { return WeightPanel{weights + panel * size, layer.summed}; };
  torch::stable::parallel_for(0, layer.panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) layer.transform_weight(panel, at(panel));
  });
  torch::stable::parallel_for(0, layer.blocks(), 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch memory;
    const InputBlock inputs = layer.block_in(memory.get<BFloat16>(layer.block_size()));
    for (int64_t block = begin; block < end; ++block) {
      layer.transform_inputs(block, inputs);
      for (int64_t panel = 0; panel < layer.panels; ++panel) layer.compute(block, inputs, panel, at(panel));
    }
  });
}

// All inputs are transformed first, then each panel of weights when its turn comes.
void compute_by_panels(const Layer& layer, const Tensor& like) {
  const int64_t size = layer.block_size();
  const Tensor transformed = new_contiguous(like, {layer.blocks() * size}, ScalarType::BFloat16);
  auto* inputs = static_cast<BFloat16*>(transformed.mutable_data_ptr());
  const auto at = [&](int64_t block) { return layer.block_in(inputs + block * size); };
  torch::stable::parallel_for(0, layer.blocks(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) layer.transform_inputs(block, at(block));
  });
  torch::stable::parallel_for(0, layer.panels, 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch memory;
    const WeightPanel weights{memory.get<int32_t>(WeightPanel::size_of(layer.summed)), layer.summed};
    for (int64_t panel = begin; panel < end; ++panel) {
      layer.transform_weight(panel, weights);
      for (int64_t block = 0; block < layer.blocks(); ++block) layer.compute(block, at(block), panel, weights);
    }
  });
}

constexpr int64_t kMostTiles = 48;
constexpr int64_t kBlockBytes = 1 << 19;  // stays in the second-level cache beside products and a part of the weights

int64_t tiles_at_once(int64_t tiles, int64_t summed) {
  const int64_t fitting = kBlockBytes / (kPositions * summed * 2) / kRowsAtOnce * kRowsAtOnce;
  const int64_t most = std::clamp(fitting, kRowsAtOnce, kMostTiles);
  const int64_t blocks = rounded_up(divided_up(tiles, most), torch::stable::get_num_threads());
  return std::max<int64_t>(1, divided_up(tiles, blocks));
}

Tensor convolved(const Tensor& x, const Tensor& weight, bool turned, const std::optional<Tensor>& bias) {
  const int64_t in_channels = weight.size(turned ? 0 : 1), out_channels = weight.size(turned ? 1 : 0);
  const Tensor y = new_maps(x, out_channels);
  if (y.numel() == 0) return y;
  const int64_t summed = rounded_up(in_channels, kGroup), panels = divided_up(out_channels, kGroup);
  const Tiles tiles = tiles_of(x);
  const int64_t threads = torch::stable::get_num_threads();
  const bool whole_inputs = tiles.count() <= panels * kGroup && panels >= threads;  // they are smaller than the weights
  Layer layer{tiles,
              values_of(x),
              static_cast<BFloat16*>(y.mutable_data_ptr()),
              weight,
              turned,
              in_channels,
              out_channels,
              summed,
              panels,
              std::vector<float>(panels * kGroup),
              std::vector<BFloat16>(summed),
              whole_inputs ? std::min(kMostTiles, tiles.count()) : tiles_at_once(tiles.count(), summed)};
  if (bias) {
    const Tensor values = as_contiguous(torch::stable::to(*bias, ScalarType::Float));
    std::copy_n(static_cast<const float*>(values.const_data_ptr()), out_channels, layer.bias.data());
  }
  (whole_inputs ? compute_by_panels : compute_by_blocks)(layer, x);
  return y;
}

// The gradient of the weights is computed in blocks of outputs and inputs, each from all tiles, or, where a layer has
// few channels, from parts of them, which are added up at last. The parts are a matter of the shapes alone, and so is
// the order of the sums.
constexpr int64_t kMostOfBlock = 128;    // outputs, and inputs
constexpr int64_t kPairsAtOnce = 128;    // of tiles
constexpr int64_t kPartBytes = 1 << 21;  // of all parts
constexpr int64_t kMostParts = 16;

// The size of equal parts of at most `most`, in groups.
int64_t equal_part(int64_t channels, int64_t most) {
  return rounded_up(divided_up(channels, divided_up(channels, most)), kGroup);
}

Tensor weight_gradients(const Tensor& gradient, const Tensor& x, const Tensor& weight) {
  const Tiles tiles = tiles_of(x);
  Tensor result = torch::stable::empty_like(weight);
  if (tiles.count() == 0) return torch::stable::fill_(result, 0.0);
  const Tensor dense = channels_last(result);
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const int64_t pairs = divided_up(tiles.count(), 2), at_once = std::min(pairs, kPairsAtOnce);
  const int64_t bytes = kPositions * rounded_up(outputs, kGroup) * rounded_up(inputs, kGroup) * sizeof(float);
  const int64_t parts = std::clamp<int64_t>(kPartBytes / bytes, 1, std::min(kMostParts, divided_up(pairs, at_once)));
  int64_t block_outputs = equal_part(outputs, kMostOfBlock), block_inputs = equal_part(inputs, kMostOfBlock);
  const auto blocks_of = [&] { return divided_up(outputs, block_outputs) * divided_up(inputs, block_inputs); };
  while (blocks_of() * parts < torch::stable::get_num_threads() && std::max(block_outputs, block_inputs) > kGroup) {
    int64_t& larger = block_outputs > block_inputs ? block_outputs : block_inputs;
    larger = equal_part(larger, larger / 2);
  }
  const int64_t row = divided_up(inputs, block_inputs), blocks = blocks_of();
  const int64_t size = kPositions * block_outputs * block_inputs;
  const Tensor sums = new_contiguous(x, {parts > 1 ? blocks * parts * size : 0}, ScalarType::Float);
  const std::vector<BFloat16> zeros(rounded_up(std::max(outputs, inputs), kGroup));

  const auto write = [&](int64_t block, const float* from) {
    for_weight_type(weight, [&](auto scalar) {
      const Weight<decltype(scalar)> to{static_cast<decltype(scalar)*>(dense.mutable_data_ptr()), outputs, inputs};
      write_weights(from, parts, size, block_outputs, block_inputs, block / row * block_outputs,
                    block % row * block_inputs, to);
    });
  };
  torch::stable::parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch left_memory, right_memory, sum_memory;
    auto* left = left_memory.get<int32_t>(TilePanels::size_of(at_once, block_outputs / kGroup));
    auto* right = right_memory.get<int32_t>(TilePanels::size_of(at_once, block_inputs / kGroup));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / parts, part = task % parts;
      const Maps of_outputs{values_of(gradient), outputs, block / row * block_outputs};
      const Maps of_inputs{values_of(x), inputs, block % row * block_inputs};
      float* sum = parts > 1 ? static_cast<float*>(sums.mutable_data_ptr()) + task * size : sum_memory.get<float>(size);
      const int64_t from = pairs * part / parts, until = pairs * (part + 1) / parts;
      for (int64_t first = from; first < until; first += at_once) {
        const int64_t count = std::min(at_once, until - first);
        const TilePanels a{left, count, block_outputs / kGroup}, b{right, count, block_inputs / kGroup};
        transform_pairs<2>(tiles, first, of_outputs, zeros.data(), a);
        transform_pairs<4>(tiles, first, of_inputs, zeros.data(), b);
        (first > from ? add_products<true> : add_products<false>)(a, b, sum);
      }
      if (parts == 1) write(block, sum);
    }
  });
  if (parts > 1) {
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        write(block, static_cast<const float*>(sums.const_data_ptr()) + block * parts * size);
      }
    });
  }
  if (dense.const_data_ptr() != result.const_data_ptr()) torch::stable::copy_(result, dense);
  return result;
}

#else

Tensor convolved(const Tensor& x, const Tensor&, bool, const std::optional<Tensor>&) { return x; }
Tensor weight_gradients(const Tensor&, const Tensor&, const Tensor& weight) { return weight; }

#endif

Tensor winograd_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_convolution(x, weight, bias);
  check_bf16("winograd");
  return convolved(channels_last(x), channels_last(weight), false, bias);
}

Tensor input_gradient_cpu(const Tensor& gradient, const Tensor& weight) {
  check_input_gradient(gradient, weight);
  check_bf16("winograd");
  return convolved(channels_last(gradient), channels_last(weight), true, std::nullopt);
}

Tensor weight_gradient_cpu(const Tensor& gradient, const Tensor& x, const Tensor& weight) {
  check_weight_gradient(gradient, x, weight);
  check_bf16("winograd");
  return weight_gradients(channels_last(gradient), channels_last(x), weight);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("winograd", TORCH_BOX(&winograd_cpu));
  library.impl("winograd_input_gradient", TORCH_BOX(&input_gradient_cpu));
  library.impl("winograd_weight_gradient", TORCH_BOX(&weight_gradient_cpu));
}

}  // namespace tfkd_fast

// One update of stochastic gradient descent with momentum, in one pass over memory: torch makes four.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>

#include "../common/vector_math.h"

namespace tfkd_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kElementsPerTask = 1 << 15;

struct Settings {
  float rate, decay, factor;
};

template <bool kNesterov>
TFKD_FOR_EVERY_VECTOR_WIDTH void update(float* __restrict weight, const float* __restrict gradient,
                                        float* __restrict momentum, int64_t count, const Settings& set) {
  const float rate = set.rate, decay = set.decay, factor = set.factor;
  for (int64_t i = 0; i < count; ++i) {
    const float direction = gradient[i] + decay * weight[i];
    const float sum = factor * momentum[i] + direction;
    momentum[i] = sum;
    weight[i] -= rate * (kNesterov ? direction + factor * sum : sum);
  }
}

bool same_memory_layout(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), others = b.sizes();
  const auto strides = a.strides(), other_strides = b.strides();
  return std::equal(sizes.begin(), sizes.end(), others.begin(), others.end()) &&
         std::equal(strides.begin(), strides.end(), other_strides.begin(), other_strides.end());
}

// Without gaps: the last element is as far from the first as there are elements.
bool is_dense(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) last += (tensor.size(axis) - 1) * tensor.stride(axis);
  return tensor.numel() == 0 || last == tensor.numel() - 1;
}

void sgd_step_cpu(Tensor weight, const Tensor& gradient, Tensor momentum, double rate, double decay, double factor,
                  bool nesterov) {
  for (const Tensor& tensor : {weight, gradient, momentum}) {
    STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, "weight, gradient and momentum must be float32");
    STD_TORCH_CHECK(same_memory_layout(tensor, weight), "weight, gradient and momentum must lie in memory alike");
  }
  STD_TORCH_CHECK(is_dense(weight), "weight must have no gaps in memory");
  const Settings set{static_cast<float>(rate), static_cast<float>(decay), static_cast<float>(factor)};
  auto* w = static_cast<float*>(weight.mutable_data_ptr());
  auto* m = static_cast<float*>(momentum.mutable_data_ptr());
  const auto* g = static_cast<const float*>(gradient.const_data_ptr());
  torch::stable::parallel_for(0, weight.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
    (nesterov ? update<true> : update<false>)(w + begin, g + begin, m + begin, end - begin, set);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("sgd_step", TORCH_BOX(&sgd_step_cpu)); }

}  // namespace tfkd_fast

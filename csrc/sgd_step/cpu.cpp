// One update of all weights by stochastic gradient descent with momentum, in one pass over memory: torch makes four.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/vector_math.h"

namespace tfkd_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kNumbersPerTask = 1 << 15;

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

// Of axes with one place the stride does not matter.
bool same_memory_layout(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t axis = 0; axis < a.dim(); ++axis) {
    if (a.size(axis) != b.size(axis) || (a.size(axis) > 1 && a.stride(axis) != b.stride(axis))) return false;
  }
  return true;
}

// Without gaps: the last element is as far from the first as there are elements.
bool is_dense(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) last += (tensor.size(axis) - 1) * tensor.stride(axis);
  return tensor.numel() == 0 || last == tensor.numel() - 1;
}

void check(const Tensor& weight, const Tensor& gradient, const Tensor& momentum) {
  for (const Tensor* tensor : {&weight, &gradient, &momentum}) {
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Float, "weight, gradient and momentum must be float32");
    STD_TORCH_CHECK(tensor->is_cpu(), "weight, gradient and momentum must be on the CPU");
    STD_TORCH_CHECK(same_memory_layout(*tensor, weight), "weight, gradient and momentum must lie in memory alike");
  }
  STD_TORCH_CHECK(is_dense(weight), "weight must have no gaps in memory");
  STD_TORCH_CHECK(weight.numel() == 0 || weight.const_data_ptr() != momentum.const_data_ptr(),
                  "momentum must be another tensor than weight: both are written to");
}

// The numbers of one weight, which are `first` and those after it among the numbers of all weights.
struct Numbers {
  int64_t first, count;
  float *weight, *momentum;
  const float* gradient;
};

// Nothing is written before all is checked.
void sgd_steps_cpu(std::vector<Tensor> weights, std::vector<Tensor> gradients, std::vector<Tensor> momenta, double rate,
                   double decay, double factor, bool nesterov) {
  STD_TORCH_CHECK(weights.size() == gradients.size() && weights.size() == momenta.size(),
                  "there must be as many weights as gradients and momenta");
  std::vector<Numbers> all;
  int64_t total = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    check(weights[i], gradients[i], momenta[i]);
    const int64_t count = weights[i].numel();
    all.push_back({total, count, static_cast<float*>(weights[i].mutable_data_ptr()),
                   static_cast<float*>(momenta[i].mutable_data_ptr()),
                   static_cast<const float*>(gradients[i].const_data_ptr())});
    total += count;
  }
  const Settings set{static_cast<float>(rate), static_cast<float>(decay), static_cast<float>(factor)};
  torch::stable::parallel_for(0, total, kNumbersPerTask, [&](int64_t begin, int64_t end) {
    for (const Numbers& one : all) {
      const int64_t from = std::max(begin - one.first, int64_t{0}), to = std::min(end - one.first, one.count);
      if (from >= to) continue;
      (nesterov ? update<true> : update<false>)(one.weight + from, one.gradient + from, one.momentum + from, to - from,
                                                set);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("sgd_steps", TORCH_BOX(&sgd_steps_cpu)); }

}  // namespace tfkd_fast

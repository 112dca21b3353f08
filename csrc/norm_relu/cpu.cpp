// Batch norm with running statistics, then ReLU, in one pass over maps in bfloat16, for inference.

#include "../common/bfloat16.h"
#include "../common/convolution.h"

#include <cmath>

namespace tfkd_fast {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 14;

TFKD_FOR_EVERY_VECTOR_WIDTH void apply(const uint16_t* __restrict maps, int64_t positions, int64_t channels,
                                       const float* __restrict scale, const float* __restrict shift,
                                       uint16_t* __restrict out) {
  for (int64_t i = 0; i < positions; ++i, maps += channels, out += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = nearest_bfloat16(largest(widened(maps[c]) * scale[c] + shift[c], 0.0f));
    }
  }
}

Tensor norm_relu_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& var,
                     double eps) {
  check_maps("x", x);
  const int64_t channels = x.size(1);
  for (const Tensor* tensor : {&weight, &bias, &mean, &var}) {
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Float && has_shape(*tensor, {channels}) &&
                        (channels == 1 || tensor->stride(0) == 1),
                    "weight, bias, mean and var must be (C,) of float32, contiguous");
  }
  const auto numbers = [](const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); };
  std::vector<float> scale(channels), shift(channels);
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] = numbers(weight)[c] / std::sqrt(numbers(var)[c] + static_cast<float>(eps));
    shift[c] = numbers(bias)[c] - numbers(mean)[c] * scale[c];
  }
  const Tensor maps = channels_last(x);
  const auto* values = reinterpret_cast<const uint16_t*>(values_of(maps));
  Tensor result = new_maps(x, channels);
  auto* out = static_cast<uint16_t*>(result.mutable_data_ptr());
  const int64_t positions = x.size(0) * x.size(2) * x.size(3);
  const int64_t positions_of_task = std::max<int64_t>(1, kNumbersPerTask / channels);
  torch::stable::parallel_for(0, positions, positions_of_task, [&](int64_t begin, int64_t end) {
    apply(values + begin * channels, end - begin, channels, scale.data(), shift.data(), out + begin * channels);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("norm_relu", TORCH_BOX(&norm_relu_cpu)); }

}  // namespace tfkd_fast

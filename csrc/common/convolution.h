// What the convolutions of the processor have in common: maps in bfloat16, results channels last, and the checks of
// those that keep the size of maps but for the stride. Python has checked the arguments for people; these checks keep a
// direct call from reading foreign memory.
#pragma once

#include "arguments.h"

#include <torch/csrc/stable/library.h>

namespace tfkd_fast {

inline const BFloat16* values_of(const Tensor& tensor) { return static_cast<const BFloat16*>(tensor.const_data_ptr()); }

inline Tensor channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

// Uninitialised (B,channels,height,width), channels last, for the batch of `like`.
inline Tensor new_maps(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  return torch::stable::empty(std::vector<int64_t>{like.size(0), channels, height, width}, ScalarType::BFloat16,
                              std::nullopt, like.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
}

// Of the size of `like`.
inline Tensor new_maps(const Tensor& like, int64_t channels) {
  return new_maps(like, channels, like.size(2), like.size(3));
}

// Calls f(scalar{}) with the type of the weight.
template <typename Function>
void for_weight_type(const Tensor& weight, Function f) {
  weight.scalar_type() == ScalarType::Float ? f(float{}) : f(BFloat16{});
}

inline void check_maps(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.scalar_type() == ScalarType::BFloat16 && tensor.size(1) > 0 &&
                      tensor.size(2) > 0 && tensor.size(3) > 0,
                  name, " must be (B,channels,H,W) of bfloat16 with a channel and a pixel");
}

// The kernels that an algorithm computes.
enum class Kernels { k3x3, k3x3Or1x1 };

inline void check_weight(const Tensor& weight, Kernels kernels) {
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float || weight.scalar_type() == ScalarType::BFloat16,
                  "weight must be float32 or bfloat16");
  const bool pointwise = kernels == Kernels::k3x3Or1x1;
  STD_TORCH_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.size(2) == weight.size(3) &&
                      (weight.size(2) == 3 || (pointwise && weight.size(2) == 1)),
                  "weight must be (K,C,3,3)", pointwise ? " or (K,C,1,1)" : "");
}

inline void check_convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                              Kernels kernels = Kernels::k3x3) {
  check_maps("x", x);
  check_weight(weight, kernels);
  STD_TORCH_CHECK(x.size(1) == weight.size(1), "x must have the input channels of the weight");
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == weight.scalar_type() && has_shape(*bias, {weight.size(0)})),
                  "bias does not fit the weight");
}

inline void check_input_gradient(const Tensor& gradient, const Tensor& weight, Kernels kernels = Kernels::k3x3) {
  check_maps("gradient", gradient);
  check_weight(weight, kernels);
  STD_TORCH_CHECK(gradient.size(1) == weight.size(0), "gradient must have the output channels of the weight");
}

inline void check_weight_gradient(const Tensor& gradient, const Tensor& x, const Tensor& weight,
                                  Kernels kernels = Kernels::k3x3, int64_t stride = 1) {
  check_maps("gradient", gradient);
  check_maps("x", x);
  check_weight(weight, kernels);
  const int64_t height = (x.size(2) - 1) / stride + 1, width = (x.size(3) - 1) / stride + 1;
  STD_TORCH_CHECK(has_shape(gradient, {x.size(0), weight.size(0), height, width}) && x.size(1) == weight.size(1),
                  "gradient and x do not fit the weight");
}

}  // namespace tfkd_fast

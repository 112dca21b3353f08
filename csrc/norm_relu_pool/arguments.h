// What norm_relu_pool checks of its arguments on every device, so that a direct call reads no foreign memory.
#pragma once

#include "../common/arguments.h"

#include <vector>

namespace tfkd_fast {

// Strides of channels-last images.
inline std::vector<int64_t> channels_last(int64_t channels, int64_t height, int64_t width) {
  return {height * width * channels, 1, width * channels, channels};
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

// `x` itself, whose windows have sides of 1 or 2 positions.
inline void check_has_window(const Tensor& x, int64_t side) {
  STD_TORCH_CHECK(x.dim() == 4, "x must be (B,C,H,W)");
  STD_TORCH_CHECK(x.size(1) > 0 && x.size(2) >= side && x.size(3) >= side, "x has no window");
}

inline void check_images(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape, ScalarType type) {
  STD_TORCH_CHECK(tensor.scalar_type() == type && has_shape(tensor, shape), name, " does not fit x");
  const auto strides = channels_last(shape[1], shape[2], shape[3]);
  for (size_t axis = 0; axis < shape.size() && tensor.numel() > 0; ++axis) {
    STD_TORCH_CHECK(shape[axis] == 1 || tensor.stride(axis) == strides[axis], name, " must be channels-last");
  }
}

inline void check_numbers(const char* name, const Tensor& numbers, const Tensor& x) {
  STD_TORCH_CHECK(numbers.scalar_type() == loss_type(x) && has_shape(numbers, {x.size(1)}), name, " does not fit x");
  check_device(name, numbers, "x", x);
}

inline void check_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& running_mean,
                          const Tensor& running_var, bool pool, const std::optional<Tensor>& residual) {
  check_has_window(x, pool ? 2 : 1);
  check_images("x", x, shape_of(x), x.scalar_type());
  check_numbers("weight", weight, x);
  check_numbers("bias", bias, x);
  check_numbers("running_mean", running_mean, x);
  check_numbers("running_var", running_var, x);
  STD_TORCH_CHECK(!residual || !pool, "residual and pool exclude each other");
  if (!residual) return;
  check_images("residual", *residual, shape_of(x), x.scalar_type());
  check_device("residual", *residual, "x", x);
}

inline void check_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight, const Tensor& places,
                           const Tensor& mean, const Tensor& invstd, bool pool, bool residual) {
  const int64_t side = pool ? 2 : 1;
  check_has_window(x, side);
  check_images("x", x, shape_of(x), x.scalar_type());
  check_images("gradient", gradient, {x.size(0), x.size(1), x.size(2) / side, x.size(3) / side}, x.scalar_type());
  check_device("gradient", gradient, "x", x);
  check_numbers("weight", weight, x);
  check_numbers("mean", mean, x);
  check_numbers("invstd", invstd, x);
  STD_TORCH_CHECK(places.scalar_type() == ScalarType::Byte && places.is_contiguous(), "places does not fit x");
  check_device("places", places, "x", x);
  STD_TORCH_CHECK(!residual || !pool, "residual and pool exclude each other");
}

}  // namespace tfkd_fast

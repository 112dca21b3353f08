// The arguments that the losses have in common. Python has checked them for people; these checks keep a direct call of
// an operator from reading foreign memory.
#pragma once

#include "shim.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace tfkd_fast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type that is computed in, for numbers that are stored in the type `scalar`.
template <typename scalar>
using Computed = std::conditional_t<std::is_same_v<scalar, double>, double, float>;

// Calls f(scalar{}) for a type of `name`, an argument.
template <typename Function>
auto for_scalar_of(ScalarType type, const char* name, Function f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      throw std::runtime_error(std::string(name) + " must be float32, float64, float16 or bfloat16");
  }
}

// Of logits (B,C) or (P,B,C).
struct Axes {
  bool with_candidates;
  int64_t candidates, batch, classes;

  int64_t rows() const { return candidates * batch; }

  // () or (P,), followed by `own`.
  std::vector<int64_t> shape(std::vector<int64_t> own = {}) const {
    if (with_candidates) own.insert(own.begin(), candidates);
    return own;
  }
};

inline Axes axes_of(const Tensor& logits) {
  const int64_t axes = logits.dim();
  STD_TORCH_CHECK(axes == 2 || axes == 3, "logits must be (B,C) or (P,B,C)");
  STD_TORCH_CHECK(logits.size(axes - 1) > 0, "logits must have a class");
  return {axes == 3, axes == 3 ? logits.size(0) : 1, logits.size(axes - 2), logits.size(axes - 1)};
}

inline ScalarType loss_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool has_shape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  const auto sizes = tensor.sizes();
  return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

// `shape`, or one of it a candidate.
inline void check_shape(const char* name, const Tensor& tensor, ScalarType type, const Axes& axes,
                        const std::vector<int64_t>& shape) {
  STD_TORCH_CHECK(tensor.scalar_type() == type && (has_shape(tensor, shape) || has_shape(tensor, axes.shape(shape))),
                  name, " does not fit the logits");
}

// A kernel would read the memory of another device, or the host's, as its own. `owner` is the name of `main`, such as
// "the logits".
inline void check_device(const char* name, const Tensor& tensor, const char* owner, const Tensor& main) {
  STD_TORCH_CHECK(tensor.device() == main.device(), name, " must be on the device of ", owner);
}

inline void check_reduction(const std::string& reduction) {
  STD_TORCH_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none", "no such reduction: ", reduction);
}

// Whether a tensor that passed `check_shape` has a value of its own for each candidate.
inline bool has_candidates(const Tensor& tensor, int64_t own_axes) { return tensor.dim() > own_axes; }

// The calls below are on the way of every step at small sizes: going through torch's dispatcher would cost 1 us each.

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Uninitialised, on the device of `like`.
inline Tensor new_strided(const Tensor& like, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                          ScalarType type) {
  int32_t device_type = 0;
  TFKD_CHECK_SHIM(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TFKD_CHECK_SHIM(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                           static_cast<int32_t>(type), device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0; stride *= shape[axis]) strides[axis] = stride;
  return strides;
}

inline Tensor new_contiguous(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return new_strided(like, shape, contiguous_strides(shape), type);
}

inline Tensor empty_loss(const Tensor& logits, const Axes& axes, const std::string& reduction) {
  return new_contiguous(logits, reduction == "none" ? axes.shape({axes.batch}) : axes.shape(), loss_type(logits));
}

}  // namespace tfkd_fast

// Convolutions in bfloat16 by the pair products of AVX512-BF16, 3x3 and 1x1, of stride 1 and 2, and their gradients,
// from the maps as they lie. Maps keep their size, but for the stride, and each result is rounded once. The definition
// is torch's convolution.

#include "maps.h"
#include "weight_gradient.h"

namespace tfkd_fast {
namespace {

#if TFKD_HAS_BF16

// Calls f(taps, stride) with constants.
template <typename Function>
Tensor for_kernel(const Tensor& weight, int64_t stride, Function f) {
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, 2> kTwo;
  constexpr std::integral_constant<int, 3> kThree;
  if (weight.size(2) == 1) return stride == 1 ? f(kOne, kOne) : f(kOne, kTwo);
  return stride == 1 ? f(kThree, kOne) : f(kThree, kTwo);
}

Tensor convolved(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride) {
  return for_kernel(weight, stride, [&](auto taps, auto step) {
    return direct::maps_from<direct::Gathered<taps(), step()>>(x, weight, bias, false);
  });
}

Tensor input_gradient(const Tensor& gradient, const Tensor& weight, int64_t stride) {
  return for_kernel(weight, stride, [&](auto taps, auto step) {
    using Direction = std::conditional_t<step() == 1, direct::Gathered<taps(), 1>, direct::Scattered<taps(), step()>>;
    return direct::maps_from<Direction>(gradient, weight, std::nullopt, true);
  });
}

Tensor weight_gradient(const Tensor& gradient, const Tensor& x, const Tensor& weight, int64_t stride) {
  return direct::weight_gradient_from(gradient, x, weight, stride);
}

#else

Tensor convolved(const Tensor& x, const Tensor&, const std::optional<Tensor>&, int64_t) { return x; }
Tensor input_gradient(const Tensor& gradient, const Tensor&, int64_t) { return gradient; }
Tensor weight_gradient(const Tensor&, const Tensor&, const Tensor& weight, int64_t) { return weight; }

#endif

void check_service(int64_t stride) {
  check_bf16("direct");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2");
}

Tensor direct_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride) {
  check_service(stride);
  check_convolution(x, weight, bias, Kernels::k3x3Or1x1);
  return convolved(x, weight, bias, stride);
}

Tensor input_gradient_cpu(const Tensor& gradient, const Tensor& weight, int64_t stride) {
  check_service(stride);
  check_input_gradient(gradient, weight, Kernels::k3x3Or1x1);
  return input_gradient(gradient, weight, stride);
}

Tensor weight_gradient_cpu(const Tensor& gradient, const Tensor& x, const Tensor& weight, int64_t stride) {
  check_service(stride);
  check_weight_gradient(gradient, x, weight, Kernels::k3x3Or1x1, stride);
  return weight_gradient(gradient, x, weight, stride);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("direct", TORCH_BOX(&direct_cpu));
  library.impl("direct_input_gradient", TORCH_BOX(&input_gradient_cpu));
  library.impl("direct_weight_gradient", TORCH_BOX(&weight_gradient_cpu));
}

}  // namespace tfkd_fast

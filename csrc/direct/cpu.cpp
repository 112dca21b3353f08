// Convolutions in bfloat16 by the pair products of AVX512-BF16, 3x3 and 1x1, of stride 1 and 2, and their gradients,
// from the maps as they lie. Maps keep their size, but for the stride. The definition is torch's convolution.
//
// Such a product adds to each of 16 sums in float32 two products of bfloat16. Each result is rounded once.

#include "maps.h"
#include "weight_gradient.h"

namespace tfkd_fast {
namespace {

#if TFKD_HAS_PAIR_PRODUCTS

bool serves() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
}

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

bool serves() { return false; }
Tensor convolved(const Tensor& x, const Tensor&, const std::optional<Tensor>&, int64_t) { return x; }
Tensor input_gradient(const Tensor& gradient, const Tensor&, int64_t) { return gradient; }
Tensor weight_gradient(const Tensor&, const Tensor&, const Tensor& weight, int64_t) { return weight; }

#endif

void check_kernel(const Tensor& weight, int64_t stride) {
  STD_TORCH_CHECK(serves(), "direct needs a processor with AVX512-BF16");
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float || weight.scalar_type() == ScalarType::BFloat16,
                  "weight must be float32 or bfloat16");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.size(2) == weight.size(3) &&
                      (weight.size(2) == 1 || weight.size(2) == 3),
                  "weight must be (K,C,3,3) or (K,C,1,1)");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2");
}

Tensor direct_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride) {
  check_maps("x", x);
  check_kernel(weight, stride);
  STD_TORCH_CHECK(x.size(1) == weight.size(1), "x must have the input channels of the weight");
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == weight.scalar_type() && has_shape(*bias, {weight.size(0)})),
                  "bias does not fit the weight");
  return convolved(x, weight, bias, stride);
}

Tensor input_gradient_cpu(const Tensor& gradient, const Tensor& weight, int64_t stride) {
  check_maps("gradient", gradient);
  check_kernel(weight, stride);
  STD_TORCH_CHECK(gradient.size(1) == weight.size(0), "gradient must have the output channels of the weight");
  return input_gradient(gradient, weight, stride);
}

Tensor weight_gradient_cpu(const Tensor& gradient, const Tensor& x, const Tensor& weight, int64_t stride) {
  check_maps("gradient", gradient);
  check_maps("x", x);
  check_kernel(weight, stride);
  const int64_t height = (x.size(2) - 1) / stride + 1, width = (x.size(3) - 1) / stride + 1;
  STD_TORCH_CHECK(has_shape(gradient, {x.size(0), weight.size(0), height, width}) && x.size(1) == weight.size(1),
                  "gradient and x do not fit the weight");
  return weight_gradient(gradient, x, weight, stride);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("direct", TORCH_BOX(&direct_cpu));
  library.impl("direct_input_gradient", TORCH_BOX(&input_gradient_cpu));
  library.impl("direct_weight_gradient", TORCH_BOX(&weight_gradient_cpu));
}

}  // namespace tfkd_fast

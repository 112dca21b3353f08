// The numbers of a loss on the device. Exponents and logarithms are to the base 2: exp2f is one instruction of the
// hardware where expf is several.
#pragma once

#include "../device.cuh"

#include <limits>

namespace tfkd_fast {

template <typename T>
constexpr T kLog2E = T(1.4426950408889634);
template <typename T>
constexpr T kLn2 = T(0.6931471805599453);
template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// The hardware's instructions alone, where exp2f and log2f add three for subnormal numbers, a fifth of all arithmetic
// of the kernels below. 2^x has a relative error below 2^-22 and is 0 where it would be subnormal; log2 x is off by
// less than 2^-22 for x in (1/2, 2) and relatively elsewhere. A target q thus adds up to 2^-22 ln(2) q T^2 = 1.7e-7 q
// T^2 to the error of a loss, less than the rounding of the exponents does. The instruction takes a subnormal x for 0;
// its logarithm is given as -127, so that q log2 q stays finite. On the processor the same happens.
__device__ __forceinline__ float power_of_2(float x) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  const float result = exp2f(x);
  return result < std::numeric_limits<float>::min() ? 0.0f : result;
#endif
}
__device__ __forceinline__ float quick_log_2(float x) {
  float result;
#ifdef __CUDA_ARCH__
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
#else
  result = log2f(x < std::numeric_limits<float>::min() ? 0.0f : x);
#endif
  return fmaxf(result, -127.0f);
}
__device__ __forceinline__ double power_of_2(double x) { return exp2(x); }
__device__ __forceinline__ double quick_log_2(double x) { return log2(x); }
__device__ __forceinline__ float log_2(float x) { return log2f(x); }
__device__ __forceinline__ double log_2(double x) { return log2(x); }
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// weight * value, where a weight of 0 takes away infinity and NaN.
template <typename T>
__device__ __forceinline__ T weighted(T weight, T value) {
  return weight == T(0) ? T(0) : weight * value;
}

// Exponents (logit - highest) / temperature to the base 2. The rounding of `shift` moves all of a row alike, which the
// softmax does not notice.
template <typename T>
struct Exponent {
  T scale, shift;
  __device__ Exponent(T highest, T temperature) : scale(kLog2E<T> / temperature), shift(-highest * scale) {}
  __device__ __forceinline__ T operator()(T logit) const { return multiply_add(logit, scale, shift); }
};

}  // namespace tfkd_fast

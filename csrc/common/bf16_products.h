// Products of pairs of bfloat16, for convolutions: such a product adds to each of 16 sums in float32 two products of
// bfloat16. `TFKD_HAS_BF16` says whether the compiler can be asked for AVX512-BF16, which has them, and the function
// `check_bf16` whether the processor has it.
#pragma once

#include "arguments.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && (defined(__clang__) || __GNUC__ >= 11)
#include <immintrin.h>
#define TFKD_HAS_BF16 1
// No lambdas in such functions: they would be compiled without these instructions.
#define TFKD_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define TFKD_BF16_INLINE inline __attribute__((always_inline, target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#else
#define TFKD_HAS_BF16 0
#endif

namespace tfkd_fast {

inline void check_bf16(const char* algorithm) {
#if TFKD_HAS_BF16
  static const bool serves = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  constexpr bool serves = false;
#endif
  STD_TORCH_CHECK(serves, algorithm, " needs a processor with AVX512-BF16");
}

constexpr int64_t kLanes = 16;  // pairs, or sums, in a vector

constexpr int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t rounded_up(int64_t a, int64_t b) { return divided_up(a, b) * b; }

}  // namespace tfkd_fast

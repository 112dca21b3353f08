// CUDA for a C++ compiler, as far as csrc/*/cuda.cu use it: the kernels then run on the processor, which is how they
// are tested on machines without a GPU.
#pragma once

#include <link.h>

#include <bit>
#include <cassert>
#include <cmath>
#include <map>
#include <mutex>
#include <type_traits>

#include "block.h"

// The language.

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ thread_local  // nothing else is: this makes a block's memory one range, to be filled with garbage

// C declares it as a function that throws nothing.
#define __assert_fail(condition, file, line, function) cuda_on_host::assertion_failed(condition, file, line)

using std::max;
using std::min;

struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(16) double2 {
  double x, y;
};
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(8) int2 {
  int x, y;
};
struct __align__(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

// Threads that work together.

inline void __syncthreads(cuda_on_host::Where where = cuda_on_host::Where::current()) {
  cuda_on_host::Block::current_block->barrier(where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace cuda_on_host {

inline unsigned ballot(const char* operation, unsigned mask, bool vote, Where where) {
  return static_cast<unsigned>(Block::current_block->collective(operation, mask, -1, vote, where));
}

template <typename T>
T shuffle(const char* operation, unsigned mask, T value, int source, Where where) {
  static_assert(std::is_arithmetic_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = Block::current_block->collective(operation, mask, source, bits, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline int lane() { return Block::current_block->lane(); }

}  // namespace cuda_on_host

#define WHERE cuda_on_host::Where where = cuda_on_host::Where::current()
inline void __syncwarp(unsigned mask = 0xffffffffu, WHERE) { cuda_on_host::ballot("__syncwarp", mask, true, where); }
inline unsigned __ballot_sync(unsigned mask, int vote, WHERE) {
  return cuda_on_host::ballot("__ballot_sync", mask, vote != 0, where);
}
inline int __any_sync(unsigned mask, int vote, WHERE) {
  return cuda_on_host::ballot("__any_sync", mask, vote != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int vote, WHERE) {
  return cuda_on_host::ballot("__all_sync", mask, vote != 0, where) == mask;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, WHERE) {
  const int first = cuda_on_host::lane() & -width;
  return cuda_on_host::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)), where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, WHERE) {
  const int lane = cuda_on_host::lane(), source = lane - static_cast<int>(delta), first = lane & -width;
  return cuda_on_host::shuffle("__shfl_up_sync", mask, value, source < first ? lane : source, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, WHERE) {
  const int lane = cuda_on_host::lane(), source = lane + static_cast<int>(delta), last = (lane & -width) + width - 1;
  return cuda_on_host::shuffle("__shfl_down_sync", mask, value, source > last ? lane : source, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, WHERE) {
  const int lane = cuda_on_host::lane(), source = lane ^ bits, last = (lane & -width) + width - 1;
  return cuda_on_host::shuffle("__shfl_xor_sync", mask, value, source > last ? lane : source, where);
}
#undef WHERE

// Only one thread runs at a time.
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  const T before = *address;
  *address = before + value;
  return before;
}

// Arithmetic. The fast functions round as often as the device does.

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline float __expf(float x) { return exp2f(x * 1.4426950408889634f); }
inline float __logf(float x) { return log2f(x) * 0.6931471805599453f; }
inline float __log2f(float x) { return log2f(x); }
inline float __fdividef(float a, float b) { return std::abs(b) > 0x1p126f && std::isfinite(b) ? a * 0.0f : a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

// The runtime: a device with little of everything, so that large cases of a kernel are met early.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace cuda_on_host {

// Dynamic shared memory. Without a request 48 KB, but the static, of which little is known here, counts too.
constexpr size_t kSharedBytes = 227 * 1024, kSharedBytesWithoutRequest = 44 * 1024;
constexpr int kMultiprocessors = 4;
constexpr unsigned char kGarbage = 0xff;               // NaN in every floating-point format
inline std::map<const void*, size_t> requested_bytes;  // by kernel
inline std::mutex one_grid_at_a_time;

}  // namespace cuda_on_host

// What `extern __shared__ __align__(16) unsigned char dynamic_shared[]` means in a kernel of namespace tfkd_fast, and
// in one of its unnamed namespace.
namespace tfkd_fast {

constexpr size_t kMargin = 1024;  // behind it
__align__(128) thread_local unsigned char dynamic_shared[cuda_on_host::kSharedBytes + kMargin];

namespace {

extern thread_local unsigned char dynamic_shared[sizeof(tfkd_fast::dynamic_shared)]
    __attribute__((alias("_ZN9tfkd_fast14dynamic_sharedE")));

}  // namespace
}  // namespace tfkd_fast

namespace cuda_on_host {

using tfkd_fast::dynamic_shared;

// The shared memory of a block that asked for `bytes` of the dynamic: all thread-local variables of this library.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes) : bytes_(bytes) {
    dynamic_shared[0] = kGarbage;  // the range exists once it has been used
    dl_iterate_phdr(fill, nullptr);
  }

  void check() const {
    const auto* beyond = dynamic_shared + bytes_;
    if (!std::all_of(beyond, beyond + tfkd_fast::kMargin, [](unsigned char byte) { return byte == kGarbage; })) {
      throw std::runtime_error("a block wrote beyond its " + std::to_string(bytes_) +
                               " bytes of dynamic shared memory");
    }
  }

 private:
  static int fill(dl_phdr_info* library, size_t, void*) {
    bool ours = false;
    size_t bytes = 0;
    for (int i = 0; i < library->dlpi_phnum; ++i) {
      const auto& part = library->dlpi_phdr[i];
      const auto offset = reinterpret_cast<uintptr_t>(&requested_bytes) - library->dlpi_addr - part.p_vaddr;
      ours |= part.p_type == PT_LOAD && offset < part.p_memsz;
      if (part.p_type == PT_TLS) bytes = part.p_memsz;
    }
    if (ours) std::memset(library->dlpi_tls_data, kGarbage, bytes);
    return ours;
  }

  size_t bytes_;
};

}  // namespace cuda_on_host

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > cuda_on_host::kSharedBytes) return cudaErrorInvalidValue;
  const std::lock_guard lock(cuda_on_host::one_grid_at_a_time);
  cuda_on_host::requested_bytes[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = cuda_on_host::kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = cuda_on_host::kSharedBytes + 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = cuda_on_host::kSharedBytes;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

// How many kernels this library has launched.
extern "C" __attribute__((visibility("default"), used)) inline int64_t cuda_on_host_launches = 0;

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::lock_guard lock(cuda_on_host::one_grid_at_a_time);
  const dim3 grid = config->gridDim, block = config->blockDim;
  const auto threads = uint64_t{1} * block.x * block.y * block.z, blocks = uint64_t{1} * grid.x * grid.y * grid.z;
  if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 0xffffu || grid.z > 0xffffu) return cudaErrorInvalidConfiguration;
  if (threads == 0 || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  const size_t bytes = config->dynamicSmemBytes;
  const auto requested = cuda_on_host::requested_bytes.find(reinterpret_cast<const void*>(kernel));
  if (bytes > (requested == cuda_on_host::requested_bytes.end() ? cuda_on_host::kSharedBytesWithoutRequest
                                                                : requested->second)) {
    return cudaErrorInvalidValue;
  }
  ++cuda_on_host_launches;
  gridDim = grid, blockDim = block;
  static cuda_on_host::Block runner;
  cuda_on_host::Order order;
  const std::function<void()> thread = [&] { kernel(Parameters(arguments)...); };
  for (const int64_t i : order.of(static_cast<int64_t>(blocks))) {
    const auto b = static_cast<uint64_t>(i);
    const uint3 index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                         static_cast<unsigned>(b / grid.x / grid.y)};
    const cuda_on_host::SharedMemory shared(bytes);
    runner.run(thread, index, order);
    shared.check();
  }
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument" : "invalid argument";
}

extern "C" __attribute__((visibility("hidden"))) inline int32_t aoti_torch_get_current_cuda_stream(int32_t,
                                                                                                   void** stream) {
  *stream = nullptr;
  return 0;
}

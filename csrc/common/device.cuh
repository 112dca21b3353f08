// What the CUDA kernels share: the launch on torch's stream, the check of a label, reductions over lanes and blocks.
// Kernels are launched with `launch`, not with <<<>>>, so that a plain C++ compiler can read the files too: the tests
// run the kernels on the processor that way, with a cuda_runtime.h of their own.
#pragma once

#include "shim.h"

#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#ifdef TFKD_ON_HOST  // the tests' build
#define TFKD_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(tfkd_fast_on_host, CPU, library)
#else
#define TFKD_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CUDA, library)
#endif

// Exported by libtorch_cuda; the header that declares it asks for the whole of CUDA's.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace tfkd_fast {

constexpr int kWarp = 32;

inline void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error)); }

// Queues kernel<<<grid, block, shared_bytes>>>(arguments...) on the current stream of the device of `tensor`. No wait.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            const torch::stable::Tensor& tensor, Arguments&&... arguments) {
  const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
  void* stream = nullptr;
  TFKD_CHECK_SHIM(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  constexpr size_t kWithoutRequest = 40 * 1024;  // above 48 KB, static memory included, it has to be asked for
  if (shared_bytes > kWithoutRequest) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...));
}

inline int multiprocessors(const torch::stable::Tensor& tensor) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, tensor.get_device_index()));
  return count;
}

// What the blocks of one multiprocessor can have together, bytes.
inline int shared_memory_of_multiprocessor(const torch::stable::Tensor& tensor) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, tensor.get_device_index()));
  return bytes;
}

// The host has not looked at the labels: that would make it wait for the device.
__device__ __forceinline__ void check_label(int64_t label, int64_t classes) {
  if (label < 0 || label >= classes) __assert_fail("0 <= label && label < classes", __FILE__, __LINE__, __func__);
}

// What is loaded or stored at once.
template <typename scalar, int kVector>
struct alignas(sizeof(scalar) * kVector) AlignedVector {
  scalar at[kVector];
};

struct Plus {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Of a number and NaN it takes the number, as fmaxf does.
struct Maximum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || b != b ? a : b;
  }
};

struct Minimum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b || b != b ? a : b;
  }
};

// Combines a value of each of `kLanes` neighbouring lanes (a power of 2 up to 32); every lane gets the result. All 32
// lanes of the warp must call it.
template <int kLanes, typename T, typename Combine>
__device__ __forceinline__ T over_lanes(T value, Combine combine) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// Combines a value of each thread of the block (a multiple of 32); every thread gets the result. `scratch` is shared
// memory for one value a warp. The order is fixed, so the result is the same every time.
template <typename T, typename Combine>
__device__ __forceinline__ T over_block(T value, T neutral, T* scratch, Combine combine) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = over_lanes<kWarp>(value, combine);
  __syncthreads();  // scratch may still be read from a call before
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return over_lanes<kWarp>(lane < warps ? scratch[lane] : neutral, combine);
}

}  // namespace tfkd_fast

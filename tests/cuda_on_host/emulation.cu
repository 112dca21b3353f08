// Kernels that show what the emulation does, right ones and wrong ones.

#include "../../csrc/common/device.cuh"

#include <string>

namespace tfkd_fast {

__global__ void beyond_shared(float* out) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  reinterpret_cast<float*>(dynamic_shared)[blockDim.x] = 1.0f;
  out[0] = 0;
}

namespace {

using torch::stable::Tensor;

// One block: sums the input over the block.
__global__ void sum(const float* in, float* out, int size) {
  __shared__ float scratch[kWarp];
  float mine = 0;
  for (int i = threadIdx.x; i < size; i += blockDim.x) mine += in[i];
  mine = over_block(mine, 0.0f, scratch, Plus());
  out[threadIdx.x] = mine;
}

// Neighbours exchange through dynamic shared memory, with or without the barrier.
template <bool kBarrier>
__global__ void rotate(const float* in, float* out) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  float* values = reinterpret_cast<float*>(dynamic_shared);
  values[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  if (kBarrier) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}

__global__ void lanes(const float* in, float* out) {
  const float value = in[threadIdx.x];
  const unsigned all = 0xffffffffu;
  float* row = out + 8 * threadIdx.x;
  row[0] = __shfl_xor_sync(all, value, 5);
  row[1] = __shfl_up_sync(all, value, 3);
  row[2] = __shfl_down_sync(all, value, 2, 8);
  row[3] = __shfl_sync(all, value, 9, 16);
  row[4] = static_cast<float>(__popc(__ballot_sync(all, value > 0)));
  row[5] = static_cast<float>(__any_sync(all, value > 0));
  row[6] = static_cast<float>(__all_sync(all, value > 0));
  row[7] = static_cast<float>(__shfl_xor_sync(all, static_cast<double>(value), 1));
}

__global__ void uninitialised(float* out) {
  __shared__ float values[64];
  if (threadIdx.x == 0) values[blockIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void returns_before_barrier() {
  if (threadIdx.x == 7) return;
  __syncthreads();
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void half_a_warp(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void foreign_lane(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 16);
}

__global__ void label(const float* in) { check_label(static_cast<int64_t>(in[threadIdx.x]), 10); }

__global__ void misaligned(const float* in, float* out) { out[0] = reinterpret_cast<const float4*>(in + 1)->x; }

__global__ void overflow(float* out) { out[0] = static_cast<float>(static_cast<int>(blockDim.x) * 2000000000); }

__global__ void write_at(float* out, int64_t place) { out[place] = 1.0f; }

__global__ void read_at(const float* in, float* out, int64_t place) { out[0] = in[place]; }

Tensor run(const Tensor& in, const std::string& kernel, int64_t threads) {
  const int64_t size = in.numel();
  Tensor out = torch::stable::new_empty(in, {8 * size});
  const float* from = in.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const dim3 block(threads);
  const size_t bytes = threads * sizeof(float);
  const dim3 blocks((size + threads - 1) / threads);
  if (kernel == "sum") launch(sum, 1, block, 0, in, from, to, static_cast<int>(size));
  if (kernel == "rotate") launch(rotate<true>, blocks, block, bytes, in, from, to);
  if (kernel == "rotate without barrier") launch(rotate<false>, blocks, block, bytes, in, from, to);
  if (kernel == "lanes") launch(lanes, 1, block, 0, in, from, to);
  if (kernel == "uninitialised") launch(uninitialised, 1, block, 0, in, to);
  if (kernel == "returns before barrier") launch(returns_before_barrier, 1, block, 0, in);
  if (kernel == "divergent barrier") launch(divergent_barrier, 1, block, 0, in);
  if (kernel == "half a warp") launch(half_a_warp, 1, block, 0, in, to);
  if (kernel == "foreign lane") launch(foreign_lane, 1, block, 0, in, to);
  if (kernel == "label") launch(label, 1, block, 0, in, from);
  if (kernel == "misaligned") launch(misaligned, 1, block, 0, in, from, to);
  if (kernel == "overflow") launch(overflow, 1, block, 0, in, to);
  if (kernel == "beyond shared") launch(beyond_shared, 1, block, bytes, in, to);
  if (kernel == "writes before") launch(write_at, 1, block, 0, in, to, -1);
  if (kernel == "writes behind") launch(write_at, 1, block, 0, in, to, out.numel());
  if (kernel == "reads before") launch(read_at, 1, block, 0, in, from, to, -1);
  if (kernel == "reads behind") launch(read_at, 1, block, 0, in, from, to, size);
  if (kernel == "much shared") launch(uninitialised, 1, block, 228 * 1024, in, to);
  if (kernel == "no blocks") launch(uninitialised, 0, block, 0, in, to);
  return out;
}

}  // namespace

TFKD_CUDA_LIBRARY(library) { library.impl("emulation", TORCH_BOX(&run)); }

}  // namespace tfkd_fast

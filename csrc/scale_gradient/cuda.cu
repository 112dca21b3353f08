// The gradient of a loss times what comes from above, in place on CUDA. The definition is `_reference` in
// tfkd_fast/ops/scale_gradient.py.
//
// Reads one number a piece of the gradient and, where that is 1, nothing else; otherwise the piece is read and written.

#include "../common/arguments.h"
#include "../common/device.cuh"

#include <string>

namespace tfkd_fast {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kElements = 2048;  // of a piece, for one warp

// Numbers from above, () or one or two axes; the gradient has a piece of `length` elements for each of them.
template <typename scalar>
struct Call {
  using T = Computed<scalar>;
  scalar* gradient;
  const T* upstream;
  int64_t inner, strides[2];  // the numbers of the last axis, and the steps of both
  int64_t length, parts, warps;
};

// One warp a part of a piece.
template <typename scalar>
__global__ void __launch_bounds__(kThreads) scale(const Call<scalar> in) {
  using T = Computed<scalar>;
  constexpr int kVector = 16 / sizeof(scalar);
  const int64_t warp = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp, piece = warp / in.parts;
  const int lane = threadIdx.x % kWarp;
  if (warp >= in.warps) return;
  const T factor = in.upstream[piece / in.inner * in.strides[0] + piece % in.inner * in.strides[1]];
  if (factor == T(1)) return;

  const int64_t first = warp % in.parts * kElements;
  const auto count = static_cast<int>(min(in.length - first, kElements));
  scalar* from = in.gradient + piece * in.length + first;
  const auto beyond = static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(scalar));
  const int head = min(beyond == 0 ? 0 : kVector - beyond, count), vectors = (count - head) / kVector;
  const auto product = [factor](scalar value) { return static_cast<scalar>(static_cast<T>(value) * factor); };
  if (lane < head) from[lane] = product(from[lane]);
  auto* aligned = reinterpret_cast<AlignedVector<scalar, kVector>*>(from + head);
#pragma unroll 4
  for (int k = lane; k < vectors; k += kWarp) {
    auto values = aligned[k];
#pragma unroll
    for (int j = 0; j < kVector; ++j) values.at[j] = product(values.at[j]);
    aligned[k] = values;
  }
  const int rest = head + vectors * kVector + lane;
  if (rest < count) from[rest] = product(from[rest]);
}

void scale_cuda(Tensor gradient, const Tensor& upstream) {
  const int64_t axes = upstream.dim(), pieces = upstream.numel();
  STD_TORCH_CHECK(axes <= 2 && axes <= gradient.dim(), "upstream has too many axes");
  for (int64_t axis = 0; axis < axes; ++axis) {
    STD_TORCH_CHECK(upstream.size(axis) == gradient.size(axis), "upstream does not fit the gradient");
  }
  STD_TORCH_CHECK(upstream.scalar_type() == loss_type(gradient), "upstream does not fit the gradient");
  STD_TORCH_CHECK(gradient.is_contiguous(), "the gradient must be contiguous");
  check_device("upstream", upstream, "the gradient", gradient);
  if (gradient.numel() == 0) return;
  for_scalar_of(gradient.scalar_type(), "the gradient", [&](auto zero) {
    using scalar = decltype(zero);
    Call<scalar> in{};
    in.gradient = static_cast<scalar*>(gradient.mutable_data_ptr());
    in.upstream = upstream.const_data_ptr<Computed<scalar>>();
    in.inner = axes == 2 ? upstream.size(1) : 1;
    in.strides[0] = axes > 0 ? upstream.stride(0) : 0;
    in.strides[1] = axes == 2 ? upstream.stride(1) : 0;
    in.length = gradient.numel() / pieces;
    in.parts = (in.length + kElements - 1) / kElements;
    in.warps = pieces * in.parts;
    const int64_t blocks = (in.warps + kThreads / kWarp - 1) / (kThreads / kWarp);
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "the gradient has too many elements");
    launch(&scale<scalar>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, gradient, in);
  });
}

}  // namespace

TFKD_CUDA_LIBRARY(library) { library.impl("scale_gradient", TORCH_BOX(&scale_cuda)); }

}  // namespace tfkd_fast

// Random windows of padded images, mirrored and normalised, on CUDA. The definition is `_reference` in
// tfkd_fast/ops/augment.py.
//
// Moves H*W*C bytes of an image in and as many values out. A block shows a part of one image at a time; all its threads
// draw the window, which takes less than telling each other. A thread stores 16 bytes at a time, and its neighbour the
// next.

#include "../common/device.cuh"
#include "arguments.h"

namespace tfkd_fast {
namespace {

constexpr int kThreads = 128, kBlocks = 10;  // of a block; of a multiprocessor
constexpr int kVectors = 8;                  // of a thread in a part

struct Call {
  const uint8_t* images;
  const int64_t *indices, *draw;
  const float *mean, *std;
  Augmentation augmentation;
  int64_t count, batch, shown;
  int64_t indices_of_candidate, draw_of_candidate;
  int height, width, channels;
  int parts;  // of an image
};

template <typename scalar, int kVector>
__global__ void __launch_bounds__(kThreads, kBlocks) show(const Call in, scalar* out) {
  __shared__ float mean[kMostChannels], std[kMostChannels];
  if (threadIdx.x < in.channels) {
    mean[threadIdx.x] = in.mean[threadIdx.x];
    std[threadIdx.x] = in.std[threadIdx.x];
  }
  __syncthreads();

  const int row = in.width * in.channels, vectors = in.height * row / kVector;
  for (int64_t task = blockIdx.x; task < in.shown * in.parts; task += gridDim.x) {
    const int64_t place = task / in.parts, candidate = place / in.batch, sample = place % in.batch;
    const int64_t index = in.indices[candidate * in.indices_of_candidate + sample];
    // The host has not looked at the indices: that would make it wait for the device.
    if (index < 0 || index >= in.count) {
      __assert_fail("0 <= index && index < N", __FILE__, __LINE__, __func__);
    }
    const Window window = window_of(index, in.draw + candidate * in.draw_of_candidate, in.augmentation);
    const uint8_t* image = in.images + index * in.height * row;
    auto* shown = reinterpret_cast<AlignedVector<scalar, kVector>*>(out + place * in.height * row);

    const int first = static_cast<int>(task % in.parts) * kVectors * kThreads;
    const int end = min(vectors - first, kVectors * kThreads) + first;
    for (int at = first + static_cast<int>(threadIdx.x); at < end; at += kThreads) {
      const int in_row = at * kVector % row;
      const int first_channel = in_row % in.channels;
      int y = at * kVector / row, x = in_row / in.channels, channel = first_channel;
      // All loads are on their way before the first division: it has a branch, which nothing is moved across.
      uint8_t pixels[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const int from_y = y + window.top, from_x = (window.mirrored ? in.width - 1 - x : x) + window.left;
        const bool inside = from_y >= 0 && from_y < in.height && from_x >= 0 && from_x < in.width;
        pixels[k] = inside ? image[from_y * row + from_x * in.channels + channel] : 0;
        if (++channel == in.channels) channel = 0, ++x;
        if (x == in.width) x = 0, ++y;
      }
      AlignedVector<scalar, kVector> vector;
      channel = first_channel;
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        vector.at[k] = static_cast<scalar>((static_cast<float>(pixels[k]) - mean[channel]) / std[channel]);
        if (++channel == in.channels) channel = 0;
      }
      shown[at] = vector;
    }
  }
}

template <typename scalar>
Tensor run(const AugmentCall& call) {
  const Tensor out = call.new_batch();
  if (out.numel() == 0) return out;
  constexpr int kVector = 16 / sizeof(scalar);
  const bool in_vectors = call.values() % kVector == 0;
  const int vectors = call.values() / (in_vectors ? kVector : 1);
  const Call in{.images = static_cast<const uint8_t*>(call.images.const_data_ptr()),
                .indices = call.indices.const_data_ptr<int64_t>(),
                .draw = call.draw.const_data_ptr<int64_t>(),
                .mean = call.mean.const_data_ptr<float>(),
                .std = call.std.const_data_ptr<float>(),
                .augmentation = call.augmentation,
                .count = call.count,
                .batch = call.batch,
                .shown = call.candidates * call.batch,
                .indices_of_candidate = call.indices_of_candidate(),
                .draw_of_candidate = call.draw_of_candidate(),
                .height = call.height,
                .width = call.width,
                .channels = call.channels,
                .parts = (vectors - 1) / (kVectors * kThreads) + 1};
  const int64_t blocks = std::min<int64_t>(in.shown * in.parts, int64_t{kBlocks} * multiprocessors(out));
  launch(in_vectors ? &show<scalar, kVector> : &show<scalar, 1>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
         out, in, static_cast<scalar*>(out.mutable_data_ptr()));
  return out;
}

Tensor augment_cuda(const Tensor& images, const Tensor& indices, const Tensor& draw, int64_t pad, bool flip,
                    const Tensor& mean, const Tensor& std, ScalarType type) {
  check_device("indices", indices, "images", images);
  check_device("draw", draw, "images", images);
  check_device("mean", mean, "images", images);
  check_device("std", std, "images", images);
  const AugmentCall call = checked(images, indices, draw, pad, flip, mean, std, type);
  return for_scalar_of(type, "dtype", [&](auto scalar) { return run<decltype(scalar)>(call); });
}

}  // namespace

TFKD_CUDA_LIBRARY(library) { library.impl("augment", TORCH_BOX(&augment_cuda)); }

}  // namespace tfkd_fast

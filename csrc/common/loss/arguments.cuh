// What a loss kernel is told, and the sums over the batch that it leaves.
#pragma once

#include "../arguments.h"
#include "../outcome.h"
#include "math.cuh"

namespace tfkd_fast {

template <typename T>
struct Terms {
  T temperature, soft_weight, hard_weight;
};

// Loss, correct, true_probability and entropy; without statistics the loss alone.
constexpr int kMostSums = 4;

template <typename scalar>
struct LossArguments {
  using T = Computed<scalar>;
  const scalar* logits;  // (P,B,C)
  scalar* gradient;
  const int64_t* labels;  // may be null: then no hard term
  int64_t labels_of_candidate;
  const T* temperature;  // null: 1
  int64_t temperature_of_candidate;
  const T* weight;  // null: 0
  int64_t weight_of_candidate;
  bool weight_is_hard;  // or of the soft term; the other has 1 - weight
  T gradient_scale;
  int64_t batch;
  int classes;
  int vector_bits;                              // log2 of the elements that one load may fetch
  int64_t blocks;                               // a candidate
  T* sample_loss;                               // (P,B), or null
  T* loss;                                      // (P,), or null
  float *correct, *true_probability, *entropy;  // (P,), with statistics
  double* partial;                              // (P, blocks, sums) when there are several blocks
  double loss_divisor;
  float* similarity;  // may be null
  int64_t similarity_strides[3];

  __device__ Terms<T> terms(int64_t candidate) const {
    const T given = weight == nullptr ? T(0) : weight[candidate * weight_of_candidate];
    const T other = T(1) - given;
    const T hard = labels == nullptr ? T(0) : weight_is_hard ? given : other;
    return {temperature == nullptr ? T(1) : temperature[candidate * temperature_of_candidate],
            weight_is_hard ? other : given, hard};
  }
  __device__ int64_t row(int64_t candidate, int64_t sample) const { return (candidate * batch + sample) * classes; }
  __device__ float* similarity_row(int64_t candidate, int64_t label) const {
    return similarity + candidate * similarity_strides[0] + label * similarity_strides[1];
  }
  __device__ void write(int64_t candidate, const double (&sums)[kMostSums], bool with_stats) const {
    if (loss != nullptr) loss[candidate] = static_cast<T>(sums[0] / loss_divisor);
    if (!with_stats) return;
    correct[candidate] = static_cast<float>(sums[1]);
    true_probability[candidate] = static_cast<float>(sums[2]);
    entropy[candidate] = static_cast<float>(sums[3]);
  }
};

// The block's sums over its samples. In double: a block may have thousands of samples.
template <bool kWithStats>
struct Sums {
  static constexpr int kCount = kWithStats ? kMostSums : 1;
  double values[kMostSums] = {};

  template <typename T>
  __device__ void add(const Outcome<T>& outcome) {
    values[0] += outcome.loss;
    if constexpr (kWithStats) {
      values[1] += outcome.correct;
      values[2] += outcome.true_probability;
      values[3] += outcome.entropy;
    }
  }

  template <typename scalar>
  __device__ void finish(const LossArguments<scalar>& in, int64_t candidate) {
    __shared__ double scratch[kWarp];
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = over_block(values[i], 0.0, scratch, Plus());
    if (threadIdx.x != 0) return;
    if (in.blocks == 1) {
      in.write(candidate, values, kWithStats);
    } else {
      double* partial = in.partial + int64_t{blockIdx.x} * kCount;
      for (int i = 0; i < kCount; ++i) partial[i] = values[i];
    }
  }
};

// By one block.
template <bool kWithStats, typename scalar>
__device__ __forceinline__ void add_partial_sums_of(const LossArguments<scalar>& in, int64_t candidate) {
  constexpr int kCount = Sums<kWithStats>::kCount;
  __shared__ double scratch[kWarp];
  const double* partial = in.partial + candidate * in.blocks * kCount;
  double sums[kMostSums] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    for (int64_t k = threadIdx.x; k < in.blocks; k += blockDim.x) sums[i] += partial[k * kCount + i];
    sums[i] = over_block(sums[i], 0.0, scratch, Plus());
  }
  if (threadIdx.x == 0) in.write(candidate, sums, kWithStats);
}

// One block a candidate.
template <typename scalar, bool kWithStats>
__global__ void __launch_bounds__(128) add_partial_sums(const LossArguments<scalar> in) {
  add_partial_sums_of<kWithStats>(in, blockIdx.x);
}

}  // namespace tfkd_fast

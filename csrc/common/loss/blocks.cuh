// Longer rows, and those of float64, each of which a block visits twice.
#pragma once

#include "arguments.cuh"

namespace tfkd_fast {

// Calls f(first class, AlignedVector) for every vector of the row that is this thread's; kBatch loads are on their way
// at a time.
template <int kVector, int kBatch, typename scalar, typename Function>
__device__ __forceinline__ void for_vectors(const scalar* row, int classes, Function f) {
  const auto* vectors = reinterpret_cast<const AlignedVector<scalar, kVector>*>(row);
  const int count = classes / kVector;
  int at = threadIdx.x;
  for (; at < count - (kBatch - 1) * static_cast<int>(blockDim.x); at += kBatch * blockDim.x) {
    AlignedVector<scalar, kVector> loaded[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) loaded[k] = vectors[at + k * blockDim.x];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) f((at + k * static_cast<int>(blockDim.x)) * kVector, loaded[k]);
  }
  for (; at < count; at += blockDim.x) f(at * kVector, vectors[at]);
}

// The softmax's sums of a row that is seen in parts: online softmax (Milakov, Gimelshein, 2018).
template <typename T>
struct OnlineSoftmax {
  T temperature;
  bool with_plain;  // also at temperature 1
  T highest = -kInfinity<T>, sum = 0, plain_sum = 0;

  template <typename scalar, int kVector>
  __device__ __forceinline__ void add(const AlignedVector<scalar, kVector>& logits) {
    T values[kVector], higher = highest;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      values[j] = static_cast<T>(logits.at[j]);
      higher = Maximum()(higher, values[j]);
    }
    if (higher > highest) move(higher);
    const T origin = highest == -kInfinity<T> ? T(0) : highest;  // so far every logit was -infinity
    const Exponent<T> softened(origin, temperature), plain(origin, T(1));
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      sum += power_of_2(softened(values[j]));
      if (with_plain) plain_sum += power_of_2(plain(values[j]));
    }
  }

  // The whole block's; every thread gets it. A row of -infinity alone has the sum NaN.
  __device__ void over_block(T* scratch) {
    const T all = tfkd_fast::over_block(highest, -kInfinity<T>, scratch, Maximum());
    move(all);
    sum = tfkd_fast::over_block(sum, T(0), scratch, Plus());
    if (with_plain) plain_sum = tfkd_fast::over_block(plain_sum, T(0), scratch, Plus());
  }

 private:
  __device__ __forceinline__ void move(T higher) {
    sum *= power_of_2((highest - higher) / temperature * kLog2E<T>);
    if (with_plain) plain_sum *= power_of_2((highest - higher) * kLog2E<T>);
    highest = higher;
  }
};

// Threads of a multiprocessor, in one block or several: 80 registers each, for float64 168.
template <typename scalar>
constexpr int kMostThreads = std::is_same_v<scalar, double> ? 384 : 768;

// `Target` has
//   open<kVector>(candidate, sample, label, classes, terms, memory, scratch) -> a row, which has
//     mass: sum of q, the same in every thread
//     get<kVector>(c, q, negentropy): q of the classes c.., and their sum q log2 q added to negentropy
// `memory` is `target_bytes` of shared memory for it, `scratch` is for over_block.
template <typename scalar, bool kWithStats, int kVector, typename Target>
__global__ void __launch_bounds__(kMostThreads<scalar>, 1)
    rows_in_blocks(const LossArguments<scalar> in, const Target target, int target_bytes, bool keep) {
  using T = Computed<scalar>;
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  __shared__ T scratch[kWarp];
  auto* kept = reinterpret_cast<AlignedVector<scalar, kVector>*>(dynamic_shared + target_bytes);
  const int64_t candidate = blockIdx.x / in.blocks;
  const Terms<T> terms = in.terms(candidate);
  const T temperature = terms.temperature, soft_weight = terms.soft_weight, hard_weight = terms.hard_weight;
  const bool with_plain = hard_weight != T(0) || kWithStats;
  const bool two = with_plain && temperature != T(1);

  Sums<kWithStats> sums;
  for (int64_t sample = blockIdx.x % in.blocks; sample < in.batch; sample += in.blocks) {
    const scalar* row = in.logits + in.row(candidate, sample);
    const int64_t label = in.labels == nullptr ? 0 : in.labels[candidate * in.labels_of_candidate + sample];
    check_label(label, in.classes);

    OnlineSoftmax<T> online{temperature, two};
    for_vectors<kVector, 4>(row, in.classes, [&](int c, const AlignedVector<scalar, kVector>& logits) {
      if (keep) kept[c / kVector] = logits;  // for this thread only: no barrier is needed
      online.add(logits);
    });
    online.over_block(scratch);
    const T highest = online.highest, sum = online.sum, plain_sum = two ? online.plain_sum : sum;
    const auto taught =
        target.template open<kVector>(candidate, sample, label, in.classes, terms, dynamic_shared, scratch);

    const Exponent<T> softened(highest, temperature), plain(highest, T(1));
    const T log_sum = log_2(sum);
    const T soft_factor = soft_weight * temperature * in.gradient_scale;
    const T softmax_factor = soft_factor * taught.mass / sum;
    const T hard_factor = weighted(hard_weight, in.gradient_scale / plain_sum);
    T divergence = 0, dot = 0;
    bool earlier = false;
    float* line = kWithStats && in.similarity != nullptr ? in.similarity_row(candidate, label) : nullptr;
    scalar* gradient = in.gradient + in.row(candidate, sample);
    const auto* second = keep ? reinterpret_cast<const scalar*>(kept) : row;
    for_vectors<kVector, 2>(second, in.classes, [&](int c, const AlignedVector<scalar, kVector>& logits) {
      T q[kVector] = {};
      taught.template get<kVector>(c, q, divergence);
      AlignedVector<scalar, kVector> out;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const T logit = static_cast<T>(logits.at[j]), x = softened(logit), e = power_of_2(x);
        divergence -= weighted(q[j], x - log_sum);
        T slope = softmax_factor * e - soft_factor * q[j];
        if (with_plain) {
          const T plain_x = two ? plain(logit) : x, plain_e = two ? power_of_2(plain_x) : e;
          slope += hard_factor * plain_e - (c + j == label ? hard_weight * in.gradient_scale : T(0));
          if constexpr (kWithStats) {
            dot += weighted(plain_e, plain_x);
            earlier |= logit == highest && c + j < label;
            if (line != nullptr) {
              atomicAdd(line + (c + j) * in.similarity_strides[2], static_cast<float>(plain_e / plain_sum));
            }
          }
        }
        out.at[j] = static_cast<scalar>(slope);
      }
      reinterpret_cast<AlignedVector<scalar, kVector>*>(gradient)[c / kVector] = out;
    });

    Outcome<T> outcome;
    divergence = over_block(divergence, T(0), scratch, Plus());
    outcome.loss = weighted(soft_weight, temperature * temperature * kLn2<T> * divergence);
    if (with_plain) {
      const T logit = static_cast<T>(row[label]), x = plain(logit), plain_log_sum = log_2(plain_sum);
      outcome.loss += weighted(hard_weight, kLn2<T> * (plain_log_sum - x));
      if constexpr (kWithStats) {
        dot = over_block(dot, T(0), scratch, Plus());
        const T any_earlier = over_block(earlier ? T(1) : T(0), T(0), scratch, Maximum());
        outcome.correct = logit == highest && any_earlier == T(0) && plain_sum == plain_sum;
        outcome.true_probability = power_of_2(x) / plain_sum;
        outcome.entropy = kLn2<T> * (plain_log_sum - dot / plain_sum);
      }
    }
    if (threadIdx.x == 0) {
      if (in.sample_loss != nullptr) in.sample_loss[candidate * in.batch + sample] = outcome.loss;
      sums.add(outcome);
    }
    __syncthreads();  // the target's memory is free again
  }
  sums.finish(in, candidate);
}

}  // namespace tfkd_fast

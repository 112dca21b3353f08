// A row of logits on the device: its loss, the gradient and the training statistics, for a target row that the
// operator supplies. Definitions: tfkd_fast/ops/losses.py.
//
// Up to 1,024 classes a row lives in the registers of 4 to 32 lanes (`rows_in_registers`): each logit is read once and
// each gradient written once, which is all that must move beside the targets. Above that, and for float64, a block
// visits a row (`rows_in_blocks`): once for the sums, once for the gradient; the second visit reads shared memory, or
// the L2 cache when the row is too long for it. A block serves one candidate, so its sum over the batch is either
// final or one of few partial sums, which `add_partial_sums` adds in a fixed order.
#pragma once

#include "arguments.h"
#include "device.cuh"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <initializer_list>
#include <string>

namespace tfkd_fast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Numbers. Exponents and logarithms are to the base 2: exp2f is one instruction of the hardware where expf is several.

template <typename scalar>
using Computed = std::conditional_t<std::is_same_v<scalar, double>, double, float>;

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

// What the kernels are told.

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
  int vector_bits;  // log2 of the elements that one load may fetch
  int64_t blocks;   // a candidate
  T* sample_loss;   // (P,B), or null
  T* loss;          // (P,), or null
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

template <typename T>
struct Outcome {
  T loss = 0;
  // Of the softmax at temperature 1; only with statistics.
  bool correct = false;
  T true_probability = 0, entropy = 0;
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

// Rows in registers.

// kLanes lanes of a warp hold a row, kItems classes each. Few lanes with many classes spend least on what a row needs
// but once. Registers decide how many warps a multiprocessor has, and with them how many loads are on their way. A
// kernel that holds 2 arrays of kItems takes up to 128 registers a thread: 16 warps; 24 or 20 where rows are short.
// Two of its blocks are on a multiprocessor, so 256 candidates are one wave on an H200. One that holds 3 takes up to
// 168 (up to 112 classes) or 255 registers, 12 or 8 warps with twice as much each to load.
template <int kLanes_, int kItems_, int kArrays>
struct Shape {
  static constexpr int kLanes = kLanes_, kItems = kItems_;
  static constexpr bool kSmall = kItems <= 16, kFewArrays = kArrays == 2;
  static constexpr int kThreads = kFewArrays ? (kItems <= 4 ? 384 : kSmall ? 320 : 256) : kItems == 28 ? 384 : 256;
  static constexpr int kBlocks = kSmall || kFewArrays ? 2 : 1;
  static constexpr int kRows = kThreads / kLanes;  // at a time in a block
};

// A lane's part of a row as it lies in memory. Vector k of a lane is vector k * kLanes + lane of the row.
template <typename scalar, typename S>
struct RowPart {
  static constexpr int kWords = S::kItems * sizeof(scalar) / 4;
  uint32_t words[kWords];

  template <int kSize>
  struct alignas(4 * kSize) Words {
    uint32_t at[kSize];
  };

  __device__ __forceinline__ void fill(uint32_t word) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = word;
  }

  __device__ __forceinline__ void load(const scalar* row, int classes, int vector_bits, int lane) {
    if (vector_bits == 2) {
      load_vectors<4>(row, classes, lane);
    } else if (vector_bits == 1) {
      load_vectors<2>(row, classes, lane);
    } else {
      load_vectors<1>(row, classes, lane);
    }
  }
  __device__ __forceinline__ void store(scalar* row, int classes, int vector_bits, int lane) const {
    if (vector_bits == 2) {
      store_vectors<4>(row, classes, lane);
    } else if (vector_bits == 1) {
      store_vectors<2>(row, classes, lane);
    } else {
      store_vectors<1>(row, classes, lane);
    }
  }

  __device__ __forceinline__ float get(int i) const {
    if constexpr (sizeof(scalar) == 4) {
      return __uint_as_float(words[i]);
    } else {
      const auto bits = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
      if constexpr (std::is_same_v<scalar, BFloat16>) return __uint_as_float(static_cast<uint32_t>(bits) << 16);
      return static_cast<float>(Half(bits, Half::from_bits()));
    }
  }
  __device__ __forceinline__ void set(const float (&values)[S::kItems]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(scalar) == 4) {
        words[i] = __float_as_uint(values[i]);
      } else {
        const scalar low(values[2 * i]), high(values[2 * i + 1]);
        words[i] = low.x | static_cast<uint32_t>(high.x) << 16;
      }
    }
  }

 private:
  template <int kVector>
  __device__ __forceinline__ void load_vectors(const scalar* row, int classes, int lane) {
    constexpr int kBytes = kVector * sizeof(scalar);
#pragma unroll
    for (int k = 0; k < S::kItems / kVector; ++k) {
      const int at = k * S::kLanes + lane;
      if (at >= classes / kVector) continue;
      if constexpr (kBytes >= 4) {
        const auto loaded = reinterpret_cast<const Words<kBytes / 4>*>(row)[at];
#pragma unroll
        for (int j = 0; j < kBytes / 4; ++j) words[k * (kBytes / 4) + j] = loaded.at[j];
      } else {
        const uint32_t bits = reinterpret_cast<const uint16_t*>(row)[at];
        uint32_t& word = words[k / 2];
        word = k % 2 == 0 ? (word & 0xffff0000u) | bits : (word & 0xffffu) | bits << 16;
      }
    }
  }
  template <int kVector>
  __device__ __forceinline__ void store_vectors(scalar* row, int classes, int lane) const {
    constexpr int kBytes = kVector * sizeof(scalar);
#pragma unroll
    for (int k = 0; k < S::kItems / kVector; ++k) {
      const int at = k * S::kLanes + lane;
      if (at >= classes / kVector) continue;
      if constexpr (kBytes >= 4) {
        Words<kBytes / 4> stored;
#pragma unroll
        for (int j = 0; j < kBytes / 4; ++j) stored.at[j] = words[k * (kBytes / 4) + j];
        reinterpret_cast<Words<kBytes / 4>*>(row)[at] = stored;
      } else {
        reinterpret_cast<uint16_t*>(row)[at] = static_cast<uint16_t>(words[k / 2] >> (k % 2 * 16));
      }
    }
  }
};

// Stores the rows of a warp, one after the other from `first`; `rows` of them are present. All lanes call it. Where a
// row has 4 lanes, what they store together, 32 or 64 bytes, seldom begins at a sector of the memory, and half of the
// second-level cache's work would be parts of sectors. The warp's rows are one piece of memory: it passes through
// shared memory.
template <typename scalar, typename S>
struct WarpStore {
  static constexpr bool kThroughShared = S::kLanes == 4;
  static constexpr int kRows = kWarp / S::kLanes, kClasses = S::kLanes * S::kItems;
  uint4 memory[kThroughShared ? kRows * kClasses * sizeof(scalar) / sizeof(uint4) : 1];

  __device__ __forceinline__ void operator()(const RowPart<scalar, S>& part, scalar* first, int rows, int classes,
                                             int vector_bits) {
    const int lane_of_warp = threadIdx.x % kWarp, row = lane_of_warp / S::kLanes, lane = lane_of_warp % S::kLanes;
    if (!kThroughShared || reinterpret_cast<uintptr_t>(first) % sizeof(uint4) != 0) {
      if (row < rows) part.store(first + static_cast<int64_t>(row) * classes, classes, vector_bits, lane);
      return;
    }
    auto* staged = reinterpret_cast<scalar*>(memory);
    part.store(staged + row * classes, classes, vector_bits, lane);
    __syncwarp();
    constexpr int kWide = sizeof(uint4) / sizeof(scalar);
    const int elements = rows * classes, wide = elements / kWide;
    for (int k = lane_of_warp; k < wide; k += kWarp) reinterpret_cast<uint4*>(first)[k] = memory[k];
    const int rest = wide * kWide + lane_of_warp;
    if (rest < elements) first[rest] = staged[rest];
    __syncwarp();  // `memory` is free again
  }
};

// Two classes of logit -infinity: what no class has.
template <typename scalar>
constexpr uint32_t kNoLogits = sizeof(scalar) == 4                 ? 0xff800000u
                               : std::is_same_v<scalar, BFloat16> ? 0xff80ff80u
                                                                  : 0xfc00fc00u;

// The class of a lane's item.
template <typename S>
__device__ __forceinline__ int class_of(int item, int lane, int vector_bits) {
  return ((((item >> vector_bits) * S::kLanes) + lane) << vector_bits) + (item & ((1 << vector_bits) - 1));
}

// The lane's item that is this class, or -1.
template <typename S>
__device__ __forceinline__ int item_of(int label, int lane, int vector_bits) {
  const int vector = label >> vector_bits, within = label & ((1 << vector_bits) - 1);
  return vector % S::kLanes == lane ? ((vector / S::kLanes) << vector_bits) + within : -1;
}

template <typename S>
__device__ __forceinline__ float highest_of(const float (&logits)[S::kItems]) {
  float highest = -kInfinity<float>;
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) highest = fmaxf(highest, logits[i]);
  return over_lanes<S::kLanes>(highest, Maximum());
}

// The class of the highest logit, of several the first.
template <typename S>
__device__ __forceinline__ int argmax_of(const float (&logits)[S::kItems], float highest, int lane, int vector_bits) {
  constexpr int kNone = 0x7fffffff;
  int item = -1;
#pragma unroll
  for (int i = S::kItems - 1; i >= 0; --i) item = logits[i] == highest ? i : item;
  const int first = item < 0 ? kNone : class_of<S>(item, lane, vector_bits);
  return over_lanes<S::kLanes>(first, Minimum());
}

// A row of logits with the place of its label.
struct RowLabel {
  int item;     // the lane's item that is the label, or -1
  float logit;  // of the label
};

// Loss and gradient of a row whose target is `target`. `values` goes in as logits and comes out as gradient. The
// lane's part of sum q log2 q is given in `negentropy`, or added here (kWithLogarithm). With statistics visit(i, p) is
// called with the softmax at temperature 1.
template <bool kWithLogarithm, bool kWithStats, typename S, typename Visit>
__device__ __forceinline__ Outcome<float> row_loss(float (&values)[S::kItems], const float (&target)[S::kItems],
                                                   float negentropy, const RowLabel& label, const Terms<float>& terms,
                                                   float gradient_scale, Visit visit) {
  constexpr int kItems = S::kItems, kLanes = S::kLanes;
  const float temperature = terms.temperature, soft_weight = terms.soft_weight, hard_weight = terms.hard_weight;
  const bool with_plain = hard_weight != 0.0f || kWithStats;  // the softmax at temperature 1
  // The lanes of a warp exchange values for it: either all of them or none, also when their rows have different
  // weights.
  const bool two = temperature != 1.0f && __any_sync(0xffffffffu, with_plain);
  const float highest = highest_of<S>(values);
  const Exponent<float> softened(highest, temperature), plain(highest, 1.0f);

  // With one softmax its terms replace the logits. A second one would take as many registers again: then both are
  // computed once for the sums and once for the gradient.
  float sum = 0.0f, mass = 0.0f, divergence = negentropy, plain_sum = 0.0f, dot = 0.0f;
  const auto add_up = [&](auto replace) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const float x = softened(values[i]), e = power_of_2(x), q = target[i];
      sum += e;
      mass += q;
      const float of_class = kWithLogarithm ? quick_log_2(q) - x : -x;
      divergence += q == 0.0f ? 0.0f : q * of_class;
      if constexpr (decltype(replace)::value) values[i] = e;
    }
  };
  const auto add_up_plain = [&] {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const float x = plain(values[i]), e = power_of_2(x);
      plain_sum += e;
      if constexpr (kWithStats) dot += weighted(e, x);
    }
    plain_sum = over_lanes<kLanes>(plain_sum, Plus());
    if constexpr (kWithStats) dot = over_lanes<kLanes>(dot, Plus());
  };
  if constexpr (kWithStats) {
    add_up_plain();
    add_up(std::false_type());
  } else if (two) {
    add_up_plain();
    add_up(std::false_type());
  } else {
    add_up(std::true_type());
  }
  sum = over_lanes<kLanes>(sum, Plus());
  mass = over_lanes<kLanes>(mass, Plus());
  divergence = over_lanes<kLanes>(divergence, Plus()) + mass * log_2(sum);
  if (!two && !kWithStats) plain_sum = sum;

  const float normaliser = __fdividef(1.0f, plain_sum);  // a sum is between 1 and the number of classes, or NaN
  const float soft_factor = soft_weight * temperature * gradient_scale;
  const float softmax_factor = soft_factor * mass * __fdividef(1.0f, sum);
  const float hard_factor = weighted(hard_weight, gradient_scale * normaliser);
  if (kWithStats || two) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const float e = power_of_2(softened(values[i])), plain_e = power_of_2(plain(values[i]));
      values[i] = softmax_factor * e + hard_factor * plain_e - soft_factor * target[i];
      if constexpr (kWithStats) visit(i, plain_e * normaliser);
    }
  } else {
    const float factor = softmax_factor + hard_factor;
#pragma unroll
    for (int i = 0; i < kItems; ++i) values[i] = factor * values[i] - soft_factor * target[i];
  }

  Outcome<float> outcome;
  outcome.loss = weighted(soft_weight, temperature * temperature * kLn2<float> * divergence);
  if (with_plain) {
    const float x = plain(label.logit), log_sum = log_2(plain_sum);
    outcome.loss += weighted(hard_weight, kLn2<float> * (log_sum - x));
    const float hard_scale = hard_weight * gradient_scale;
#pragma unroll
    for (int i = 0; i < kItems; ++i) values[i] -= label.item == i ? hard_scale : 0.0f;
    if constexpr (kWithStats) {
      outcome.true_probability = power_of_2(x) * normaliser;
      outcome.entropy = kLn2<float> * (log_sum - dot * normaliser);
    }
  }
  return outcome;
}

// A lane's place in the batch.
struct Place {
  int candidate, sample;
  bool present;  // there is such a sample
  int label;     // 0 without labels
  int classes, lane, vector_bits;
};

// `Target` has
//   kArrays: how many rows it and row_loss hold in registers together
//   kWithLogarithm: see row_loss
//   load<S>(place, terms, target) -> negentropy: the lane's part of the target row; all lanes of a warp call it.
template <typename scalar, typename S, bool kWithStats, typename Target>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    rows_in_registers(const LossArguments<scalar> in, const Target target) {
  // The next row is on its way while this one is computed, unless it needs too many registers.
  constexpr bool kAhead = RowPart<scalar, S>::kWords < 16 || S::kItems <= 16;
  constexpr int kRowsOfWarp = kWarp / S::kLanes;
  __shared__ WarpStore<scalar, S> store[S::kThreads / kWarp];
  const int lane = threadIdx.x % S::kLanes, slot = threadIdx.x / S::kLanes;
  const int blocks = static_cast<int>(in.blocks), step = blocks * S::kRows, first = blockIdx.x % blocks * S::kRows;
  const int candidate = blockIdx.x / blocks;
  const Terms<float> terms = in.terms(candidate);
  const int64_t* labels = in.labels == nullptr ? nullptr : in.labels + candidate * in.labels_of_candidate;
  const int batch = static_cast<int>(in.batch);

  RowPart<scalar, S> part;
  const auto load = [&](int sample) {
    part.fill(kNoLogits<scalar>);
    if (sample < batch) part.load(in.logits + in.row(candidate, sample), in.classes, in.vector_bits, lane);
  };
  const auto label_of = [&](int sample) {
    const int64_t label = labels != nullptr && sample < batch ? labels[sample] : 0;
    check_label(label, in.classes);
    return static_cast<int>(label);
  };

  Sums<kWithStats> sums;
  int next_label = label_of(first + slot);
  if (kAhead) load(first + slot);
  // All threads make every round, with a row or without: the lanes of a warp exchange values.
  for (int begin = first; begin < batch; begin += step) {
    const int sample = begin + slot;
    const bool present = sample < batch;
    const int label = next_label;
    next_label = label_of(sample + step);
    const int64_t row = in.row(candidate, sample);
    const RowLabel row_label{item_of<S>(label, lane, in.vector_bits),
                             present ? static_cast<float>(in.logits[row + label]) : 0.0f};
    float values[S::kItems], q[S::kItems];
    const auto unpack = [&] {
#pragma unroll
      for (int i = 0; i < S::kItems; ++i) values[i] = part.get(i);
    };
    if (!kAhead) load(sample);
    const Place place{candidate, sample, present, label, in.classes, lane, in.vector_bits};
    const float negentropy = target.template load<S>(place, terms, q);
    unpack();
    if (kAhead) load(sample + step);

    int best = 0;
    if constexpr (kWithStats) best = argmax_of<S>(values, highest_of<S>(values), lane, in.vector_bits);
    float* line = kWithStats && present && in.similarity != nullptr ? in.similarity_row(candidate, label) : nullptr;
    const auto add_probability = [&](int i, float probability) {
      const int c = class_of<S>(i, lane, in.vector_bits);
      if (line != nullptr && c < in.classes) atomicAdd(line + c * in.similarity_strides[2], probability);
    };
    Outcome<float> outcome = row_loss<Target::kWithLogarithm, kWithStats, S>(values, q, negentropy, row_label, terms,
                                                                             in.gradient_scale, add_probability);
    RowPart<scalar, S> gradient;
    gradient.set(values);
    const int first_of_warp = begin + slot / kRowsOfWarp * kRowsOfWarp;
    store[threadIdx.x / kWarp](gradient, in.gradient + in.row(candidate, first_of_warp),
                               min(max(batch - first_of_warp, 0), kRowsOfWarp), in.classes, in.vector_bits);
    if (!present) continue;  // nothing is exchanged below
    if constexpr (kWithStats) outcome.correct = best == label && outcome.entropy == outcome.entropy;  // NaN is not
    if (lane == 0) {
      if (in.sample_loss != nullptr) in.sample_loss[in.batch * candidate + sample] = outcome.loss;
      sums.add(outcome);
    }
  }
  sums.finish(in, candidate);
}

// Rows in blocks.

// Calls f(first class, Vector) for every vector of the row that is this thread's; kBatch loads are on their way at a
// time.
template <int kVector, int kBatch, typename scalar, typename Function>
__device__ __forceinline__ void for_vectors(const scalar* row, int classes, Function f) {
  const auto* vectors = reinterpret_cast<const Vector<scalar, kVector>*>(row);
  const int count = classes / kVector;
  int at = threadIdx.x;
  for (; at < count - (kBatch - 1) * static_cast<int>(blockDim.x); at += kBatch * blockDim.x) {
    Vector<scalar, kVector> loaded[kBatch];
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
  __device__ __forceinline__ void add(const Vector<scalar, kVector>& logits) {
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

constexpr int kMostThreads = 384;  // two blocks of 80 registers a thread, for float64 one of 168

// `Target` has
//   open<kVector>(candidate, sample, label, classes, terms, memory, scratch) -> a row, which has
//     mass: sum of q, the same in every thread
//     get<kVector>(c, q, negentropy): q of the classes c.., and their sum q log2 q added to negentropy
// `memory` is `target_bytes` of shared memory for it, `scratch` is for over_block.
template <typename scalar, bool kWithStats, int kVector, typename Target>
__global__ void __launch_bounds__(kMostThreads, std::is_same_v<scalar, double> ? 1 : 2)
    rows_in_blocks(const LossArguments<scalar> in, const Target target, int target_bytes, bool keep) {
  using T = Computed<scalar>;
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  __shared__ T scratch[kWarp];
  auto* kept = reinterpret_cast<Vector<scalar, kVector>*>(dynamic_shared + target_bytes);
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
    for_vectors<kVector, 4>(row, in.classes, [&](int c, const Vector<scalar, kVector>& logits) {
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
    for_vectors<kVector, 2>(second, in.classes, [&](int c, const Vector<scalar, kVector>& logits) {
      T q[kVector] = {};
      taught.template get<kVector>(c, q, divergence);
      Vector<scalar, kVector> out;
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
      reinterpret_cast<Vector<scalar, kVector>*>(gradient)[c / kVector] = out;
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

// The host's side.

// Calls f(scalar{}) with the type of the logits.
template <typename Function>
auto for_scalar_of(const Tensor& logits, Function f) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      throw std::runtime_error("logits must be float32, float64, float16 or bfloat16");
  }
}

// A kernel would read the memory of another device, or the host's, as its own.
inline void check_device(const char* name, const Tensor& tensor, const Tensor& logits) {
  STD_TORCH_CHECK(tensor.get_device_index() == logits.get_device_index(), name, " must be on the device of the logits");
}

// Elements that one load may fetch: 4, 2 or 1. They divide the row, and all tensors begin at a multiple of them: a
// view may begin anywhere.
inline int vector_bits(int64_t classes, std::initializer_list<Tensor> tensors) {
  int bits = classes % 4 == 0 ? 2 : classes % 2 == 0 ? 1 : 0;
  for (const Tensor& tensor : tensors) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    while (address % (tensor.element_size() << bits) != 0) --bits;
  }
  return bits;
}

// Blocks a candidate: as many as run at once, so that few partial sums are left; one where it needs no more than a few
// rounds, because a second kernel takes longer than those.
inline int blocks_of_candidate(const Tensor& logits, const Axes& axes, int rows_of_block, int resident) {
  constexpr int64_t kFewRounds = 4;
  const int64_t rounds = (axes.batch + rows_of_block - 1) / rows_of_block;
  const int64_t room = static_cast<int64_t>(multiprocessors(logits)) * resident / axes.candidates;
  return rounds <= kFewRounds ? 1 : static_cast<int>(std::max<int64_t>(1, std::min(room, rounds)));
}

struct LossResults {
  Tensor loss, gradient, correct, true_probability, entropy;  // the last three with statistics
};

// What the operators hand over. The tensors are contiguous, but for temperature, weight and similarity.
struct LossCall {
  Tensor logits;
  std::optional<Tensor> labels, temperature, weight;
  bool weight_is_hard;
  bool with_stats = false;
  std::optional<Tensor> similarity = std::nullopt;
  std::string reduction;
  Axes axes;
  int vector_bits;
};

// New tensors for the results, and what the kernels are told.
template <typename scalar>
LossArguments<scalar> prepared(const LossCall& call, LossResults& out) {
  using T = Computed<scalar>;
  const Axes& axes = call.axes;
  constexpr int64_t kMost = int64_t{1} << 30;  // classes and samples are counted in int, with room for a step
  STD_TORCH_CHECK(axes.classes <= kMost && axes.batch <= kMost, "logits have more than 2^30 classes or samples");
  STD_TORCH_CHECK(axes.candidates > 0, "logits must have a candidate");
  out.gradient = new_contiguous(call.logits, axes.shape({axes.batch, axes.classes}), call.logits.scalar_type());
  out.loss = empty_loss(call.logits, axes, call.reduction);

  LossArguments<scalar> in{};
  in.logits = static_cast<const scalar*>(call.logits.const_data_ptr());
  in.gradient = static_cast<scalar*>(out.gradient.mutable_data_ptr());
  if (call.labels) {
    check_device("labels", *call.labels, call.logits);
    in.labels = call.labels->const_data_ptr<int64_t>();
    in.labels_of_candidate = has_candidates(*call.labels, 1) ? axes.batch : 0;
  }
  const auto setting = [&](const char* name, const std::optional<Tensor>& tensor, const T*& values, int64_t& stride) {
    if (!tensor) return;
    check_device(name, *tensor, call.logits);
    values = tensor->const_data_ptr<T>();
    stride = tensor->dim() == 0 ? 0 : tensor->stride(0);
  };
  setting("temperature", call.temperature, in.temperature, in.temperature_of_candidate);
  setting(call.weight_is_hard ? "hard_weight" : "alpha", call.weight, in.weight, in.weight_of_candidate);
  in.weight_is_hard = call.weight_is_hard;
  const bool mean = call.reduction == "mean";
  in.gradient_scale = mean ? T(1) / static_cast<T>(axes.batch) : T(1);
  in.loss_divisor = mean ? static_cast<double>(axes.batch) : 1.0;
  in.batch = axes.batch;
  in.classes = static_cast<int>(axes.classes);
  in.vector_bits = call.vector_bits;
  (call.reduction == "none" ? in.sample_loss : in.loss) = out.loss.mutable_data_ptr<T>();
  if (call.with_stats) {
    const auto total = [&](Tensor& tensor) {
      tensor = new_contiguous(call.logits, axes.shape(), ScalarType::Float);
      return tensor.mutable_data_ptr<float>();
    };
    in.correct = total(out.correct);
    in.true_probability = total(out.true_probability);
    in.entropy = total(out.entropy);
  }
  if (call.similarity) {
    check_device("similarity", *call.similarity, call.logits);
    in.similarity = call.similarity->mutable_data_ptr<float>();
    const int64_t dims = call.similarity->dim();
    in.similarity_strides[0] = axes.with_candidates ? call.similarity->stride(0) : 0;
    in.similarity_strides[1] = call.similarity->stride(dims - 2);
    in.similarity_strides[2] = call.similarity->stride(dims - 1);
  }
  return in;
}

// Calls f(Shape) with the shape that holds a row in registers; false where none does.
template <typename scalar, int kArrays, typename Function>
bool with_shape(int64_t classes, Function f) {
  if constexpr (!std::is_same_v<scalar, double>) {
    if (classes <= 16) return f(Shape<4, 4, kArrays>()), true;
    if (classes <= 64) return f(Shape<4, 16, kArrays>()), true;
    if (classes <= 112) return f(Shape<4, 28, kArrays>()), true;
    if (classes <= 256) return f(Shape<8, 32, kArrays>()), true;
    if (classes <= 512) return f(Shape<16, 32, kArrays>()), true;
    if (classes <= 1024) return f(Shape<32, 32, kArrays>()), true;
  }
  return false;
}

// Launches `Target`'s kernels. kStats: whether there are kernels with statistics. `target_bytes` of shared memory are
// for the target of a long row.
template <bool kStats, typename scalar, typename Target>
LossResults run(const LossCall& call, const Target& target, int target_bytes) {
  const Axes& axes = call.axes;
  LossResults out;
  LossArguments<scalar> in = prepared<scalar>(call, out);

  // The grid has all candidates in x: y would end at 65,535.
  const auto launch_rows = [&](auto with_stats, auto* kernel, int threads, int rows, int resident, size_t shared,
                               auto... more) {
    constexpr bool kWithStats = decltype(with_stats)::value;
    in.blocks = blocks_of_candidate(call.logits, axes, rows, resident);
    STD_TORCH_CHECK(axes.candidates * in.blocks <= std::numeric_limits<int>::max(), "logits have too many candidates");
    Tensor partial;
    if (in.blocks > 1) {
      partial = new_contiguous(call.logits, {axes.candidates, in.blocks, Sums<kWithStats>::kCount}, ScalarType::Double);
      in.partial = partial.mutable_data_ptr<double>();
    }
    launch(kernel, dim3(static_cast<unsigned>(axes.candidates * in.blocks)), dim3(threads), shared, call.logits, in,
           target, more...);
    if (in.blocks > 1 && (in.loss != nullptr || kWithStats)) {
      launch(&add_partial_sums<scalar, kWithStats>, dim3(static_cast<unsigned>(axes.candidates)), dim3(128), 0,
             call.logits, in);
    }
  };
  const auto dispatch = [&](auto with_stats) {
    constexpr bool kWithStats = decltype(with_stats)::value;
    const auto in_registers = [&](auto shape) {
      using S = decltype(shape);
      launch_rows(with_stats, &rows_in_registers<scalar, S, kWithStats, Target>, S::kThreads, S::kRows, S::kBlocks, 0);
    };
    if (with_shape<scalar, Target::kArrays + kWithStats>(axes.classes, in_registers)) return;
    // A row is kept in shared memory where two blocks of a multiprocessor can: with one, loads would wait for
    // arithmetic.
    const int threads = axes.classes < 4096 ? 128 : kMostThreads;
    const int64_t row_bytes = axes.classes * static_cast<int64_t>(sizeof(scalar));
    const bool keep = row_bytes + target_bytes + 1024 <= shared_memory_of_multiprocessor(call.logits) / 2;
    const size_t shared = target_bytes + (keep ? row_bytes : 0);
    auto* kernel = &rows_in_blocks<scalar, kWithStats, 1, Target>;
    if constexpr (!std::is_same_v<scalar, double>) {
      if (call.vector_bits == 2) kernel = &rows_in_blocks<scalar, kWithStats, 4, Target>;
    }
    launch_rows(with_stats, kernel, threads, 1, 2 * kMostThreads / threads, shared, target_bytes, keep);
  };
  if constexpr (kStats) {
    if (call.with_stats) {
      dispatch(std::true_type());
      return out;
    }
  }
  dispatch(std::false_type());
  return out;
}

}  // namespace tfkd_fast

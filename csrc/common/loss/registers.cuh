// Rows of up to 1,024 classes, which live in the registers of the lanes of a warp.
#pragma once

#include "arguments.cuh"

namespace tfkd_fast {

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
constexpr uint32_t kNoLogits = sizeof(scalar) == 4                ? 0xff800000u
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

  // With one softmax its terms replace the logits. Those of a second one take as many registers again: where a kernel
  // has no room for them, both are computed once for the sums and once for the gradient.
  constexpr bool kKeep = !S::kFewArrays;
  [[maybe_unused]] float plain_terms[kKeep ? kItems : 1];
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
      if constexpr (kKeep) plain_terms[i] = e;
      if constexpr (kWithStats) dot += weighted(e, x);
    }
    plain_sum = over_lanes<kLanes>(plain_sum, Plus());
    if constexpr (kWithStats) dot = over_lanes<kLanes>(dot, Plus());
  };
  if (kWithStats || two) {
    add_up_plain();
    add_up(std::bool_constant<kKeep>());
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
      float e, plain_e;
      if constexpr (kKeep) {
        e = values[i], plain_e = plain_terms[i];
      } else {
        e = power_of_2(softened(values[i])), plain_e = power_of_2(plain(values[i]));
      }
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

}  // namespace tfkd_fast

// Accuracy, likelihood and calibration of several candidates, and the temperatures that are fitted to them, on CUDA.
// The definition is `_reference` in tfkd_fast/ops/candidate_metrics.py.
//
// `survey` reads the logits once and gives all metrics but the calibrated ones. With b = 1/T the NLL of a sample is
// log sum_c exp(b z_c) - b z_y, convex in b as is the prior, so that the derivative of their sum passes zero once; for a
// sample it is E[z] - z_y. Over log b, `survey` and a fixed number of passes of `derive` take the derivative at three
// points each and close in on the root. Three of the passes usually do; the others have nothing left to find and return
// at once. `calibrate` takes the NLL there.
//
// A block serves one candidate. Its sums over samples are partial sums that the next kernel adds in a fixed order; how
// the samples are divided depends on N and C alone, so that a candidate gets the same in any company.

#include "../common/arguments.h"
#include "../common/device.cuh"

#include <algorithm>

namespace tfkd_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 64;  // a candidate: each block adds up the partial sums of all
constexpr int kBins = 15;

// The search over u = log b = -log T.

constexpr int kPoints = 3;                      // a pass
constexpr int kPasses = 9;                      // of `derive`
constexpr double kHighest = 2.995732273553991;  // log 20, and -log 0.05
constexpr double kWidth = 5e-5;                 // the root is found when it is in a bracket of this width

struct Slope {
  double value, rise;  // the derivative in b, and the derivative of that over u

  // Of the prior, b - 1 - log b.
  static __device__ Slope of_prior(double u) { return {1 - exp(-u), exp(-u)}; }

  __device__ Slope operator+(const Slope& other) const { return {value + other.value, rise + other.rise}; }
};

struct Search {
  double low, high;  // the root is between them
  Slope at_low, at_high;
  bool visited_low, visited_high;

  static __device__ Search begin() { return {-kHighest, kHighest, {}, {}, false, false}; }

  __device__ bool done() const { return high - low <= kWidth; }

  // Where the line through both ends passes zero; not a number where it never does.
  __device__ double on_chord() const { return low - at_low.value * ((high - low) / (at_high.value - at_low.value)); }

  // Three points inside, ascending. They quarter the bracket, or include the end that nobody has seen; or else, where
  // the passes left suffice without this one, they close in on the root: a derivative that bends to one side only has
  // it between its chord and the nearer of the tangents at the ends.
  __device__ void choose(int passes_left, double (&u)[kPoints]) const {
    const double width = high - low;
    if (visited_low != visited_high) {
      const double first = visited_low ? 1 : 0;
      for (int j = 0; j < kPoints; ++j) u[j] = low + width * ((first + j) / 3);
      return;
    }
    for (int j = 0; j < kPoints; ++j) u[j] = low + width * ((1 + j) / 4.0);
    if (!visited_low || width > ldexp(kWidth, 2 * (passes_left - 1))) return;

    constexpr double kMargin = kWidth / 4;
    const double chord = on_chord(), of_low = low - at_low.value / at_low.rise;
    const double of_high = high - at_high.value / at_high.rise;
    const double tangent = fabs(of_low - chord) < fabs(of_high - chord) ? of_low : of_high;
    const double first = fmax(low, fmin(chord, tangent) - kMargin), last = fmin(high, fmax(chord, tangent) + kMargin);
    if (!(first < last)) return;
    u[0] = first, u[1] = 0.5 * (first + last), u[2] = last;
  }

  __device__ void observe(const double (&u)[kPoints], const Slope (&slope)[kPoints]) {
    bool beyond = false;  // the root
#pragma unroll
    for (int j = 0; j < kPoints; ++j) {
      if (beyond) continue;
      beyond = !(slope[j].value < 0);
      if (beyond) {
        high = u[j], at_high = slope[j], visited_high = true;
      } else {
        low = u[j], at_low = slope[j], visited_low = true;
      }
    }
    // Beyond an end there is no root.
    if (low >= kHighest) high = low;
    if (high <= -kHighest) low = high;
  }

  __device__ double root() const {
    const double chord = on_chord();
    return chord >= low && chord <= high ? chord : 0.5 * (low + high);
  }
};

// What blocks add up over samples.

enum Sum { kNotFinite, kTop1, kTop5, kNll, kBrier, kEntropy, kConfidence, kGaps };  // kGaps: of each bin, and the last
constexpr int kSurveySums = kGaps + kBins;
constexpr int kSlopeSums = kPoints * 2;

// Numbers.

template <typename T>
constexpr T kLn2 = T(0.6931471805599453);
template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Logits that lie further below the highest have no probability at any temperature, and 0 * kFar is 0.
template <typename T>
constexpr T kFar = std::is_same_v<T, double> ? T(-1e300) : T(-1e30f);

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float power_of_2(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_2(double x) { return exp2(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }
__device__ __forceinline__ float logarithm_1p(float x) { return log1pf(x); }
__device__ __forceinline__ double logarithm_1p(double x) { return log1p(x); }

// log(others + exp(own)), also where `others` are small beside the 1 that the label has when it is the most likely.
template <typename T>
__device__ __forceinline__ T log_of_sum(T others, T own) {
  return own == T(0) ? logarithm_1p(others) : logarithm(others + exponential(own));
}

template <typename scalar>
struct Call {
  using T = Computed<scalar>;
  const scalar* logits;   // (K,N,C)
  const int64_t* labels;  // (N,)
  int64_t candidates, samples;
  int classes, blocks;    // a candidate
  T* highest;             // (K,N), the highest logit of each row
  double* survey_sums;    // (K, kSurveySums, blocks)
  double* calibrated;     // (K, blocks)
  double* slope_sums[2];  // (K, kSlopeSums, blocks), of even passes and of odd ones
  Search* searches[2];    // (K,), likewise
  T* metrics;             // (9,K)
  T interior_edges[kBins - 1];

  __device__ int64_t candidate() const { return blockIdx.x / blocks; }
  __device__ int block() const { return static_cast<int>(blockIdx.x % blocks); }
};

// A row of logits, held by the registers of neighbouring lanes of a warp.
template <typename scalar, int kLanes_, int kItems>
struct RegisterRow {
  using T = Computed<scalar>;
  static constexpr int kLanes = kLanes_;
  T logits[kItems];
  int classes, lane;

  __device__ RegisterRow(const scalar* row, int classes, int lane) : classes(classes), lane(lane) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int c = i * kLanes + lane;
      logits[i] = c < classes ? static_cast<T>(row[c]) : -kInfinity<T>;
    }
  }

  // Calls f(class, logit) for the lane's classes, and for some beyond the last, whose logit is -infinity.
  template <typename Function>
  __device__ __forceinline__ void for_each(Function f) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (i * kLanes < classes) f(i * kLanes + lane, logits[i]);
    }
  }
};

// A row that is too long for registers: a warp reads it from memory again and again.
template <typename scalar>
struct LongRow {
  using T = Computed<scalar>;
  static constexpr int kLanes = kWarp;
  const scalar* row;
  int classes, lane;

  __device__ LongRow(const scalar* row, int classes, int lane) : row(row), classes(classes), lane(lane) {}

  template <typename Function>
  __device__ __forceinline__ void for_each(Function f) const {
#pragma unroll 4
    for (int64_t c = lane; c < classes; c += kLanes) f(static_cast<int>(c), static_cast<T>(row[c]));
  }
};

// Calls visit(row, i, label, slot, counts) for each sample i of the block. All lanes of a warp call it together; the
// lanes of a row have a slot of their own for its sums, to which those with `counts` add.
template <typename Row, typename scalar, typename Visit>
__device__ __forceinline__ void for_samples(const Call<scalar>& in, Visit visit) {
  constexpr int kSlots = kThreads / Row::kLanes;
  const int slot = threadIdx.x / Row::kLanes, lane = threadIdx.x % Row::kLanes;
  const int64_t step = static_cast<int64_t>(in.blocks) * kSlots;
  for (int64_t begin = static_cast<int64_t>(in.block()) * kSlots; begin < in.samples; begin += step) {
    const bool present = begin + slot < in.samples;
    const int64_t i = present ? begin + slot : in.samples - 1;
    const int64_t label = in.labels[i];
    check_label(label, in.classes);
    const scalar* logits = in.logits + (in.candidate() * in.samples + i) * in.classes;
    visit(Row(logits, in.classes, lane), i, static_cast<int>(label), static_cast<Computed<scalar>>(logits[label]), slot,
          present && lane == 0);
  }
}

// Sums of the slots, one at a time, to those of the blocks.
template <int kSlots, int kSums>
__device__ void write_sums(const double (&slots)[kSlots][kSums], int first, int count, double* sums, int blocks,
                           int block) {
  for (int k = threadIdx.x; k < count; k += blockDim.x) {
    double sum = 0;
    for (int slot = 0; slot < kSlots; ++slot) sum += slots[slot][first + k];
    sums[static_cast<int64_t>(k) * blocks + block] = sum;
  }
}

// Of the blocks of a candidate, by a warp.
__device__ double sum_over_blocks(const double* sums, int blocks) {
  double sum = 0;
  for (int block = threadIdx.x % kWarp; block < blocks; block += kWarp) sum += sums[block];
  return over_lanes<kWarp>(sum, Plus());
}

// Adds the slopes of a sample's NLL at three temperatures, where `counts`. The scales are b / log 2.
template <typename Row, typename T>
__device__ __forceinline__ void add_slopes(const Row& row, T highest, T own_logit, const T (&scales)[kPoints],
                                           bool counts, double* to) {
  T sum[kPoints] = {}, first[kPoints] = {}, second[kPoints] = {};
  row.for_each([&](int, T logit) {
    const T x = max(logit - highest, kFar<T>);
#pragma unroll
    for (int j = 0; j < kPoints; ++j) {
      const T e = power_of_2(x * scales[j]), in_first = e * x;
      sum[j] += e;
      first[j] += in_first;
      second[j] += in_first * x;
    }
  });
#pragma unroll
  for (int j = 0; j < kPoints; ++j) {
    sum[j] = over_lanes<Row::kLanes>(sum[j], Plus());
    first[j] = over_lanes<Row::kLanes>(first[j], Plus());
    second[j] = over_lanes<Row::kLanes>(second[j], Plus());
  }
  if (!counts) return;
#pragma unroll
  for (int j = 0; j < kPoints; ++j) {
    const T mean = first[j] / sum[j], square = second[j] / sum[j];
    to[2 * j] += mean - (own_logit - highest);
    to[2 * j + 1] += kLn2<T> * scales[j] * (square - mean * mean);
  }
}

// The search as it stands before a pass, from the sums of the one before, and the points of this pass.
template <typename scalar>
struct Progress {
  Search search;
  Computed<scalar> scales[kPoints];
  double sums[kSlopeSums];

  // All threads of the block call it; it ends with a barrier.
  __device__ void load(const Call<scalar>& in, int pass) {
    const int64_t k = in.candidate();
    if (pass > 0) {
      const double* from = in.slope_sums[(pass - 1) % 2] + k * kSlopeSums * in.blocks;
      for (int i = threadIdx.x / kWarp; i < kSlopeSums; i += kThreads / kWarp) {
        const double sum = sum_over_blocks(from + static_cast<int64_t>(i) * in.blocks, in.blocks);
        if (threadIdx.x % kWarp == 0) sums[i] = sum;
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      search = pass <= 1 ? Search::begin() : in.searches[(pass - 1) % 2][k];
      double u[kPoints];
      if (pass > 0 && !search.done()) {
        Slope slopes[kPoints];
        search.choose(kPasses + 2 - pass, u);
        for (int j = 0; j < kPoints; ++j) slopes[j] = Slope{sums[2 * j], sums[2 * j + 1]} + Slope::of_prior(u[j]);
        search.observe(u, slopes);
      }
      if (in.block() == 0) in.searches[pass % 2][k] = search;
      search.choose(kPasses + 1 - pass, u);
      for (int j = 0; j < kPoints; ++j) scales[j] = static_cast<Computed<scalar>>(exp(u[j]) * 1.4426950408889634);
    }
    __syncthreads();
  }
};

template <typename T>
constexpr int kBlocksAtOnce = std::is_same_v<T, double> ? 1 : 3;  // a multiprocessor

template <typename Row, typename scalar>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<Computed<scalar>>) survey(const Call<scalar> in) {
  using T = Computed<scalar>;
  constexpr int kLanes = Row::kLanes, kSlots = kThreads / kLanes, kSums = kSurveySums + kSlopeSums;
  __shared__ double slots[kSlots][kSums];
  __shared__ Progress<scalar> progress;
  for (int i = threadIdx.x; i < kSlots * kSums; i += kThreads) slots[i / kSums][i % kSums] = 0;
  progress.load(in, 0);

  for_samples<Row>(in, [&](const Row& row, int64_t i, int label, T own_logit, int slot, bool counts) {
    T highest = -kInfinity<T>;
    int above = 0, not_finite = 0;
    row.for_each([&](int c, T logit) {
      highest = max(highest, logit);
      above += logit > own_logit || (logit == own_logit && c < label);
      not_finite += c < in.classes && !(fabs(logit) < kInfinity<T>);
    });
    highest = over_lanes<kLanes>(highest, Maximum());
    above = over_lanes<kLanes>(above, Plus());
    not_finite = over_lanes<kLanes>(not_finite, Plus());

    T others = 0, squares = 0, first = 0;  // without the label, where 1 - p would lose the digits of a small difference
    row.for_each([&](int c, T logit) {
      const T x = max(logit - highest, kFar<T>), e = exponential(x), other = c == label ? T(0) : e;
      others += other;
      squares += other * other;
      first += e * x;
    });
    others = over_lanes<kLanes>(others, Plus());
    squares = over_lanes<kLanes>(squares, Plus());
    first = over_lanes<kLanes>(first, Plus());
    const T own = own_logit - highest, sum = others + exponential(own), log_sum = log_of_sum(others, own);
    const T confidence = T(1) / sum, wrong = others * confidence, correct = above < 1 ? T(1) : T(0);

    double* sums = slots[slot];
    if (counts) {
      in.highest[in.candidate() * in.samples + i] = highest;
      sums[kNotFinite] += not_finite;
      sums[kTop1] += correct;
      sums[kTop5] += above < 5 ? 1 : 0;
      sums[kNll] += log_sum - own;
      sums[kBrier] += wrong * wrong + squares * confidence * confidence;
      sums[kEntropy] += log_sum - first * confidence;
      sums[kConfidence] += confidence;
      int bin = 0;
#pragma unroll
      for (int j = 0; j < kBins - 1; ++j) bin += in.interior_edges[j] < confidence;
      sums[kGaps + bin] += correct - confidence;
    }
    add_slopes(row, highest, own_logit, progress.scales, counts, sums + kSurveySums);
  });
  __syncthreads();
  const int64_t k = in.candidate();
  write_sums(slots, 0, kSurveySums, in.survey_sums + k * kSurveySums * in.blocks, in.blocks, in.block());
  write_sums(slots, kSurveySums, kSlopeSums, in.slope_sums[0] + k * kSlopeSums * in.blocks, in.blocks, in.block());
}

template <typename Row, typename scalar>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<Computed<scalar>>) derive(const Call<scalar> in, int pass) {
  using T = Computed<scalar>;
  constexpr int kSlots = kThreads / Row::kLanes;
  __shared__ double slots[kSlots][kSlopeSums];
  __shared__ Progress<scalar> progress;
  for (int i = threadIdx.x; i < kSlots * kSlopeSums; i += kThreads) slots[i / kSlopeSums][i % kSlopeSums] = 0;
  progress.load(in, pass);
  if (progress.search.done()) return;

  for_samples<Row>(in, [&](const Row& row, int64_t i, int, T own_logit, int slot, bool counts) {
    const T highest = in.highest[in.candidate() * in.samples + i];
    add_slopes(row, highest, own_logit, progress.scales, counts, slots[slot]);
  });
  __syncthreads();
  write_sums(slots, 0, kSlopeSums, in.slope_sums[pass % 2] + in.candidate() * kSlopeSums * in.blocks, in.blocks,
             in.block());
}

template <typename Row, typename scalar>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<Computed<scalar>>) calibrate(const Call<scalar> in) {
  using T = Computed<scalar>;
  constexpr int kSlots = kThreads / Row::kLanes;
  __shared__ double slots[kSlots][1];
  __shared__ Progress<scalar> progress;
  for (int i = threadIdx.x; i < kSlots; i += kThreads) slots[i][0] = 0;
  progress.load(in, kPasses + 1);
  const T b = static_cast<T>(exp(progress.search.root()));

  for_samples<Row>(in, [&](const Row& row, int64_t i, int label, T own_logit, int slot, bool counts) {
    const T highest = in.highest[in.candidate() * in.samples + i], own = (own_logit - highest) * b;
    T others = 0;
    row.for_each([&](int c, T logit) { others += c == label ? T(0) : exponential((logit - highest) * b); });
    others = over_lanes<Row::kLanes>(others, Plus());
    if (counts) slots[slot][0] += log_of_sum(others, own) - own;
  });
  __syncthreads();
  write_sums(slots, 0, 1, in.calibrated + in.candidate() * in.blocks, in.blocks, in.block());
}

// One warp a candidate.
template <typename scalar>
__global__ void __launch_bounds__(kWarp) finish(const Call<scalar> in) {
  using T = Computed<scalar>;
  const int64_t k = blockIdx.x;
  const auto mean = [&](int sum) {
    const double* sums = in.survey_sums + (k * kSurveySums + sum) * in.blocks;
    return sum_over_blocks(sums, in.blocks) / static_cast<double>(in.samples);
  };
  double gaps = 0;
  for (int j = 0; j < kBins; ++j) gaps += fabs(mean(kGaps + j));
  const double fitted = sum_over_blocks(in.calibrated + k * in.blocks, in.blocks) / static_cast<double>(in.samples);
  const double calibrated = fmin(mean(kNll), fitted);  // they differ by rounding near T = 1
  const double temperature = exp(-in.searches[(kPasses + 1) % 2][k].root());
  const double values[] = {mean(kTop1),  mean(kTop5), mean(kNll),     calibrated,       temperature,
                           mean(kBrier), gaps,        mean(kEntropy), mean(kConfidence)};
  const bool finite = mean(kNotFinite) == 0;
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int m = 0; m < 9; ++m) {
    in.metrics[m * in.candidates + k] = static_cast<T>(finite ? values[m] : nan(""));
  }
}

// The interior edges of the bins, as torch.linspace(0, 1, 16) has them.
template <typename T>
void set_edges(T (&edges)[kBins - 1]) {
  constexpr T kStep = T(1) / kBins;
  for (int j = 1; j < kBins; ++j) {
    edges[j - 1] = j <= kBins / 2 ? kStep * static_cast<T>(j) : T(1) - kStep * static_cast<T>(kBins - j);
  }
}

template <typename Row, typename scalar>
void run_rows(Call<scalar>& call, const Tensor& logits) {
  constexpr int kSlots = kThreads / Row::kLanes;
  using T = Computed<scalar>;
  const int64_t candidates = call.candidates;
  call.blocks = static_cast<int>(std::min<int64_t>(kMostBlocks, (call.samples + kSlots - 1) / kSlots));
  const auto scratch = [&](int64_t count, ScalarType type) { return new_contiguous(logits, {count}, type); };
  const int64_t partial = candidates * call.blocks;
  const int64_t survey_sums = partial * kSurveySums, slope_sums = partial * kSlopeSums;
  const Tensor highest = scratch(candidates * call.samples, loss_type(logits));
  const Tensor sums = scratch(survey_sums + partial + 2 * slope_sums, ScalarType::Double);
  static_assert(sizeof(Search) % sizeof(double) == 0);
  constexpr int64_t kSearchSize = sizeof(Search) / sizeof(double);
  const Tensor searches = scratch(2 * candidates * kSearchSize, ScalarType::Double);
  call.highest = static_cast<T*>(highest.mutable_data_ptr());
  call.survey_sums = sums.mutable_data_ptr<double>();
  call.calibrated = call.survey_sums + survey_sums;
  call.searches[0] = static_cast<Search*>(searches.mutable_data_ptr());
  call.searches[1] = call.searches[0] + candidates;
  call.slope_sums[0] = call.calibrated + partial;
  call.slope_sums[1] = call.slope_sums[0] + slope_sums;

  STD_TORCH_CHECK(candidates <= 0x7fffffff / call.blocks, "too many candidates: ", candidates);
  const auto blocks = static_cast<unsigned>(partial);
  launch(survey<Row, scalar>, blocks, kThreads, 0, logits, call);
  for (int pass = 1; pass <= kPasses; ++pass) launch(derive<Row, scalar>, blocks, kThreads, 0, logits, call, pass);
  launch(calibrate<Row, scalar>, blocks, kThreads, 0, logits, call);
  launch(finish<scalar>, static_cast<unsigned>(candidates), kWarp, 0, logits, call);
}

template <typename scalar>
void run(const Tensor& logits, const Tensor& labels, const Tensor& metrics) {
  Call<scalar> call{};
  call.logits = static_cast<const scalar*>(logits.const_data_ptr());
  call.labels = labels.const_data_ptr<int64_t>();
  call.candidates = logits.size(0);
  call.samples = logits.size(1);
  call.classes = static_cast<int>(logits.size(2));
  call.metrics = static_cast<Computed<scalar>*>(metrics.mutable_data_ptr());
  set_edges(call.interior_edges);
  if (call.classes <= 128) {
    run_rows<RegisterRow<scalar, 8, 16>>(call, logits);
  } else if (call.classes <= 1024) {
    run_rows<RegisterRow<scalar, 32, 32>>(call, logits);
  } else {
    run_rows<LongRow<scalar>>(call, logits);
  }
}

Tensor candidate_metrics_cuda(const Tensor& logits_, const Tensor& labels_) {
  STD_TORCH_CHECK(logits_.dim() == 3 && logits_.size(0) >= 1 && logits_.size(1) >= 1 && logits_.size(2) >= 2,
                  "logits must be (K,N,C) with N >= 1 and C >= 2");
  STD_TORCH_CHECK(logits_.size(2) <= 0x7fffffff, "too many classes: ", logits_.size(2));
  STD_TORCH_CHECK(labels_.scalar_type() == ScalarType::Long && has_shape(labels_, {logits_.size(1)}),
                  "labels do not fit the logits");
  check_device("labels", labels_, "the logits", logits_);
  const Tensor logits = as_contiguous(logits_), labels = as_contiguous(labels_);
  const Tensor metrics = new_contiguous(logits, {9, logits.size(0)}, loss_type(logits));
  for_scalar_of(logits.scalar_type(), "logits", [&](auto scalar) { run<decltype(scalar)>(logits, labels, metrics); });
  return metrics;
}

}  // namespace

TFKD_CUDA_LIBRARY(library) { library.impl("candidate_metrics", TORCH_BOX(&candidate_metrics_cuda)); }

}  // namespace tfkd_fast

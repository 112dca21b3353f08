// Accuracy, likelihood and calibration of several candidates, and the temperatures that are fitted to them.
// The definition is `_reference` in tfkd_fast/ops/candidate_metrics.py.
//
// One visit to a row gives all metrics but the calibrated ones. With b = 1/T the NLL of a sample is
// log sum_c exp(b z_c) - b z_y, convex in b as is the prior: a search brackets the root of the derivative of their sum,
// which is E[z] - z_y for a sample. The second and third derivative are the variance and the third cumulant of z under
// softmax(b z); they cost little once the exponentials are there, so that a search takes few visits to the rows, the
// first of which was that at b = 1.

#include "../common/loss_cpu.h"
#include "../common/vector_math.h"

#include <array>
#include <numeric>

namespace tfkd_fast {
namespace {

constexpr int kMetrics = 9, kBins = 15;
constexpr int64_t kLanes = 16;  // rows are filled up to a multiple with -inf: no loop over classes has a remainder
constexpr double kLowest = 1.0 / 20.0, kHighest = 20.0;  // 1/T

// Derivatives in b, summed over samples.
struct Derivatives {
  double first = 0, second = 0, third = 0;

  // Those of b - 1 - log b.
  static Derivatives of_prior(double b) { return {1 - 1 / b, 1 / (b * b), -2 / (b * b * b)}; }

  Derivatives& operator+=(const Derivatives& other) {
    first += other.first, second += other.second, third += other.third;
    return *this;
  }
};

// Finds the b of least NLL and prior, where the first derivative of both passes zero, or the end of [kLowest, kHighest]
// that is nearest to it. Halley's method over log b; where it leaves the bracket or is slow, bisection.
class Search {
 public:
  double next() const { return next_; }  // the b to visit, and at the end the answer
  bool done() const { return done_; }

  void observe(const Derivatives& nll) {
    const double b = next_;
    Derivatives both = Derivatives::of_prior(b);
    both += nll;
    if (both.first < 0) {
      low_ = std::max(low_, b), visited_low_ = true;
    } else {
      high_ = std::min(high_, b), visited_high_ = true;
    }
    constexpr double kBracket = 2e-5, kStep = 1e-3;  // of log b; Halley's error is of third order in the step
    if (high_ <= low_ * (1 + kBracket)) return finish(both.first < 0 ? high_ : low_);

    const double slope = b * both.second, bend = slope + b * b * both.third;  // of the first derivative over log b
    const double step = -2 * both.first * slope / (2 * slope * slope - both.first * bend), move = std::abs(step);
    next_ = b * std::exp(step);
    const bool converges = next_ >= low_ && next_ <= high_ && !(move > 0.5 * moves_[0]);  // NaN does not
    moves_ = {moves_[1], move};
    if (converges) {
      done_ = move < kStep;
    } else if (both.first < 0 ? visited_high_ : visited_low_) {
      next_ = std::sqrt(low_ * high_);
    } else {
      next_ = both.first < 0 ? high_ : low_;
    }
  }

 private:
  void finish(double b) { next_ = b, done_ = true; }

  double low_ = kLowest, high_ = kHighest, next_ = 1;
  bool visited_low_ = false, visited_high_ = false, done_ = false;
  std::array<double, 2> moves_{std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
};

template <typename T>
struct Rows {
  int64_t count;
  int32_t classes, filled;
  const T* logits;
  const int64_t* labels;
  T* highest;  // of each row: written by `survey`
};

// Sums over samples.
struct Survey {
  bool finite = true;
  double top1 = 0, top5 = 0, nll = 0, brier = 0, entropy = 0, confidence = 0;
  std::array<double, kBins> gap{};  // correct - confidence
  Derivatives derivatives;          // of the NLL, at b = 1

  Survey& operator+=(const Survey& other) {
    finite &= other.finite;
    top1 += other.top1, top5 += other.top5, nll += other.nll, brier += other.brier, entropy += other.entropy;
    confidence += other.confidence;
    for (int j = 0; j < kBins; ++j) gap[j] += other.gap[j];
    derivatives += other.derivatives;
    return *this;
  }
};

// Raw moments of x = z - highest under softmax(b z), times `sum`.
template <typename T>
struct Moments {
  T sum = 0, first = 0, second = 0, third = 0;
};

template <typename T>
TFKD_INLINE void add_derivatives(const Moments<T>& moments, T own, Derivatives& to) {
  const double scale = 1.0 / moments.sum, first = moments.first * scale, second = moments.second * scale;
  to.first += first - own;
  to.second += second - first * first;
  to.third += moments.third * scale - 3 * first * second + 2 * first * first * first;
}

template <typename T>
TFKD_INLINE T own_exponential(T own) {
  return own == T(0) ? T(1) : exp_nonpositive(own);
}

// log(others + exp(own)), also where `others` are small beside the 1 that the label has when it is the most likely.
template <typename T>
TFKD_INLINE T log_of_sum(T others, T own) {
  return own == T(0) ? std::log1p(others) : std::log(others + exp_nonpositive(own));
}

template <typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH void survey(const Rows<T>& rows, const T* edges, Survey& out) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* logits = rows.logits + i * rows.filled;
    const int32_t label = static_cast<int32_t>(rows.labels[i]);
    const T own_logit = logits[label];

    T highest = -std::numeric_limits<T>::infinity(), finite = 0, above = 0, equal = 0;
#pragma omp simd reduction(max : highest) reduction(+ : finite, above, equal)
    for (int32_t c = 0; c < rows.filled; ++c) {
      const T z = logits[c];
      highest = z > highest ? z : highest;
      finite += std::abs(z) <= std::numeric_limits<T>::max() ? T(1) : T(0);
      above += z > own_logit ? T(1) : T(0);
      equal += z == own_logit ? T(1) : T(0);
    }
    out.finite &= finite == static_cast<T>(rows.classes);
    if (equal > T(1)) above += static_cast<T>(std::count(logits, logits + label, own_logit));  // in order of the index
    rows.highest[i] = highest;

    Moments<T> moments;
    T others = 0, squares = 0;  // without the label, where 1 - p would lose the digits of a small difference
    T &first = moments.first, &second = moments.second, &third = moments.third;
#pragma omp simd reduction(+ : others, squares, first, second, third)
    for (int32_t c = 0; c < rows.filled; ++c) {
      const T distance = logits[c] - highest;
      const T e = exp_nonpositive(distance), other = c == label ? T(0) : e;
      others += other;
      squares += other * other;
      const T x = e == T(0) ? T(0) : distance;
      const T in_first = e * x, in_second = in_first * x;
      first += in_first;
      second += in_second;
      third += in_second * x;
    }
    const T own = own_logit - highest;
    moments.sum = others + own_exponential(own);
    const T log_sum = log_of_sum(others, own);
    const T confidence = T(1) / moments.sum, wrong = others * confidence;
    const double correct = above < T(1) ? 1 : 0;

    out.top1 += correct;
    out.top5 += above < T(5) ? 1 : 0;
    out.nll += log_sum - own;
    out.brier += wrong * wrong + squares * confidence * confidence;
    out.entropy += log_sum - moments.first * confidence;
    out.confidence += confidence;
    int bin = 0;
    for (int j = 0; j < kBins - 1; ++j) bin += edges[j] < confidence;
    out.gap[bin] += correct - confidence;
    add_derivatives(moments, own, out.derivatives);
  }
}

template <typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH void derive(const Rows<T>& rows, double b, Derivatives& out) {
  const T scale = static_cast<T>(b);
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* logits = rows.logits + i * rows.filled;
    const T highest = rows.highest[i];
    Moments<T> moments;
    T &sum = moments.sum, &first = moments.first, &second = moments.second, &third = moments.third;
#pragma omp simd reduction(+ : sum, first, second, third)
    for (int32_t c = 0; c < rows.filled; ++c) {
      const T distance = logits[c] - highest;
      const T e = exp_nonpositive(distance * scale), x = e == T(0) ? T(0) : distance;
      const T in_first = e * x, in_second = in_first * x;
      sum += e;
      first += in_first;
      second += in_second;
      third += in_second * x;
    }
    add_derivatives(moments, logits[rows.labels[i]] - highest, out);
  }
}

template <typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH double nll_of(const Rows<T>& rows, double b) {
  const T scale = static_cast<T>(b);
  double nll = 0;
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* logits = rows.logits + i * rows.filled;
    const int32_t label = static_cast<int32_t>(rows.labels[i]);
    const T highest = rows.highest[i], own = (logits[label] - highest) * scale;
    T others = 0;
#pragma omp simd reduction(+ : others)
    for (int32_t c = 0; c < rows.filled; ++c) {
      const T e = exp_nonpositive((logits[c] - highest) * scale);
      others += c == label ? T(0) : e;
    }
    nll += log_of_sum(others, own) - own;
  }
  return nll;
}

// The interior edges of the bins.
template <typename T>
std::array<T, kBins - 1> bin_edges() {
  std::array<T, kBins - 1> edges;
  for (int j = 1; j < kBins; ++j) edges[j - 1] = static_cast<T>(j) / kBins;
  return edges;
}

// (K,N,C) logits, cut into blocks of rows that do not depend on the number of threads: sums over blocks, in their
// order, do not either.
template <typename scalar, typename T>
class Blocks {
 public:
  Blocks(const Tensor& logits, const Tensor& labels)
      : candidates(logits.size(0)),
        samples_(logits.size(1)),
        classes_(logits.size(2)),
        filled_((classes_ + kLanes - 1) / kLanes * kLanes),
        rows_(rows_per_task(filled_)),
        logits_(static_cast<const scalar*>(logits.const_data_ptr())),
        labels_(labels.const_data_ptr<int64_t>()),
        highest_(candidates * samples_) {}

  const int64_t candidates;

  // For each of the candidates, the sum over blocks of what `visit(candidate, rows, sum)` adds to it.
  template <typename Sum, typename Visit>
  std::vector<Sum> sums(const std::vector<int64_t>& of, Visit visit) {
    const int64_t blocks = (samples_ + rows_ - 1) / rows_, tasks = static_cast<int64_t>(of.size()) * blocks;
    std::vector<Sum> partial(tasks);
    const int64_t blocks_per_task = rows_per_task(std::min(rows_, samples_) * filled_);
    torch::stable::parallel_for(0, tasks, blocks_per_task, [&](int64_t begin, int64_t end) {
      std::vector<T> scratch(rows_ * filled_, -std::numeric_limits<T>::infinity());
      for (int64_t task = begin; task < end; ++task) {
        const int64_t candidate = of[task / blocks], first = task % blocks * rows_;
        const int64_t count = std::min(rows_, samples_ - first), row = candidate * samples_ + first;
        for (int64_t i = 0; i < count; ++i) {
          const scalar* from = logits_ + (row + i) * classes_;
          T* to = scratch.data() + i * filled_;
          const T* done = loaded(classes_, from, to);
          if (done != to) std::copy_n(done, classes_, to);
        }
        const Rows<T> rows{.count = count,
                           .classes = static_cast<int32_t>(classes_),
                           .filled = static_cast<int32_t>(filled_),
                           .logits = scratch.data(),
                           .labels = labels_ + first,
                           .highest = highest_.data() + row};
        Sum sum{};
        visit(candidate, rows, sum);
        partial[task] = sum;
      }
    });
    std::vector<Sum> totals(of.size());
    for (int64_t task = 0; task < tasks; ++task) totals[task / blocks] += partial[task];
    return totals;
  }

 private:
  const int64_t samples_, classes_, filled_, rows_;
  const scalar* logits_;
  const int64_t* labels_;
  std::vector<T> highest_;
};

template <typename scalar, typename T>
Tensor run(const Tensor& logits, const Tensor& labels) {
  const double samples = static_cast<double>(logits.size(1));
  Blocks<scalar, T> blocks(logits, labels);
  std::vector<int64_t> everyone(blocks.candidates);
  std::iota(everyone.begin(), everyone.end(), 0);

  const auto edges = bin_edges<T>();
  const auto surveys = blocks.template sums<Survey>(
      everyone, [&](int64_t, const Rows<T>& rows, Survey& sum) { survey(rows, edges.data(), sum); });

  std::vector<Search> searches(blocks.candidates);
  std::vector<int64_t> finite, searching;
  for (const int64_t k : everyone) {
    if (!surveys[k].finite) continue;
    searches[k].observe(surveys[k].derivatives);
    finite.push_back(k);
  }
  for (searching = finite;;) {
    std::erase_if(searching, [&](int64_t k) { return searches[k].done(); });
    if (searching.empty()) break;
    const auto seen = blocks.template sums<Derivatives>(
        searching, [&](int64_t k, const Rows<T>& rows, Derivatives& sum) { derive(rows, searches[k].next(), sum); });
    for (size_t i = 0; i < searching.size(); ++i) searches[searching[i]].observe(seen[i]);
  }
  const auto calibrated = blocks.template sums<double>(
      finite, [&](int64_t k, const Rows<T>& rows, double& sum) { sum = nll_of(rows, searches[k].next()); });

  const std::vector<int64_t> shape{kMetrics, blocks.candidates};
  Tensor out = torch::stable::new_empty(logits, shape, loss_type(logits));
  T* metrics = out.mutable_data_ptr<T>();
  std::fill_n(metrics, out.numel(), std::numeric_limits<T>::quiet_NaN());
  for (size_t i = 0; i < finite.size(); ++i) {
    const int64_t k = finite[i];
    const Survey& sum = surveys[k];
    double gaps = 0;
    for (const double gap : sum.gap) gaps += std::abs(gap);
    const std::array<double, kMetrics> values{sum.top1 / samples,
                                              sum.top5 / samples,
                                              sum.nll / samples,
                                              std::min(sum.nll, calibrated[i]) / samples,
                                              1 / searches[k].next(),
                                              sum.brier / samples,
                                              gaps / samples,
                                              sum.entropy / samples,
                                              sum.confidence / samples};
    for (int m = 0; m < kMetrics; ++m) metrics[m * blocks.candidates + k] = static_cast<T>(values[m]);
  }
  return out;
}

Tensor candidate_metrics_cpu(const Tensor& logits, const Tensor& labels) {
  STD_TORCH_CHECK(logits.dim() == 3 && logits.size(0) >= 1 && logits.size(1) >= 1 && logits.size(2) >= 2,
                  "logits must be (K,N,C) with N >= 1 and C >= 2");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long && has_shape(labels, {logits.size(1)}),
                  "labels do not fit the logits");
  const Tensor contiguous_logits = torch::stable::contiguous(logits);
  const Tensor contiguous_labels = torch::stable::contiguous(labels);
  check_labels(contiguous_labels, logits.size(2));
  return for_type_of(logits, [&](auto scalar, auto value) {
    return run<decltype(scalar), decltype(value)>(contiguous_logits, contiguous_labels);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("candidate_metrics", TORCH_BOX(&candidate_metrics_cpu));
}

}  // namespace tfkd_fast

// The soft-target loss, its gradient and the training statistics, one visit to a row of logits.
// The definition is `_reference` in tfkd_fast/ops/soft_target.py.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

// One copy of a function for each vector width, the widest that the processor has taken at load time.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EVERY_VECTOR_WIDTH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_VECTOR_WIDTH
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kElementsPerTask = 8192;  // about 10 us of work, well above the cost of waking a thread

// exp(x) for x <= 0, and NaN: 2^n * e^r with |r| <= ln(2)/2, e^r by its Taylor polynomial (relative error 2e-7).
// Without branches, so that the compiler vectorises it. Where the result would be subnormal it is 0.
INLINE float exp_nonpositive(float x) {
  constexpr float kLowest = -87.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
  const float clamped = x < kLowest ? kLowest : x;
  const float shifted = clamped * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const auto exponent = (std::bit_cast<uint32_t>(shifted) << 23) + (127u << 23);
  return x < kLowest ? 0.0f : series * std::bit_cast<float>(exponent);
}
INLINE double exp_nonpositive(double x) { return std::exp(x); }

// log(x) for normal x > 0: x = 2^n * m with m in [sqrt(1/2), sqrt(2)), log(m) = 2 atanh((m-1)/(m+1)) by its series.
// NaN for negative x and NaN.
INLINE float log_positive(float x) {
  constexpr uint32_t kRootHalf = 0x3f3504f3;
  const uint32_t offset = std::bit_cast<uint32_t>(x) - kRootHalf;
  const float n = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float m = std::bit_cast<float>((offset & 0x007fffffu) + kRootHalf);
  const float s = (m - 1.0f) / (m + 1.0f);  // |s| <= 0.172
  const float square = s * s;
  float series = 2.0f / 9;
  series = series * square + 2.0f / 7;
  series = series * square + 2.0f / 5;
  series = series * square + 2.0f / 3;
  const float log_m = 2.0f * s + s * square * series;
  return x >= 0.0f ? (n * -2.12194440e-4f + log_m) + n * 0.693359375f : std::numeric_limits<float>::quiet_NaN();
}
INLINE double log_positive(double x) { return std::log(x); }

template <typename T>
struct Row {
  int64_t classes;
  int64_t label;
  const T* logits;
  const T* target;
  T temperature;
  T hard_weight;
};

template <typename T>
struct Outcome {
  T loss;
  T true_probability;
  T entropy;
  bool correct;
};

template <typename T>
struct Exponentials {
  T sum;
  T dot;  // sum of exponential * exponent
};

template <typename T>
INLINE Exponentials<T> exponentials(int64_t classes, const T* logits, T highest, T scale, T* out) {
  T sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t c = 0; c < classes; ++c) {
    const T x = (logits[c] - highest) * scale;
    const T e = exp_nonpositive(x);
    out[c] = e;
    sum += e;
    dot += e == T(0) ? T(0) : e * x;
  }
  return {sum, dot};
}

// Writes the gradient of the row's loss, and with `with_stats` the softmax at temperature 1. `softened` is scratch, and
// without `with_stats` so is `probabilities`.
template <typename T>
INLINE Outcome<T> visit(const Row<T>& row, bool with_stats, T* gradient, T* softened, T* probabilities) {
  const int64_t classes = row.classes;
  const T *logits = row.logits, *target = row.target;
  const T temperature = row.temperature, hard_weight = row.hard_weight, soft_weight = T(1) - hard_weight;

  T highest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : highest)
  for (int64_t c = 0; c < classes; ++c) highest = logits[c] > highest ? logits[c] : highest;

  const T scale = T(1) / temperature;
  const auto [soft_sum, soft_dot] = exponentials(classes, logits, highest, scale, softened);

  T mass = 0, cross = 0;
#pragma omp simd reduction(+ : mass, cross)
  for (int64_t c = 0; c < classes; ++c) {
    const T q = target[c];
    const T x = (logits[c] - highest) * scale;
    mass += q;
    cross += q == T(0) ? T(0) : q * (log_positive(q) - x);
  }
  const T divergence = cross + mass * std::log(soft_sum);

  // The softmax at temperature 1, where anything asks for it.
  const T* plain = softened;
  T sum = soft_sum, dot = soft_dot;
  if (temperature != T(1) && (hard_weight != T(0) || with_stats)) {
    const auto at_one = exponentials(classes, logits, highest, T(1), probabilities);
    plain = probabilities, sum = at_one.sum, dot = at_one.dot;
  }
  const T log_sum = std::log(sum);
  const T true_log_probability = logits[row.label] - highest - log_sum;

  const T soft_factor = soft_weight * temperature;
  const T softmax_factor = soft_factor * mass / soft_sum, hard_factor = hard_weight / sum;
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) {
    gradient[c] = softmax_factor * softened[c] + hard_factor * plain[c] - soft_factor * target[c];
  }
  gradient[row.label] -= hard_weight;
  if (with_stats) {
    const T normaliser = T(1) / sum;
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) probabilities[c] = plain[c] * normaliser;
  }

  Outcome<T> outcome;
  outcome.loss = (soft_weight == T(0) ? T(0) : soft_weight * temperature * temperature * divergence) -
                 (hard_weight == T(0) ? T(0) : hard_weight * true_log_probability);
  outcome.true_probability = std::exp(true_log_probability);
  outcome.entropy = log_sum - dot / sum;
  // As argmax has it: of equal logits the one of lower index comes first.
  outcome.correct = logits[row.label] == highest && !std::isnan(sum) &&
                    std::find(logits, logits + row.label, highest) == logits + row.label;
  return outcome;
}

FOR_EVERY_VECTOR_WIDTH Outcome<float> visit_row(const Row<float>& row, bool with_stats, float* gradient,
                                                float* softened, float* probabilities) {
  return visit(row, with_stats, gradient, softened, probabilities);
}
FOR_EVERY_VECTOR_WIDTH Outcome<double> visit_row(const Row<double>& row, bool with_stats, double* gradient,
                                                 double* softened, double* probabilities) {
  return visit(row, with_stats, gradient, softened, probabilities);
}

struct Arguments {
  Tensor logits, labels, targets;
  std::optional<Tensor> temperature, hard_weight;  // none: 1 and 0
  bool class_rows;
  std::string reduction;
};

struct Results {
  Tensor loss, gradient, correct, true_probability, entropy;
};

// A value of each candidate, or one of all.
template <typename T>
T of_candidate(const std::optional<Tensor>& values, int64_t candidate, T otherwise) {
  if (!values) return otherwise;
  return values->const_data_ptr<T>()[values->dim() == 0 ? 0 : candidate * values->stride(0)];
}

// The last three results, and `similarity`, only have a meaning with `with_stats`.
template <typename scalar, typename T>
Results run(const Arguments& in, bool with_stats, const std::optional<Tensor>& similarity) {
  const int64_t axes = in.logits.dim();
  const int64_t candidates = axes == 3 ? in.logits.size(0) : 1;
  const int64_t batch = in.logits.size(axes - 2), classes = in.logits.size(axes - 1), rows = candidates * batch;
  const int64_t target_rows = in.class_rows ? classes : batch;
  const bool own_labels = in.labels.dim() == 2, own_targets = in.targets.dim() == 3;

  const scalar* logits = in.logits.const_data_ptr<scalar>();
  const int64_t* labels = in.labels.const_data_ptr<int64_t>();
  const T* targets = in.targets.const_data_ptr<T>();

  const std::vector<int64_t> lead = axes == 3 ? std::vector<int64_t>{candidates} : std::vector<int64_t>{};
  std::vector<int64_t> loss_shape = lead;
  if (in.reduction == "none") loss_shape.push_back(batch);
  constexpr auto kLossType = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  Results out;
  out.loss = torch::stable::new_empty(in.logits, loss_shape, kLossType);
  out.gradient = torch::stable::empty_like(in.logits);
  scalar* gradient = out.gradient.mutable_data_ptr<scalar>();

  std::vector<Outcome<T>> outcomes(rows);
  const auto memory = similarity ? std::make_unique_for_overwrite<T[]>(rows * classes) : nullptr;
  const int64_t rows_per_task = std::max<int64_t>(1, kElementsPerTask / classes);
  torch::stable::parallel_for(0, rows, rows_per_task, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(4 * classes);
    T *row_logits = scratch.data(), *row_gradient = row_logits + classes, *softened = row_gradient + classes;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t candidate = i / batch, sample = i % batch;
      const int64_t label = labels[own_labels ? i : sample];
      const int64_t target_row = (own_targets ? candidate * target_rows : 0) + (in.class_rows ? label : sample);
      std::copy_n(logits + i * classes, classes, row_logits);
      const Row<T> row{classes,
                       label,
                       row_logits,
                       targets + target_row * classes,
                       of_candidate<T>(in.temperature, candidate, 1),
                       of_candidate<T>(in.hard_weight, candidate, 0)};
      T* probabilities = similarity ? memory.get() + i * classes : softened + classes;
      outcomes[i] = visit_row(row, with_stats, row_gradient, softened, probabilities);
      std::copy_n(row_gradient, classes, gradient + i * classes);
    }
  });

  // From here on in the order of the samples, so that the results do not depend on the number of threads.
  const auto total = [&](int64_t candidate, auto Outcome<T>::*value) {
    double sum = 0;
    for (int64_t i = candidate * batch; i < (candidate + 1) * batch; ++i) sum += outcomes[i].*value;
    return sum;
  };
  T* loss = out.loss.mutable_data_ptr<T>();
  if (in.reduction == "none") {
    for (int64_t i = 0; i < rows; ++i) loss[i] = outcomes[i].loss;
  } else {
    const double count = in.reduction == "mean" ? static_cast<double>(batch) : 1.0;
    for (int64_t p = 0; p < candidates; ++p) loss[p] = static_cast<T>(total(p, &Outcome<T>::loss) / count);
  }
  if (with_stats) {
    const auto totals = [&](auto Outcome<T>::*value) {
      Tensor sums = torch::stable::new_empty(in.logits, lead, ScalarType::Float);
      for (int64_t p = 0; p < candidates; ++p) sums.mutable_data_ptr<float>()[p] = static_cast<float>(total(p, value));
      return sums;
    };
    out.correct = totals(&Outcome<T>::correct);
    out.true_probability = totals(&Outcome<T>::true_probability);
    out.entropy = totals(&Outcome<T>::entropy);
  }
  if (similarity) {
    float* table = similarity->mutable_data_ptr<float>();
    const int64_t of_column = similarity->stride(axes - 1), of_label = similarity->stride(axes - 2);
    const int64_t of_table = axes == 3 ? similarity->stride(0) : 0;
    const int64_t columns_per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, rows));
    torch::stable::parallel_for(0, classes, columns_per_task, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t label = labels[own_labels ? i : i % batch];
        float* line = table + (i / batch) * of_table + label * of_label;
        for (int64_t c = begin; c < end; ++c) line[c * of_column] += static_cast<float>(memory[i * classes + c]);
      }
    });
  }
  return out;
}

// Python has checked the arguments for people; this keeps a direct call of the operator from reading foreign memory.
Arguments checked(const Tensor& logits, const Tensor& labels, const Tensor& targets,
                  const std::optional<Tensor>& temperature, const std::optional<Tensor>& hard_weight, bool class_rows,
                  const std::string& reduction, const std::optional<Tensor>& similarity) {
  const auto type = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t axes = logits.dim();
  STD_TORCH_CHECK(axes == 2 || axes == 3, "logits must be (B,C) or (P,B,C)");
  const int64_t batch = logits.size(axes - 2), classes = logits.size(axes - 1);
  const auto has_shape = [&](const Tensor& tensor, std::vector<int64_t> shape, bool candidates_required = false) {
    if (tensor.dim() == axes - 2 + static_cast<int64_t>(shape.size())) {
      if (axes == 3) shape.insert(shape.begin(), logits.size(0));
    } else if (candidates_required) {
      return false;
    }
    const auto sizes = tensor.sizes();
    return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
  };
  STD_TORCH_CHECK(classes > 0, "logits must have a class");
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long && has_shape(labels, {batch}), "labels do not fit");
  STD_TORCH_CHECK(targets.scalar_type() == type && has_shape(targets, {class_rows ? classes : batch, classes}),
                  "targets do not fit");
  for (const auto& value : {temperature, hard_weight}) {
    STD_TORCH_CHECK(!value || (value->scalar_type() == type && has_shape(*value, {})),
                    "temperature and hard_weight do not fit");
  }
  STD_TORCH_CHECK(!similarity || (similarity->scalar_type() == ScalarType::Float &&
                                  has_shape(*similarity, {classes, classes}, true)),
                  "similarity does not fit");
  STD_TORCH_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none", "no such reduction: ", reduction);

  Arguments in{torch::stable::contiguous(logits),
               torch::stable::contiguous(labels),
               torch::stable::contiguous(targets),
               temperature,
               hard_weight,
               class_rows,
               reduction};
  const int64_t* label = in.labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < in.labels.numel(); ++i) {
    if (label[i] < 0 || label[i] >= classes) {  // std::out_of_range is Python's IndexError
      throw std::out_of_range("label " + std::to_string(label[i]) + " is not one of the C = " +
                              std::to_string(classes) + " classes");
    }
  }
  return in;
}

Results dispatch(const Arguments& in, bool with_stats, const std::optional<Tensor>& similarity) {
  switch (in.logits.scalar_type()) {
    case ScalarType::Float:
      return run<float, float>(in, with_stats, similarity);
    case ScalarType::Double:
      return run<double, double>(in, with_stats, similarity);
    case ScalarType::Half:
      return run<torch::headeronly::Half, float>(in, with_stats, similarity);
    case ScalarType::BFloat16:
      return run<torch::headeronly::BFloat16, float>(in, with_stats, similarity);
    default:
      throw std::runtime_error("logits must be float32, float64, float16 or bfloat16");
  }
}

std::tuple<Tensor, Tensor> loss_cpu(const Tensor& logits, const Tensor& labels, const Tensor& targets,
                                    const std::optional<Tensor>& temperature, const std::optional<Tensor>& hard_weight,
                                    bool class_rows, const std::string& reduction) {
  const auto in = checked(logits, labels, targets, temperature, hard_weight, class_rows, reduction, std::nullopt);
  const auto out = dispatch(in, false, std::nullopt);
  return {out.loss, out.gradient};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss_with_stats_cpu(
    const Tensor& logits, const Tensor& labels, const Tensor& targets, const std::optional<Tensor>& similarity,
    const std::optional<Tensor>& temperature, const std::optional<Tensor>& hard_weight, bool class_rows,
    const std::string& reduction) {
  const auto in = checked(logits, labels, targets, temperature, hard_weight, class_rows, reduction, similarity);
  const auto out = dispatch(in, true, similarity);
  return {out.loss, out.gradient, out.correct, out.true_probability, out.entropy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("soft_target_loss", TORCH_BOX(&loss_cpu));
  library.impl("soft_target_loss_with_stats", TORCH_BOX(&loss_with_stats_cpu));
}

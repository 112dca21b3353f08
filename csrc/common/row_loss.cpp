// The loss of a row, row_loss.h: its loops are compiled for every vector width, and what puts them together once.

#include "row_loss.h"
#include "vector_math.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace tfkd_fast {
namespace {

// The vector at kBits + n has all bits in the last n lanes and none in the others.
template <typename T>
struct LastLanes {
  static constexpr auto kBits = [] {
    constexpr int64_t kLanes = VectorOf<T>::kLanes;
    std::array<typename VectorOf<T>::Lane, 2 * kLanes> bits{};
    std::fill_n(bits.begin() + kLanes, kLanes, -1);
    return bits;
  }();
};

// Calls visit(c, fresh) for each vector of a row of at least one whole vector. The last one overlaps the one before it
// where the row is no multiple of the lanes: `fresh(value)` keeps a value in the lanes that were not there before, and
// makes the others 0. Masked loads and stores would cost more than the few numbers that are computed twice.
template <typename T, typename Visit>
TFKD_INLINE void for_each_vector(int64_t classes, Visit visit) {
  constexpr int64_t kLanes = VectorOf<T>::kLanes;
  const auto all = [](const Vector<T>& value) __attribute__((always_inline)) { return value; };
  int64_t c = 0;
  for (; c + kLanes <= classes; c += kLanes) visit(c, all);
  if (c < classes) {
    using Index = typename VectorOf<T>::Index;
    Index bits;
    std::memcpy(&bits, LastLanes<T>::kBits.data() + (classes - c), sizeof(bits));
    const auto rest = [&](const Vector<T>& value) __attribute__((always_inline)) {
      return reinterpret_cast<Vector<T>>(reinterpret_cast<Index>(value) & bits);
    };
    visit(classes - kLanes, rest);
  }
}
#define VISIT [&](int64_t c, auto fresh) __attribute__((always_inline))  // until the last of the loops
#define VISIT_WHOLE [&](int64_t c, auto) __attribute__((always_inline))

// The loops over a row. Each is a function of its own: together in one, the compiler runs out of registers and keeps
// the sums in memory.

template <typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH TargetSums<T> target_sums(int64_t classes, const T* target) {
  Vector<T> mass{}, negentropy{};
  for_each_vector<T>(classes, VISIT {
    const Vector<T> q = fresh(load(target + c));
    mass += q;
    negentropy += q == T(0) ? Vector<T>{} : q * log_positive(q);
  });
  return {sum_over_lanes<T>(mass), sum_over_lanes<T>(negentropy)};
}

// NaN is not seen here; it shows in the sum of the exponentials.
template <typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH T highest_of(int64_t classes, const T* logits) {
  Vector<T> highest = Vector<T>{} - std::numeric_limits<T>::infinity();
  for_each_vector<T>(classes, VISIT_WHOLE {
    const Vector<T> z = load(logits + c);
    highest = z > highest ? z : highest;
  });
  return over_lanes<T>(highest,
                       [](const auto& a, const auto& b) __attribute__((always_inline)) { return a > b ? a : b; });
}

template <typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH void scale_row(int64_t classes, T factor, T* row) {
  constexpr int64_t kLanes = VectorOf<T>::kLanes;
  const Vector<T> last = load(row + classes - kLanes) * factor;  // before its lanes are scaled in place
  for (int64_t c = 0; c + kLanes <= classes; c += kLanes) store<T>(load(row + c) * factor, row + c);
  store<T>(last, row + classes - kLanes);
}

template <typename T>
struct Exponentials {
  T sum;
  T dot;    // sum of exponential * exponent, where 0 * -inf = 0
  T cross;  // sum of target * exponent, likewise

  void operator+=(const Exponentials& other) {
    sum += other.sum;
    dot += other.dot;
    cross += other.cross;
  }
};

template <bool kWithDot, bool kWithCross, typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH Exponentials<T> exponentials(int64_t classes, const T* logits, const T* target, T highest,
                                                         T scale, T* out) {
  Vector<T> sum{}, dot{}, cross{};
  for_each_vector<T>(classes, VISIT {
    const Vector<T> x = (load(logits + c) - highest) * scale;
    const Vector<T> e = exp_nonpositive(x);
    store<T>(e, out + c);
    sum += fresh(e);
    if constexpr (kWithDot) dot += fresh(e == T(0) ? Vector<T>{} : e * x);
    if constexpr (kWithCross) {
      const Vector<T> q = load(target + c);
      cross += fresh(q == T(0) ? Vector<T>{} : q * x);
    }
  });
  return {sum_over_lanes<T>(sum), kWithDot ? sum_over_lanes<T>(dot) : T(0),
          kWithCross ? sum_over_lanes<T>(cross) : T(0)};
}

template <typename T>
Exponentials<T> exponentials_without_target(int64_t classes, const T* logits, T highest, T scale, T* out) {
  return exponentials<true, false>(classes, logits, logits, highest, scale, out);
}

// A row that is shorter than a vector, filled up with classes that change nothing: logit -inf, target 0.
template <typename T>
struct ShortRow {
  T values[VectorOf<T>::kLanes];

  ShortRow(int64_t classes, const T* row, T fill) {
    std::fill_n(values, VectorOf<T>::kLanes, fill);
    std::copy_n(row, classes, values);
  }
};

// gradient = softmax_factor * softened + hard_factor * plain - target_factor * target
template <bool kWithPlain, typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH void combine(int64_t classes, T softmax_factor, const T* softened, T hard_factor,
                                         const T* plain, T target_factor, const T* target, T* gradient) {
  for_each_vector<T>(classes, VISIT_WHOLE {
    Vector<T> softmaxes = softmax_factor * load(softened + c);
    if constexpr (kWithPlain) softmaxes += hard_factor * load(plain + c);
    store<T>(softmaxes - target_factor * load(target + c), gradient + c);
  });
}

#undef VISIT
#undef VISIT_WHOLE

using Halves = uint16_t __attribute__((vector_size(32)));
using Unsigned = uint32_t __attribute__((vector_size(64)));

// The upper half of a float is a bfloat16.
TFKD_INLINE Floats widened(const Halves& bits) {
  return reinterpret_cast<Floats>(__builtin_convertvector(bits, Unsigned) << 16);
}
// Rounds to nearest, of two equally near ones to the even one; every NaN becomes the quiet one.
TFKD_INLINE Halves narrowed(const Floats& x) {
  const Unsigned bits = reinterpret_cast<Unsigned>(x);
  const Unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(x == x ? rounded : Unsigned{} + 0x7fc0u, Halves);
}

template <typename From, typename To>
TFKD_INLINE void convert(int64_t count, const From* from, To* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
}

template <typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH void add(int64_t classes, T weight, const T* from, T* to) {
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) to[c] += weight * from[c];
}

// The sums over a long row, part by part: one running sum in float32 would lose its last digits.
template <typename Sums, typename Part>
Sums in_parts(int64_t classes, Part part) {
  constexpr int64_t kPart = 1024;
  Sums total{};
  for (int64_t begin = 0; begin < classes;) {
    const int64_t left = classes - begin, count = left < 2 * kPart ? left : kPart;
    total += part(begin, count);
    begin += count;
  }
  return total;
}

template <typename T>
Outcome<T> whole_row_loss(const RowLoss<T>& row, bool with_stats, T* gradient, T* softened, T* probabilities) {
  const int64_t classes = row.classes;
  const T *logits = row.logits, *target = row.target;
  const T temperature = row.temperature, soft_weight = row.soft_weight, hard_weight = row.hard_weight;

  const T highest = highest_of(classes, logits);
  const auto soft = in_parts<Exponentials<T>>(classes, [&](int64_t begin, int64_t count) {
    const T *z = logits + begin, *q = target + begin;
    return (with_stats ? exponentials<true, true, T>
                       : exponentials<false, true, T>)(count, z, q, highest, T(1) / temperature, softened + begin);
  });
  const T divergence = row.sums.negentropy - soft.cross + row.sums.mass * std::log(soft.sum);

  // The softmax at temperature 1, where anything asks for it.
  const T* plain = softened;
  T sum = soft.sum, dot = soft.dot;
  if (temperature != T(1) && (hard_weight != T(0) || with_stats)) {
    const auto at_one = in_parts<Exponentials<T>>(classes, [&](int64_t begin, int64_t count) {
      return exponentials_without_target(count, logits + begin, highest, T(1), probabilities + begin);
    });
    plain = probabilities, sum = at_one.sum, dot = at_one.dot;
  }

  const T soft_factor = soft_weight * temperature * row.gradient_scale;
  const T softmax_factor = soft_factor * row.sums.mass / soft.sum;
  if (hard_weight == T(0)) {
    combine<false>(classes, softmax_factor, softened, T(0), softened, soft_factor, target, gradient);
  } else {
    const T hard_factor = hard_weight * row.gradient_scale / sum;
    combine<true>(classes, softmax_factor, softened, hard_factor, plain, soft_factor, target, gradient);
    gradient[row.label] -= hard_weight * row.gradient_scale;
  }

  Outcome<T> outcome{};
  outcome.loss = soft_weight == T(0) ? T(0) : soft_weight * temperature * temperature * divergence;
  if (hard_weight == T(0) && !with_stats) return outcome;
  const T log_sum = std::log(sum), true_log_probability = logits[row.label] - highest - log_sum;
  outcome.loss -= hard_weight == T(0) ? T(0) : hard_weight * true_log_probability;
  if (!with_stats) return outcome;
  if (plain != probabilities) std::copy_n(plain, classes, probabilities);
  scale_row(classes, T(1) / sum, probabilities);
  outcome.true_probability = std::exp(true_log_probability);
  outcome.entropy = log_sum - dot / sum;
  // As argmax has it: of equal logits the one of lower index comes first.
  outcome.correct = logits[row.label] == highest && !std::isnan(sum) &&
                    std::find(logits, logits + row.label, highest) == logits + row.label;
  return outcome;
}

template <typename T>
bool is_short(int64_t classes) {
  return classes < VectorOf<T>::kLanes;
}

}  // namespace

template <typename T>
TargetSums<T> sums_of_target(int64_t classes, const T* target) {
  if (!is_short<T>(classes)) {
    return in_parts<TargetSums<T>>(classes,
                                   [&](int64_t begin, int64_t count) { return target_sums(count, target + begin); });
  }
  return target_sums(VectorOf<T>::kLanes, ShortRow<T>(classes, target, T(0)).values);
}

template <typename T>
Outcome<T> row_loss(const RowLoss<T>& row, bool with_stats, T* gradient, T* softened, T* probabilities) {
  if (!is_short<T>(row.classes)) return whole_row_loss(row, with_stats, gradient, softened, probabilities);
  const ShortRow<T> logits(row.classes, row.logits, -std::numeric_limits<T>::infinity());
  const ShortRow<T> target(row.classes, row.target, T(0));
  T whole_gradient[VectorOf<T>::kLanes];
  RowLoss<T> whole = row;
  whole.classes = VectorOf<T>::kLanes, whole.logits = logits.values, whole.target = target.values;
  const auto outcome = whole_row_loss(whole, with_stats, whole_gradient, softened, probabilities);
  std::copy_n(whole_gradient, row.classes, gradient);
  return outcome;
}

template <typename T>
T softmax_row(int64_t classes, const T* logits, T temperature, T* probabilities) {
  if (is_short<T>(classes)) {
    const ShortRow<T> row(classes, logits, -std::numeric_limits<T>::infinity());
    return softmax_row(VectorOf<T>::kLanes, row.values, temperature, probabilities);
  }
  const T highest = highest_of(classes, logits);
  const auto at = in_parts<Exponentials<T>>(classes, [&](int64_t begin, int64_t count) {
    return exponentials_without_target(count, logits + begin, highest, T(1) / temperature, probabilities + begin);
  });
  scale_row(classes, T(1) / at.sum, probabilities);
  return at.dot / at.sum - std::log(at.sum);
}

template <typename T>
void add_row(int64_t classes, T weight, const T* from, T* to) {
  add(classes, weight, from, to);
}

#define INSTANTIATE(T)                                               \
  template TargetSums<T> sums_of_target(int64_t, const T*);          \
  template Outcome<T> row_loss(const RowLoss<T>&, bool, T*, T*, T*); \
  template T softmax_row(int64_t, const T*, T, T*);                  \
  template void add_row(int64_t, T, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

TFKD_FOR_EVERY_VECTOR_WIDTH void load_row(int64_t count, const BFloat16* from, float* to) {
  const int64_t whole = count / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    Halves bits;
    std::memcpy(&bits, from + i, sizeof(bits));
    store<float>(widened(bits), to + i);
  }
  convert(count - whole, from + whole, to + whole);
}

TFKD_FOR_EVERY_VECTOR_WIDTH void store_row(int64_t count, const float* from, BFloat16* to) {
  const int64_t whole = count / 16 * 16;
  for (int64_t i = 0; i < whole; i += 16) {
    const Halves bits = narrowed(load(from + i));
    std::memcpy(to + i, &bits, sizeof(bits));
  }
  convert(count - whole, from + whole, to + whole);
}

TFKD_FOR_EVERY_VECTOR_WIDTH void load_row(int64_t count, const Half* from, float* to) { convert(count, from, to); }
TFKD_FOR_EVERY_VECTOR_WIDTH void store_row(int64_t count, const float* from, Half* to) { convert(count, from, to); }

}  // namespace tfkd_fast

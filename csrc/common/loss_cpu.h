// What the losses do alike on the processor: the dtypes, the labels, the rows in and out, the sum over the batch.
#pragma once

#include "arguments.h"
#include "gradient_memory.h"
#include "row_loss.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <type_traits>
#include <utility>

namespace tfkd_fast {

constexpr int64_t kElementsPerTask = 8192;  // about 5 us of work, above the cost of waking a thread

inline int64_t rows_per_task(int64_t elements_per_row) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, elements_per_row));
}

// Calls f(scalar{}, T{}) with the type of the logits and the type that the loss is computed in.
template <typename Function>
auto for_type_of(const Tensor& logits, Function f) {
  return for_scalar_of(logits.scalar_type(), "logits",
                       [&](auto scalar) { return f(scalar, Computed<decltype(scalar)>{}); });
}

// `labels` contiguous. std::out_of_range is Python's IndexError.
inline void check_labels(const Tensor& labels, int64_t classes) {
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0, count = labels.numel(); i < count; ++i) {
    if (label[i] < 0 || label[i] >= classes) {
      throw std::out_of_range("label " + std::to_string(label[i]) +
                              " is not one of the C = " + std::to_string(classes) + " classes");
    }
  }
}

// One value for each candidate, or one for all, of any stride. It is read from memory: asking the tensor for it would
// call into torch for every row of logits.
template <typename T>
class CandidateValues {
 public:
  explicit CandidateValues(const Tensor& values)
      : values_(values.const_data_ptr<T>()), stride_(values.dim() == 0 ? 0 : values.stride(0)) {}
  CandidateValues(const std::optional<Tensor>& values, T otherwise) : otherwise_(otherwise) {
    if (values) *this = CandidateValues(*values);
  }
  T operator[](int64_t candidate) const { return values_ ? values_[candidate * stride_] : otherwise_; }

 private:
  const T* values_ = nullptr;
  int64_t stride_ = 0;
  T otherwise_{};
};

// `count` values in the type of the loss: themselves, or converted into `scratch`.
template <typename scalar, typename T>
const T* loaded(int64_t count, const scalar* values, T* scratch) {
  if constexpr (std::is_same_v<scalar, T>) {
    return values;
  } else {
    load_row(count, values, scratch);
    return scratch;
  }
}

// Has a row on its way from memory while the one before it is computed. The processor itself begins anew at every page.
template <typename scalar>
void prefetch(const scalar* row, int64_t count) {
  constexpr int64_t kLine = 64;
  const auto* begin = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(scalar)); i += kLine) __builtin_prefetch(begin + i);
}

// The place to compute a row of results in: `row` itself where the types are the same, or else `scratch`.
template <typename scalar, typename T>
T* computed_in(scalar* row, T* scratch) {
  if constexpr (std::is_same_v<scalar, T>) {
    return row;
  } else {
    return scratch;
  }
}

// Writes what was computed there to `row`.
template <typename scalar, typename T>
void stored(int64_t count, const T* computed, scalar* row) {
  if constexpr (!std::is_same_v<scalar, T>) store_row(count, computed, row);
}

// The sum of one value over the rows of a candidate, in their order: it does not depend on the number of threads.
template <typename T, typename Value>
double sum_over_batch(const std::vector<Outcome<T>>& outcomes, Value Outcome<T>::* value, const Axes& axes,
                      int64_t candidate) {
  double sum = 0;
  for (int64_t i = candidate * axes.batch; i < (candidate + 1) * axes.batch; ++i) sum += outcomes[i].*value;
  return sum;
}

template <typename T>
Tensor reduced_loss(const std::vector<Outcome<T>>& outcomes, const Tensor& logits, const Axes& axes,
                    const std::string& reduction) {
  Tensor loss = empty_loss(logits, axes, reduction);
  T* out = loss.mutable_data_ptr<T>();
  if (reduction == "none") {
    for (int64_t i = 0; i < axes.rows(); ++i) out[i] = outcomes[i].loss;
  } else {
    const double count = reduction == "mean" ? static_cast<double>(axes.batch) : 1.0;
    for (int64_t p = 0; p < axes.candidates; ++p) {
      out[p] = static_cast<T>(sum_over_batch(outcomes, &Outcome<T>::loss, axes, p) / count);
    }
  }
  return loss;
}

}  // namespace tfkd_fast

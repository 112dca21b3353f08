// One row of logits: its loss and the gradient of it, on the processor. Each function is compiled for several vector
// widths.
#pragma once

#include "outcome.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <vector>

namespace tfkd_fast {

template <typename T>
struct TargetSums {
  T mass;        // sum of q
  T negentropy;  // sum of q log q, where 0 log 0 = 0

  void operator+=(const TargetSums& other) {
    mass += other.mass;
    negentropy += other.negentropy;
  }
};

template <typename T>
struct RowLoss {
  int64_t classes;
  int64_t label;  // -1: none, and then hard_weight is 0
  const T* logits;
  const T* target;
  TargetSums<T> sums;
  T temperature;
  T soft_weight;
  T hard_weight;
  T gradient_scale;
};

// Rows of scratch memory. Each has room for whole vectors and begins at a cache line.
template <typename T>
class ScratchRows {
 public:
  ScratchRows(int64_t classes, int64_t rows)
      : stride_((classes + kLine - 1) / kLine * kLine), memory_(rows * stride_ + kLine) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    first_ = memory_.data() + (-address % (kLine * sizeof(T))) / sizeof(T);
  }
  T* operator[](int64_t row) { return first_ + row * stride_; }

 private:
  static constexpr int64_t kLine = 16;
  int64_t stride_;
  std::vector<T> memory_;
  T* first_;
};

// These are defined for float and double.

template <typename T>
TargetSums<T> sums_of_target(int64_t classes, const T* target);

// soft_weight * T^2 * KL(target || softmax(logits / T)) + hard_weight * CE(label, softmax(logits)). A weight of 0 takes
// its term away, even where that is infinite. `gradient` gets the derivative in the logits, times gradient_scale. The
// other two are rows of scratch memory; with statistics `probabilities` gets the softmax at temperature 1.
template <typename T>
Outcome<T> row_loss(const RowLoss<T>& row, bool with_stats, T* gradient, T* softened, T* probabilities);

// probabilities = softmax(logits / temperature), a row of scratch memory; the result is its negentropy.
template <typename T>
T softmax_row(int64_t classes, const T* logits, T temperature, T* probabilities);

// to += weight * from
template <typename T>
void add_row(int64_t classes, T weight, const T* from, T* to);

void load_row(int64_t count, const torch::headeronly::BFloat16* from, float* to);
void load_row(int64_t count, const torch::headeronly::Half* from, float* to);
void store_row(int64_t count, const float* from, torch::headeronly::BFloat16* to);
void store_row(int64_t count, const float* from, torch::headeronly::Half* to);

}  // namespace tfkd_fast

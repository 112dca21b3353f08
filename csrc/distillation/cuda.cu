// The distillation loss and its gradient on CUDA. The definition is `_reference` in tfkd_fast/ops/distillation.py.
//
// Moves B*C logits in and B*C gradients out, and M*B*C teacher logits in. The mean of the teachers' predictions,
// weighted, is the target row; a long row's teachers are read a second time when it is formed.

#include "../common/loss.cuh"

#include <tuple>

namespace tfkd_fast {
namespace {

// The teachers' dtype need not be that of the student. It is looked up at run time: a branch a row costs less than
// kernels for every pair.
enum class TeacherType { kFloat, kBFloat16, kHalf, kDouble };

TeacherType teacher_type(const Tensor& teachers) {
  return for_scalar_of(teachers.scalar_type(), "teachers", [](auto scalar) {
    using Scalar = decltype(scalar);
    return std::is_same_v<Scalar, float>      ? TeacherType::kFloat
           : std::is_same_v<Scalar, BFloat16> ? TeacherType::kBFloat16
           : std::is_same_v<Scalar, Half>     ? TeacherType::kHalf
                                              : TeacherType::kDouble;
  });
}

// See rows_in_registers. Outside of the template, of which double is never in registers: nvcc would warn.
struct ForRegisters {
  static constexpr int kArrays = 3;
  static constexpr bool kWithLogarithm = false;
};

template <typename T>
struct Teachers : ForRegisters {
  const void* logits;  // (M,B,C) or (P,M,B,C)
  TeacherType type;
  int count;
  int64_t rows_of_candidate, batch;
  const T* weights;  // null: 1/M each
  int64_t weight_strides[3];

  __device__ __forceinline__ T weight(int64_t candidate, int64_t sample, int m) const {
    if (weights == nullptr) return T(1) / static_cast<T>(count);
    return weights[candidate * weight_strides[0] + sample * weight_strides[1] + m * weight_strides[2]];
  }

  // Calls f with the row of teacher m in its own type.
  template <typename Function>
  __device__ __forceinline__ void with_row(int64_t candidate, int64_t sample, int m, int classes, Function f) const {
    const int64_t start = (candidate * rows_of_candidate + m * batch + sample) * classes;
    if constexpr (std::is_same_v<T, double>) {
      f(static_cast<const double*>(logits) + start);
    } else if (type == TeacherType::kFloat) {
      f(static_cast<const float*>(logits) + start);
    } else if (type == TeacherType::kBFloat16) {
      f(static_cast<const BFloat16*>(logits) + start);
    } else {
      f(static_cast<const Half*>(logits) + start);
    }
  }

  template <typename S>
  __device__ __forceinline__ float load(const Place& place, const Terms<float>& terms, float (&q)[S::kItems]) const {
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) q[i] = 0.0f;
    float negentropy = 0.0f;
    for (int m = 0; m < count; ++m) {
      float values[S::kItems];
      with_row(place.candidate, place.sample, m, place.classes, [&](const auto* row) {
        using scalar = std::remove_cvref_t<decltype(*row)>;
        RowPart<scalar, S> part;
        part.fill(kNoLogits<scalar>);
        if (place.present) part.load(row, place.classes, place.vector_bits, place.lane);
#pragma unroll
        for (int i = 0; i < S::kItems; ++i) values[i] = part.get(i);
      });
      const float weight_of_row = place.present ? weight(place.candidate, place.sample, m) : 0.0f;
      const Exponent<float> softened(highest_of<S>(values), terms.temperature);
      float sum = 0.0f, dot = 0.0f;
#pragma unroll
      for (int i = 0; i < S::kItems; ++i) {
        const float x = softened(values[i]);
        values[i] = power_of_2(x);
        sum += values[i];
        dot += weighted(values[i], x);
      }
      sum = over_lanes<S::kLanes>(sum, Plus());
      if (weight_of_row == 0.0f) continue;  // for whole rows, and nothing is exchanged below
      const float factor = weight_of_row * __fdividef(1.0f, sum);
#pragma unroll
      for (int i = 0; i < S::kItems; ++i) q[i] += factor * values[i];
      negentropy += factor * dot - (place.lane == 0 ? weight_of_row * log_2(sum) : 0.0f);
    }
    return negentropy;
  }

  // What is known of a teacher's row when the target is formed.
  struct Known {
    T shift, factor, log_sum;
  };

  struct Row {
    const Teachers& teachers;
    int64_t candidate, sample;
    int classes;
    T scale;
    const Known* known;
    T mass;

    template <int kVector>
    __device__ __forceinline__ void get(int c, T (&q)[kVector], T& negentropy) const {
      for (int m = 0; m < teachers.count; ++m) {
        const auto [shift, factor, log_sum] = known[m];
        if (factor == T(0)) continue;
        T values[kVector];
        teachers.with_row(candidate, sample, m, classes, [&](const auto* row) {
          using scalar = std::remove_cvref_t<decltype(*row)>;
          const auto loaded = reinterpret_cast<const AlignedVector<scalar, kVector>*>(row)[c / kVector];
#pragma unroll
          for (int j = 0; j < kVector; ++j) values[j] = static_cast<T>(loaded.at[j]);
        });
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const T x = multiply_add(values[j], scale, shift), share = factor * power_of_2(x);
          q[j] += share;
          negentropy += weighted(share, x - log_sum);
        }
      }
    }
  };

  template <int kVector>
  __device__ Row open(int64_t candidate, int64_t sample, int64_t, int classes, const Terms<T>& terms,
                      unsigned char* memory, T* scratch) const {
    auto* known = reinterpret_cast<Known*>(memory);
    T mass = 0;
    for (int m = 0; m < count; ++m) {
      OnlineSoftmax<T> online{terms.temperature, false};
      with_row(candidate, sample, m, classes, [&](const auto* row) {
        for_vectors<kVector, 4>(row, classes, [&](int, const auto& loaded) { online.add(loaded); });
      });
      online.over_block(scratch);
      const Exponent<T> softened(online.highest, terms.temperature);
      const T factor = weighted(weight(candidate, sample, m), T(1) / online.sum);
      mass += weighted(factor, online.sum);
      if (threadIdx.x == 0) known[m] = {softened.shift, factor, log_2(online.sum)};
    }
    __syncthreads();
    return {*this, candidate, sample, classes, kLog2E<T> / terms.temperature, known, mass};
  }
};

std::tuple<Tensor, Tensor> loss_cuda(const Tensor& logits_, const Tensor& teachers_,
                                     const std::optional<Tensor>& labels, const std::optional<Tensor>& weights,
                                     const Tensor& temperature, const Tensor& alpha, const std::string& reduction) {
  const Axes axes = axes_of(logits_);
  const ScalarType type = loss_type(logits_);
  STD_TORCH_CHECK(teachers_.dim() >= 3 && teachers_.size(teachers_.dim() - 3) > 0,
                  "teachers must be (M,B,C) or (P,M,B,C)");
  const int64_t count = teachers_.size(teachers_.dim() - 3);
  check_shape("teachers", teachers_, teachers_.scalar_type(), axes, {count, axes.batch, axes.classes});
  STD_TORCH_CHECK(loss_type(teachers_) == type, "teachers must be float64 where the logits are, and only there");
  if (labels) check_shape("labels", *labels, ScalarType::Long, axes, {axes.batch});
  if (weights) check_shape("weights", *weights, type, axes, {axes.batch, count});
  check_shape("temperature", temperature, type, axes, {});
  check_shape("alpha", alpha, type, axes, {});
  check_device("teachers", teachers_, "the logits", logits_);
  if (weights) check_device("weights", *weights, "the logits", logits_);
  check_reduction(reduction);

  const Tensor logits = as_contiguous(logits_), teachers = as_contiguous(teachers_);
  const LossCall call{.logits = logits,
                      .labels = labels ? std::optional(as_contiguous(*labels)) : std::nullopt,
                      .temperature = temperature,
                      .weight = alpha,
                      .weight_is_hard = false,
                      .reduction = reduction,
                      .axes = axes,
                      .vector_bits = vector_bits(axes.classes, {logits, teachers})};
  const LossResults out = for_scalar_of(logits.scalar_type(), "logits", [&](auto scalar) {
    using T = Computed<decltype(scalar)>;
    Teachers<T> target{};
    target.logits = teachers.const_data_ptr();
    target.type = teacher_type(teachers);
    target.count = static_cast<int>(count);
    target.rows_of_candidate = has_candidates(teachers, 3) ? count * axes.batch : 0;
    target.batch = axes.batch;
    if (weights) {
      target.weights = weights->template const_data_ptr<T>();
      const int64_t own = has_candidates(*weights, 2) ? 1 : 0;
      target.weight_strides[0] = own ? weights->stride(0) : 0;
      target.weight_strides[1] = weights->stride(own);
      target.weight_strides[2] = weights->stride(own + 1);
    }
    constexpr int kAlignment = 16;
    const auto bytes = static_cast<int>(count * sizeof(typename Teachers<T>::Known));
    return run<false, decltype(scalar)>(call, target, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  });
  return {out.loss, out.gradient};
}

}  // namespace

TFKD_CUDA_LIBRARY(library) { library.impl("distillation_loss", TORCH_BOX(&loss_cuda)); }

}  // namespace tfkd_fast

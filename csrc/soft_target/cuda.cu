// The soft-target loss, its gradient and the training statistics on CUDA. The definition is `_reference` in
// tfkd_fast/ops/soft_target.py.
//
// Moves B*C logits in and B*C gradients out, and B*C targets in when each sample has its own; a class table of up to
// 128 classes stays in the first-level cache.

#include "../common/loss.cuh"

#include <tuple>

namespace tfkd_fast {
namespace {

// See rows_in_registers. Outside of the template, of which double is never in registers: nvcc would warn.
struct ForRegisters {
  static constexpr int kArrays = 2;
  static constexpr bool kWithLogarithm = true;
};

template <typename T>
struct TargetRows : ForRegisters {
  const T* rows;
  int64_t rows_of_candidate;  // 0: all candidates have the same
  bool of_class;              // or of sample

  __device__ const T* row(int64_t candidate, int64_t sample, int64_t label, int classes) const {
    return rows + (candidate * rows_of_candidate + (of_class ? label : sample)) * classes;
  }

  template <typename S>
  __device__ __forceinline__ float load(const Place& place, const Terms<float>&, float (&q)[S::kItems]) const {
    RowPart<float, S> part;
    part.fill(0);
    if (place.present) {
      part.load(row(place.candidate, place.sample, place.label, place.classes), place.classes, place.vector_bits,
                place.lane);
    }
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) q[i] = part.get(i);
    return 0.0f;
  }

  struct Row {
    const T* q;
    T mass;

    template <int kVector>
    __device__ __forceinline__ void get(int c, T (&target)[kVector], T& negentropy) const {
      const auto loaded = reinterpret_cast<const AlignedVector<T, kVector>*>(q)[c / kVector];
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        target[j] = loaded.at[j];
        negentropy += target[j] == T(0) ? T(0) : target[j] * quick_log_2(target[j]);
      }
    }
  };

  template <int kVector>
  __device__ Row open(int64_t candidate, int64_t sample, int64_t label, int classes, const Terms<T>&, unsigned char*,
                      T* scratch) const {
    const T* q = row(candidate, sample, label, classes);
    T mass = 0;
    for_vectors<kVector, 4>(q, classes, [&](int, const AlignedVector<T, kVector>& loaded) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) mass += loaded.at[j];
    });
    return {q, over_block(mass, T(0), scratch, Plus())};
  }
};

LossResults loss(const Tensor& logits_, const Tensor& labels_, const Tensor& targets_,
                 const std::optional<Tensor>& temperature, const std::optional<Tensor>& hard_weight, bool class_rows,
                 const std::string& reduction, bool with_stats, const std::optional<Tensor>& similarity) {
  const Axes axes = axes_of(logits_);
  const ScalarType type = loss_type(logits_);
  check_shape("labels", labels_, ScalarType::Long, axes, {axes.batch});
  check_shape("targets", targets_, type, axes, {class_rows ? axes.classes : axes.batch, axes.classes});
  if (temperature) check_shape("temperature", *temperature, type, axes, {});
  if (hard_weight) check_shape("hard_weight", *hard_weight, type, axes, {});
  check_device("targets", targets_, "the logits", logits_);
  check_reduction(reduction);
  STD_TORCH_CHECK(!similarity || (similarity->scalar_type() == ScalarType::Float &&
                                  has_shape(*similarity, axes.shape({axes.classes, axes.classes}))),
                  "similarity does not fit the logits");
  const Tensor logits = as_contiguous(logits_), labels = as_contiguous(labels_), targets = as_contiguous(targets_);
  const LossCall call{.logits = logits,
                      .labels = labels,
                      .temperature = temperature,
                      .weight = hard_weight,
                      .weight_is_hard = true,
                      .with_stats = with_stats,
                      .similarity = similarity,
                      .reduction = reduction,
                      .axes = axes,
                      .vector_bits = vector_bits(axes.classes, {logits, targets})};
  return for_scalar_of(logits.scalar_type(), "logits", [&](auto scalar) {
    using T = Computed<decltype(scalar)>;
    TargetRows<T> rows{};
    rows.rows = targets.const_data_ptr<T>();
    rows.rows_of_candidate = has_candidates(targets, 2) ? targets.size(1) : 0;
    rows.of_class = class_rows;
    return run<true, decltype(scalar)>(call, rows, 0);
  });
}

std::tuple<Tensor, Tensor> loss_cuda(const Tensor& logits, const Tensor& labels, const Tensor& targets,
                                     const std::optional<Tensor>& temperature, const std::optional<Tensor>& hard_weight,
                                     bool class_rows, const std::string& reduction) {
  const auto out = loss(logits, labels, targets, temperature, hard_weight, class_rows, reduction, false, std::nullopt);
  return {out.loss, out.gradient};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss_with_stats_cuda(const Tensor& logits, const Tensor& labels,
                                                                        const Tensor& targets,
                                                                        const std::optional<Tensor>& similarity,
                                                                        const std::optional<Tensor>& temperature,
                                                                        const std::optional<Tensor>& hard_weight,
                                                                        bool class_rows, const std::string& reduction) {
  const auto out = loss(logits, labels, targets, temperature, hard_weight, class_rows, reduction, true, similarity);
  return {out.loss, out.gradient, out.correct, out.true_probability, out.entropy};
}

}  // namespace

TFKD_CUDA_LIBRARY(library) {
  library.impl("soft_target_loss", TORCH_BOX(&loss_cuda));
  library.impl("soft_target_loss_with_stats", TORCH_BOX(&loss_with_stats_cuda));
}

}  // namespace tfkd_fast

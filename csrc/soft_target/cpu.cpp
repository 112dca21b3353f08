// The soft-target loss, its gradient and the training statistics, one visit to a row of logits.
// The definition is `_reference` in tfkd_fast/ops/soft_target.py.

#include "../common/loss_cpu.h"

#include <numeric>
#include <tuple>

namespace tfkd_fast {
namespace {

struct Arguments {
  Tensor logits, labels, targets;
  std::optional<Tensor> temperature, hard_weight;  // none: 1 and 0
  bool class_rows;
  std::string reduction;
  Axes axes;
};

Arguments checked(const Tensor& logits, const Tensor& labels, const Tensor& targets,
                  const std::optional<Tensor>& temperature, const std::optional<Tensor>& hard_weight, bool class_rows,
                  const std::string& reduction) {
  const Axes axes = axes_of(logits);
  const ScalarType type = loss_type(logits);
  check_shape("labels", labels, ScalarType::Long, axes, {axes.batch});
  check_shape("targets", targets, type, axes, {class_rows ? axes.classes : axes.batch, axes.classes});
  if (temperature) check_shape("temperature", *temperature, type, axes, {});
  if (hard_weight) check_shape("hard_weight", *hard_weight, type, axes, {});
  check_reduction(reduction);
  Arguments in{as_contiguous(logits),
               as_contiguous(labels),
               as_contiguous(targets),
               temperature,
               hard_weight,
               class_rows,
               reduction,
               axes};
  check_labels(in.labels, axes.classes);
  return in;
}

// The rows by candidate and label, in their order where these are equal: who adds to one row of the similarity table
// adds alone, and in the same order for any number of threads.
std::vector<int64_t> sorted_by_label(const Arguments& in, const std::vector<int64_t>& group) {
  std::vector<int64_t> starts(in.axes.candidates * in.axes.classes + 1), order(in.axes.rows());
  for (const int64_t g : group) ++starts[g + 1];
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  for (int64_t i = 0; i < in.axes.rows(); ++i) order[starts[group[i]]++] = i;
  return order;
}

struct Results {
  Tensor loss, gradient, correct, true_probability, entropy;  // the last three with statistics
};

template <typename scalar, typename T>
Results run(const Arguments& in, bool with_stats, const std::optional<Tensor>& similarity) {
  const auto [with_candidates, candidates, batch, classes] = in.axes;
  const int64_t rows = in.axes.rows();
  const auto* logits = static_cast<const scalar*>(in.logits.const_data_ptr());
  const int64_t* labels = in.labels.const_data_ptr<int64_t>();
  const T* targets = in.targets.const_data_ptr<T>();
  const bool own_labels = has_candidates(in.labels, 1), own_targets = has_candidates(in.targets, 2);
  const int64_t rows_of_target = in.class_rows ? classes : batch;
  const CandidateValues<T> temperatures(in.temperature, T(1)), hard_weights(in.hard_weight, T(0));
  const T gradient_scale = in.reduction == "mean" ? T(1) / static_cast<T>(batch) : T(1);

  Results out;
  out.gradient = new_gradient(in.logits, in.axes);
  auto* gradient = static_cast<scalar*>(out.gradient.mutable_data_ptr());

  // Where the rows of a class table teach two samples or more, their sums are computed once.
  std::vector<TargetSums<T>> sums;
  if (const int64_t target_rows = in.targets.numel() / classes; 2 * target_rows <= rows) {
    sums.resize(target_rows);
    torch::stable::parallel_for(0, target_rows, 2 * rows_per_task(classes), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sums[i] = sums_of_target(classes, targets + i * classes);
    });
  }

  std::vector<int64_t> group, order;
  float* table = nullptr;
  int64_t of_column = 0, of_label = 0, of_table = 0;
  if (similarity) {
    table = similarity->mutable_data_ptr<float>();
    const int64_t axes = similarity->dim();
    of_column = similarity->stride(axes - 1), of_label = similarity->stride(axes - 2);
    of_table = with_candidates ? similarity->stride(0) : 0;
    group.resize(rows);
    for (int64_t i = 0; i < rows; ++i) group[i] = i / batch * classes + labels[own_labels ? i : i % batch];
    order = sorted_by_label(in, group);
  }

  std::vector<Outcome<T>> outcomes(rows);
  torch::stable::parallel_for(0, rows, rows_per_task(classes), [&](int64_t begin, int64_t end) {
    if (similarity) {  // a group of equal labels belongs to the task where it begins
      const auto inside = [&](int64_t k) { return k > 0 && k < rows && group[order[k]] == group[order[k - 1]]; };
      while (inside(begin)) ++begin;
      while (inside(end)) ++end;
    }
    ScratchRows<T> scratch(classes, 4);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = similarity ? order[k] : k, candidate = i / batch, sample = i % batch;
      const int64_t label = labels[own_labels ? i : sample];
      const int64_t t = (own_targets ? candidate * rows_of_target : 0) + (in.class_rows ? label : sample);
      const T* target = targets + t * classes;
      T* probabilities = scratch[3];
      const T hard_weight = hard_weights[candidate];
      const RowLoss<T> row{
          .classes = classes,
          .label = label,
          .logits = loaded(classes, logits + i * classes, scratch[0]),
          .target = target,
          .sums = sums.empty() ? sums_of_target(classes, target) : sums[t],
          .temperature = temperatures[candidate],
          .soft_weight = T(1) - hard_weight,
          .hard_weight = hard_weight,
          .gradient_scale = gradient_scale,
      };
      if (k + 1 < end) prefetch(logits + (similarity ? order[k + 1] : k + 1) * classes, classes);
      T* row_gradient = computed_in(gradient + i * classes, scratch[1]);
      outcomes[i] = row_loss(row, with_stats, row_gradient, scratch[2], probabilities);
      stored(classes, row_gradient, gradient + i * classes);
      if (similarity) {
        float* line = table + candidate * of_table + label * of_label;
        for (int64_t c = 0; c < classes; ++c) line[c * of_column] += static_cast<float>(probabilities[c]);
      }
    }
  });

  out.loss = reduced_loss(outcomes, in.logits, in.axes, in.reduction);
  if (with_stats) {
    const auto totals = [&](auto value) {
      Tensor sums = new_contiguous(in.logits, in.axes.shape(), ScalarType::Float);
      for (int64_t p = 0; p < candidates; ++p) {
        sums.mutable_data_ptr<float>()[p] = static_cast<float>(sum_over_batch(outcomes, value, in.axes, p));
      }
      return sums;
    };
    out.correct = totals(&Outcome<T>::correct);
    out.true_probability = totals(&Outcome<T>::true_probability);
    out.entropy = totals(&Outcome<T>::entropy);
  }
  return out;
}

Results dispatch(const Arguments& in, bool with_stats, const std::optional<Tensor>& similarity) {
  return for_type_of(in.logits, [&](auto scalar, auto value) {
    return run<decltype(scalar), decltype(value)>(in, with_stats, similarity);
  });
}

std::tuple<Tensor, Tensor> loss_cpu(const Tensor& logits, const Tensor& labels, const Tensor& targets,
                                    const std::optional<Tensor>& temperature, const std::optional<Tensor>& hard_weight,
                                    bool class_rows, const std::string& reduction) {
  const auto in = checked(logits, labels, targets, temperature, hard_weight, class_rows, reduction);
  const auto out = dispatch(in, false, std::nullopt);
  return {out.loss, out.gradient};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss_with_stats_cpu(const Tensor& logits, const Tensor& labels,
                                                                       const Tensor& targets,
                                                                       const std::optional<Tensor>& similarity,
                                                                       const std::optional<Tensor>& temperature,
                                                                       const std::optional<Tensor>& hard_weight,
                                                                       bool class_rows, const std::string& reduction) {
  const auto in = checked(logits, labels, targets, temperature, hard_weight, class_rows, reduction);
  STD_TORCH_CHECK(!similarity || (similarity->scalar_type() == ScalarType::Float &&
                                  has_shape(*similarity, in.axes.shape({in.axes.classes, in.axes.classes}))),
                  "similarity does not fit the logits");
  const auto out = dispatch(in, true, similarity);
  return {out.loss, out.gradient, out.correct, out.true_probability, out.entropy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("soft_target_loss", TORCH_BOX(&loss_cpu));
  library.impl("soft_target_loss_with_stats", TORCH_BOX(&loss_with_stats_cpu));
}

}  // namespace tfkd_fast

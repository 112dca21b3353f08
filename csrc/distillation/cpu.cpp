// The distillation loss and its gradient, one visit to a sample: the student's row and those of its teachers.
// The definition is `_reference` in tfkd_fast/ops/distillation.py.

#include "../common/loss_cpu.h"

#include <tuple>

namespace tfkd_fast {
namespace {

struct Arguments {
  Tensor logits, teachers;
  std::optional<Tensor> labels, weights;
  Tensor temperature, alpha;
  std::string reduction;
  Axes axes;
  int64_t teacher_count;
};

Arguments checked(const Tensor& logits, const Tensor& teachers, const std::optional<Tensor>& labels,
                  const std::optional<Tensor>& weights, const Tensor& temperature, const Tensor& alpha,
                  const std::string& reduction) {
  const Axes axes = axes_of(logits);
  const ScalarType type = loss_type(logits);
  STD_TORCH_CHECK(teachers.dim() >= 3 && teachers.size(teachers.dim() - 3) > 0,
                  "teachers must be (M,B,C) or (P,M,B,C)");
  const int64_t count = teachers.size(teachers.dim() - 3);
  check_shape("teachers", teachers, teachers.scalar_type(), axes, {count, axes.batch, axes.classes});
  STD_TORCH_CHECK(loss_type(teachers) == type, "teachers must be float64 where the logits are, and only there");
  if (labels) check_shape("labels", *labels, ScalarType::Long, axes, {axes.batch});
  if (weights) check_shape("weights", *weights, type, axes, {axes.batch, count});
  check_shape("temperature", temperature, type, axes, {});
  check_shape("alpha", alpha, type, axes, {});
  check_reduction(reduction);
  Arguments in{
      as_contiguous(logits), as_contiguous(teachers), labels, weights, temperature, alpha, reduction, axes, count};
  if (labels) {
    in.labels = as_contiguous(*labels);
    check_labels(*in.labels, axes.classes);
  }
  return in;
}

// How much each teacher counts for a sample; any strides.
template <typename T>
class TeacherWeights {
 public:
  TeacherWeights(const std::optional<Tensor>& weights, int64_t teachers) : otherwise_(T(1) / static_cast<T>(teachers)) {
    if (!weights) return;
    const int64_t own = has_candidates(*weights, 2) ? 1 : 0;
    values_ = weights->const_data_ptr<T>();
    of_candidate_ = own ? weights->stride(0) : 0;
    of_sample_ = weights->stride(own), of_teacher_ = weights->stride(own + 1);
  }
  T at(int64_t candidate, int64_t sample, int64_t teacher) const {
    return values_ ? values_[candidate * of_candidate_ + sample * of_sample_ + teacher * of_teacher_] : otherwise_;
  }

 private:
  const T* values_ = nullptr;
  int64_t of_candidate_ = 0, of_sample_ = 0, of_teacher_ = 0;
  T otherwise_;
};

template <typename scalar, typename Teacher, typename T>
std::tuple<Tensor, Tensor> run(const Arguments& in) {
  const auto [with_candidates, candidates, batch, classes] = in.axes;
  const int64_t teachers = in.teacher_count;
  const auto* logits = static_cast<const scalar*>(in.logits.const_data_ptr());
  const auto* teacher_logits = static_cast<const Teacher*>(in.teachers.const_data_ptr());
  const int64_t* labels = in.labels ? in.labels->const_data_ptr<int64_t>() : nullptr;
  const bool own_labels = in.labels && has_candidates(*in.labels, 1), own_teachers = has_candidates(in.teachers, 3);
  const CandidateValues<T> temperatures(in.temperature), alphas(in.alpha);
  const TeacherWeights<T> weights(in.weights, teachers);
  const T gradient_scale = in.reduction == "mean" ? T(1) / static_cast<T>(batch) : T(1);

  Tensor gradient = new_gradient(in.logits, in.axes);
  auto* gradient_rows = static_cast<scalar*>(gradient.mutable_data_ptr());
  std::vector<Outcome<T>> outcomes(in.axes.rows());
  const int64_t grain = rows_per_task((1 + teachers) * classes);
  torch::stable::parallel_for(0, in.axes.rows(), grain, [&](int64_t begin, int64_t end) {
    ScratchRows<T> scratch(classes, 5);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t candidate = i / batch, sample = i % batch;
      const T temperature = temperatures[candidate];

      // sum_m v_m KL(p_m || p) = KL of the mixed target, with the mean of the teachers' negentropies.
      T* target = scratch[0];
      TargetSums<T> sums{};
      std::fill_n(target, classes, T(0));
      for (int64_t m = 0; m < teachers; ++m) {
        const T weight = weights.at(candidate, sample, m);
        if (weight == T(0)) continue;
        const int64_t row = ((own_teachers ? candidate * teachers : 0) + m) * batch + sample;
        const T* teacher = loaded(classes, teacher_logits + row * classes, scratch[1]);
        sums.negentropy += weight * softmax_row(classes, teacher, temperature, scratch[2]);
        sums.mass += weight;
        add_row(classes, weight, scratch[2], target);
      }

      const T alpha = alphas[candidate];
      const RowLoss<T> row{
          .classes = classes,
          .label = labels ? labels[own_labels ? i : sample] : -1,
          .logits = loaded(classes, logits + i * classes, scratch[1]),
          .target = target,
          .sums = sums,
          .temperature = temperature,
          .soft_weight = alpha,
          .hard_weight = labels ? T(1) - alpha : T(0),
          .gradient_scale = gradient_scale,
      };
      if (i + 1 < end) prefetch(logits + (i + 1) * classes, classes);
      T* row_gradient = computed_in(gradient_rows + i * classes, scratch[2]);
      outcomes[i] = row_loss(row, false, row_gradient, scratch[3], scratch[4]);
      stored(classes, row_gradient, gradient_rows + i * classes);
    }
  });
  return {reduced_loss(outcomes, in.logits, in.axes, in.reduction), gradient};
}

std::tuple<Tensor, Tensor> loss_cpu(const Tensor& logits, const Tensor& teachers, const std::optional<Tensor>& labels,
                                    const std::optional<Tensor>& weights, const Tensor& temperature,
                                    const Tensor& alpha, const std::string& reduction) {
  const auto in = checked(logits, teachers, labels, weights, temperature, alpha, reduction);
  return for_type_of(in.logits, [&](auto scalar, auto value) {
    return for_type_of(in.teachers, [&](auto teacher, auto teacher_value) -> std::tuple<Tensor, Tensor> {
      if constexpr (std::is_same_v<decltype(value), decltype(teacher_value)>) {
        return run<decltype(scalar), decltype(teacher), decltype(value)>(in);
      } else {
        throw std::logic_error("checked above");
      }
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("distillation_loss", TORCH_BOX(&loss_cpu)); }

}  // namespace tfkd_fast

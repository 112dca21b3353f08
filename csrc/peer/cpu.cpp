// The losses of a population whose candidates teach each other, and their gradients, one visit to a sample.
// The definition is `_reference` in tfkd_fast/ops/peer.py.

#include "../common/loss_cpu.h"

#include <tuple>

namespace tfkd_fast {
namespace {

struct Arguments {
  Tensor logits, labels, temperature, alpha;
  bool include_self;
  std::string reduction;
  Axes axes;
};

Arguments checked(const Tensor& logits, const Tensor& labels, const Tensor& temperature, const Tensor& alpha,
                  bool include_self, const std::string& reduction) {
  const Axes axes = axes_of(logits);
  const ScalarType type = loss_type(logits);
  STD_TORCH_CHECK(axes.with_candidates && axes.candidates >= (include_self ? 1 : 2), "logits must be (P,B,C)");
  check_shape("labels", labels, ScalarType::Long, axes, {axes.batch});
  STD_TORCH_CHECK(temperature.scalar_type() == type && temperature.dim() == 0, "temperature must be ()");
  check_shape("alpha", alpha, type, axes, {});
  check_reduction(reduction);
  Arguments in{as_contiguous(logits), as_contiguous(labels), temperature, alpha, include_self, reduction, axes};
  check_labels(in.labels, axes.classes);
  return in;
}

template <typename scalar, typename T>
std::tuple<Tensor, Tensor> run(const Arguments& in) {
  const auto [with_candidates, candidates, batch, classes] = in.axes;
  const auto* logits = static_cast<const scalar*>(in.logits.const_data_ptr());
  const int64_t* labels = in.labels.const_data_ptr<int64_t>();
  const bool own_labels = has_candidates(in.labels, 1);
  const T temperature = CandidateValues<T>(in.temperature)[0];
  const CandidateValues<T> alphas(in.alpha);
  const T gradient_scale = in.reduction == "mean" ? T(1) / static_cast<T>(batch) : T(1);

  Tensor gradient = new_gradient(in.logits, in.axes);
  auto* gradient_rows = static_cast<scalar*>(gradient.mutable_data_ptr());
  std::vector<Outcome<T>> outcomes(in.axes.rows());
  torch::stable::parallel_for(0, batch, rows_per_task(2 * candidates * classes), [&](int64_t begin, int64_t end) {
    // Row i of `after` becomes the sum of the predictions of i+1, i+2, ...; without the candidate itself the mean is
    // the sum of those before it and those after it. Taking its own prediction from the sum of all would lose digits.
    ScratchRows<T> predictions(classes, candidates), after(classes, candidates), scratch(classes, 6);
    const T share = T(1) / static_cast<T>(in.include_self ? candidates : candidates - 1);
    for (int64_t sample = begin; sample < end; ++sample) {
      std::fill_n(after[candidates - 1], classes, T(0));
      for (int64_t p = candidates - 1; p >= 0; --p) {
        const T* row = loaded(classes, logits + (p * batch + sample) * classes, scratch[0]);
        softmax_row(classes, row, temperature, predictions[p]);
        if (p == 0) break;
        std::copy_n(after[p], classes, after[p - 1]);
        add_row(classes, T(1), predictions[p], after[p - 1]);
      }
      T *before = scratch[1], *target = scratch[2];
      std::fill_n(before, classes, T(0));
      for (int64_t p = 0; p < candidates; ++p) {
        std::fill_n(target, classes, T(0));
        add_row(classes, share, before, target);
        add_row(classes, share, after[p], target);
        if (in.include_self) add_row(classes, share, predictions[p], target);
        add_row(classes, T(1), predictions[p], before);

        const int64_t i = p * batch + sample;
        const T alpha = alphas[p];
        const RowLoss<T> row{
            .classes = classes,
            .label = labels[own_labels ? i : sample],
            .logits = loaded(classes, logits + i * classes, scratch[0]),
            .target = target,
            .sums = sums_of_target(classes, target),
            .temperature = temperature,
            .soft_weight = alpha,
            .hard_weight = T(1) - alpha,
            .gradient_scale = gradient_scale,
        };
        T* row_gradient = computed_in(gradient_rows + i * classes, scratch[3]);
        outcomes[i] = row_loss(row, false, row_gradient, scratch[4], scratch[5]);
        stored(classes, row_gradient, gradient_rows + i * classes);
      }
    }
  });
  return {reduced_loss(outcomes, in.logits, in.axes, in.reduction), gradient};
}

std::tuple<Tensor, Tensor> loss_cpu(const Tensor& logits, const Tensor& labels, const Tensor& temperature,
                                    const Tensor& alpha, bool include_self, const std::string& reduction) {
  const auto in = checked(logits, labels, temperature, alpha, include_self, reduction);
  return for_type_of(in.logits, [&](auto scalar, auto value) { return run<decltype(scalar), decltype(value)>(in); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("peer_loss", TORCH_BOX(&loss_cpu)); }

}  // namespace tfkd_fast

// Class tables whose mass depends on the rank of a class by its similarity to the true one.
// The definition is `_reference` in tfkd_fast/ops/rank_binned_targets.py.

#include "../common/loss_cpu.h"
#include "../common/sort_key.h"

#include <tuple>

namespace tfkd_fast {
namespace {

// The mass of each rank, (tables,C): rank 0 is the true class. Every step is rounded to the type of the table.
template <typename scalar, typename T>
std::vector<scalar> masses_by_rank(const Tensor& true_mass, const Tensor& bin_masses,
                                   const std::vector<int64_t>& bin_starts, int64_t tables, int64_t classes) {
  const auto* of_truth = static_cast<const scalar*>(true_mass.const_data_ptr());
  const auto* of_bins = static_cast<const scalar*>(bin_masses.const_data_ptr());
  const int64_t bins = static_cast<int64_t>(bin_starts.size());
  std::vector<scalar> masses(tables * classes);
  for (int64_t p = 0; p < tables; ++p) {
    const T truth = static_cast<T>(of_truth[true_mass.dim() == 1 ? p : 0]);
    const T rest = static_cast<T>(static_cast<scalar>(T(1) - truth));
    scalar* by_rank = masses.data() + p * classes;
    by_rank[0] = static_cast<scalar>(truth);
    for (int64_t j = 0; j < bins; ++j) {
      const int64_t start = bin_starts[j], end = j + 1 < bins ? bin_starts[j + 1] : classes;
      const T mass = static_cast<T>(of_bins[(bin_masses.dim() == 2 ? p * bins : 0) + j]);
      const T in_bin = static_cast<T>(static_cast<scalar>(rest * mass));
      std::fill(by_rank + start, by_rank + end, static_cast<scalar>(in_bin / static_cast<T>(end - start)));
    }
  }
  return masses;
}

template <typename scalar, typename T>
Tensor run(const Tensor& similarity, const Tensor& true_mass, const Tensor& bin_masses,
           const std::vector<int64_t>& bin_starts, const std::vector<int64_t>& lead) {
  const int64_t classes = similarity.size(-1), tables = lead.empty() ? 1 : lead[0];
  const int64_t similarities = similarity.dim() == 3 ? similarity.size(0) : 1;
  const auto masses = masses_by_rank<scalar, T>(true_mass, bin_masses, bin_starts, tables, classes);

  std::vector<int64_t> shape = lead;
  shape.insert(shape.end(), {classes, classes});
  Tensor out = torch::stable::new_empty(similarity, shape);
  auto* table = static_cast<scalar*>(out.mutable_data_ptr());
  const auto* values = static_cast<const scalar*>(similarity.const_data_ptr());

  // A row of similarities is sorted once, also when it serves several tables.
  torch::stable::parallel_for(0, similarities * classes, rows_per_task(8 * classes), [&](int64_t begin, int64_t end) {
    std::vector<std::pair<SortKey<T>, int32_t>> order(classes - 1);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t label = i % classes, of_one = i / classes;
      const scalar* row = values + i * classes;
      auto next = order.begin();
      for (int64_t c = 0; c < classes; ++c) {
        if (c != label) *next++ = {sort_key(-static_cast<T>(row[c])), static_cast<int32_t>(c)};
      }
      std::sort(order.begin(), order.end());
      for (int64_t p = similarities > 1 ? of_one : 0; p < (similarities > 1 ? of_one + 1 : tables); ++p) {
        const scalar* by_rank = masses.data() + p * classes;
        scalar* to = table + (p * classes + label) * classes;
        to[label] = by_rank[0];
        for (int64_t rank = 1; rank < classes; ++rank) to[order[rank - 1].second] = by_rank[rank];
      }
    }
  });
  return out;
}

Tensor rank_binned_targets_cpu(const Tensor& similarity, const Tensor& true_mass, const Tensor& bin_masses,
                               const std::vector<int64_t>& bin_starts) {
  const int64_t axes = similarity.dim();
  STD_TORCH_CHECK((axes == 2 || axes == 3) && similarity.size(axes - 1) == similarity.size(axes - 2),
                  "similarity must be (C,C) or (P,C,C)");
  const int64_t classes = similarity.size(axes - 1), bins = static_cast<int64_t>(bin_starts.size());
  STD_TORCH_CHECK(true_mass.dim() <= 1, "true_mass must be () or (P,)");
  STD_TORCH_CHECK((bin_masses.dim() == 1 || bin_masses.dim() == 2) && bin_masses.size(bin_masses.dim() - 1) == bins,
                  "bin_masses must be (J,) or (P,J)");
  STD_TORCH_CHECK(
      true_mass.scalar_type() == similarity.scalar_type() && bin_masses.scalar_type() == similarity.scalar_type(),
      "true_mass and bin_masses must have the dtype of similarity");
  std::vector<int64_t> lead;
  for (const auto& [tensor, own_axes] : {std::pair{&similarity, 2}, {&true_mass, 0}, {&bin_masses, 1}}) {
    if (tensor->dim() == own_axes) continue;
    STD_TORCH_CHECK(lead.empty() || lead[0] == tensor->size(0), "the tensors must have the same P");
    lead = {tensor->size(0)};
  }
  STD_TORCH_CHECK(bins > 0 && bin_starts[0] == 1 && bin_starts.back() < classes &&
                      std::is_sorted(bin_starts.begin(), bin_starts.end(), std::less_equal<>()),
                  "bin_starts must ascend from 1 to at most C-1");
  using torch::stable::contiguous;
  return for_type_of(similarity, [&](auto scalar, auto value) {
    return run<decltype(scalar), decltype(value)>(contiguous(similarity), contiguous(true_mass), contiguous(bin_masses),
                                                  bin_starts, lead);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("rank_binned_targets", TORCH_BOX(&rank_binned_targets_cpu));
}

}  // namespace tfkd_fast

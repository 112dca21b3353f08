// Ranks of candidates under several criteria, and their weighted sum.
// The definition is `_reference` in tfkd_fast/ops/rank_candidates.py.

#include "../common/loss_cpu.h"
#include "../common/sort_key.h"
#include "arguments.h"

#include <numeric>

namespace tfkd_fast {
namespace {

// The results of one population.
struct Places {
  double* ranks;  // (K,R)
  double* scores;
  int64_t* order;
};

template <typename T>
void average_ranks(std::vector<std::pair<SortKey<T>, int64_t>>& column, int64_t criteria, double* ranks) {
  std::sort(column.begin(), column.end());
  const int64_t candidates = static_cast<int64_t>(column.size());
  for (int64_t begin = 0, end = 0; begin < candidates; begin = end) {
    while (end < candidates && column[end].first == column[begin].first) ++end;
    const double rank = static_cast<double>(begin + 1 + end) / 2;  // the mean of begin + 1, ..., end
    for (int64_t i = begin; i < end; ++i) ranks[column[i].second * criteria] = rank;
  }
}

template <typename scalar, typename T>
void rank(const scalar* values, int64_t candidates, const std::vector<bool>& higher_is_better,
          const std::vector<double>& weights, const Places& out) {
  const int64_t criteria = static_cast<int64_t>(weights.size());
  std::vector<std::pair<SortKey<T>, int64_t>> column(candidates);
  for (int64_t r = 0; r < criteria; ++r) {
    for (int64_t k = 0; k < candidates; ++k) {
      const T value = static_cast<T>(values[k * criteria + r]);
      column[k] = {sort_key(higher_is_better[r] ? -value : value), k};
    }
    average_ranks<T>(column, criteria, out.ranks + r);
  }
  for (int64_t k = 0; k < candidates; ++k) {
    const double sum = std::inner_product(weights.begin(), weights.end(), out.ranks + k * criteria, 0.0);
    out.scores[k] = std::nearbyint(sum * 1e9) / 1e9;
  }
  std::iota(out.order, out.order + candidates, 0);
  std::sort(out.order, out.order + candidates, [&](int64_t a, int64_t b) {
    if (out.scores[a] != out.scores[b]) return out.scores[a] < out.scores[b];
    const double *of_a = out.ranks + a * criteria, *of_b = out.ranks + b * criteria;
    const auto [in_a, in_b] = std::mismatch(of_a, of_a + criteria, of_b);
    return in_a == of_a + criteria ? a < b : *in_a < *in_b;
  });
}

Ranking rank_candidates_cpu(const Tensor& criteria, const std::vector<bool>& higher_is_better,
                            const std::vector<double>& weights) {
  check_ranking(criteria, higher_is_better, weights);
  const Ranking results = new_ranking(criteria);
  const auto& [ranks, scores, order, winner] = results;
  const int64_t candidates = criteria.size(criteria.dim() - 2), columns = criteria.size(criteria.dim() - 1);

  const Tensor contiguous = as_contiguous(criteria);
  for_type_of(criteria, [&](auto scalar, auto value) {
    const auto* values = static_cast<const decltype(scalar)*>(contiguous.const_data_ptr());
    auto* winners = winner.mutable_data_ptr<int64_t>();
    const Places out{ranks.mutable_data_ptr<double>(), scores.mutable_data_ptr<double>(),
                     order.mutable_data_ptr<int64_t>()};
    const int64_t size = candidates * columns;
    torch::stable::parallel_for(0, winner.numel(), rows_per_task(16 * size), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Places of_one{out.ranks + i * size, out.scores + i * candidates, out.order + i * candidates};
        rank<decltype(scalar), decltype(value)>(values + i * size, candidates, higher_is_better, weights, of_one);
        winners[i] = of_one.order[0];
      }
    });
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("rank_candidates", TORCH_BOX(&rank_candidates_cpu)); }

}  // namespace tfkd_fast

// The arguments and results of rank_candidates, alike on every device.
#pragma once

#include "../common/arguments.h"

#include <tuple>

namespace tfkd_fast {

using Ranking = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // ranks, scores, order, winner

inline void check_ranking(const Tensor& criteria, const std::vector<bool>& higher_is_better,
                          const std::vector<double>& weights) {
  const int64_t axes = criteria.dim();
  STD_TORCH_CHECK(axes >= 2 && criteria.size(axes - 2) > 0 && criteria.size(axes - 1) > 0,
                  "criteria must be (...,K,R) with K >= 1 and R >= 1");
  const int64_t columns = criteria.size(axes - 1);
  STD_TORCH_CHECK(
      static_cast<int64_t>(higher_is_better.size()) == columns && static_cast<int64_t>(weights.size()) == columns,
      "higher_is_better and weights must have R values");
  STD_TORCH_CHECK(std::all_of(weights.begin(), weights.end(), [](double weight) { return weight >= 0; }),
                  "weights must be numbers, and none negative");
}

inline Ranking new_ranking(const Tensor& criteria) {
  const auto sizes = criteria.sizes();
  return {new_contiguous(criteria, {sizes.begin(), sizes.end()}, ScalarType::Double),
          new_contiguous(criteria, {sizes.begin(), sizes.end() - 1}, ScalarType::Double),
          new_contiguous(criteria, {sizes.begin(), sizes.end() - 1}, ScalarType::Long),
          new_contiguous(criteria, {sizes.begin(), sizes.end() - 2}, ScalarType::Long)};
}

}  // namespace tfkd_fast

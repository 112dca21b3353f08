// Ranks of candidates under several criteria, and their weighted sum, on CUDA. The definition is `_reference` in
// tfkd_fast/ops/rank_candidates.py.
//
// A block ranks a population: it sorts the candidates by each criterion, and at last by their scores.

#include "../common/block_sort.cuh"
#include "arguments.h"

namespace tfkd_fast {
namespace {

constexpr int kMostCriteria = 128;  // of a launch

template <typename scalar>
struct Call {
  using T = Computed<scalar>;
  const scalar* values;  // (populations, candidates, criteria)
  double *ranks, *scores;
  int64_t *order, *winner;
  SortItem<T>* scratch;
  int64_t populations;
  int candidates, criteria, sort_size;
  int first, count;  // criteria of this launch; scores sum up over the launches
  bool higher_is_better[kMostCriteria];
  double weights[kMostCriteria];
};

// Not contracted with the sum that follows: scores are what the reference's separate operations give.
__device__ __forceinline__ double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// How many of the sorted keys are below `key`, or not above it.
template <bool kNotAbove, typename T>
__device__ int count_below(const SortItem<T>* items, int size, SortKey<T> key) {
  int begin = 0, end = size;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (items[middle].key < key || (kNotAbove && items[middle].key == key)) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// One criterion: equal candidates share the average of their ranks.
template <typename scalar, typename T>
__device__ void rank_under(const scalar* values, bool higher_is_better, int candidates, int criteria, double* ranks,
                           SortItem<T>* items, int sort_size) {
  __syncthreads();  // the items may still be read
  for (int k = threadIdx.x; k < sort_size; k += blockDim.x) {
    SortKey<T> key = ~SortKey<T>(0);  // what is no candidate comes last, after NaN
    if (k < candidates) {
      const T value = static_cast<T>(values[static_cast<int64_t>(k) * criteria]);
      key = sort_key(higher_is_better ? -value : value);
    }
    items[k] = {key, static_cast<uint32_t>(k)};
  }
  block_sort(items, sort_size, [](const SortItem<T>& a, const SortItem<T>& b) { return a < b; });
  for (int i = threadIdx.x; i < candidates; i += blockDim.x) {
    const auto key = items[i].key;
    const int below = count_below<false>(items, candidates, key), not_above = count_below<true>(items, candidates, key);
    ranks[static_cast<int64_t>(items[i].index) * criteria] = 0.5 * (below + 1 + not_above);
  }
}

template <typename scalar>
__global__ void __launch_bounds__(kSortThreads, 4) rank_populations(const Call<scalar> in) {
  using T = typename Call<scalar>::T;
  SortItem<T>* items = items_of_block<T>(in.scratch, in.sort_size);
  const int candidates = in.candidates, criteria = in.criteria;
  const bool last_launch = in.first + in.count == criteria;
  for (int64_t population = blockIdx.x; population < in.populations; population += gridDim.x) {
    const scalar* values = in.values + population * candidates * criteria;
    double* ranks = in.ranks + population * candidates * criteria;
    double* scores = in.scores + population * candidates;
    for (int r = 0; r < in.count; ++r) {
      const int at = in.first + r;
      rank_under(values + at, in.higher_is_better[r], candidates, criteria, ranks + at, items, in.sort_size);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < candidates; k += blockDim.x) {
      const double* own = ranks + static_cast<int64_t>(k) * criteria + in.first;
      double score = in.first == 0 ? 0.0 : scores[k];
      for (int r = 0; r < in.count; ++r) score += product(in.weights[r], own[r]);
      scores[k] = last_launch ? nearbyint(score * 1e9) / 1e9 : score;  // torch.round(decimals=9)
    }
    if (!last_launch) continue;

    int* order = reinterpret_cast<int*>(items);
    for (int k = threadIdx.x; k < in.sort_size; k += blockDim.x) order[k] = k;
    block_sort(order, in.sort_size, [=](int a, int b) {
      if (a >= candidates || b >= candidates) return a < b;
      if (scores[a] != scores[b]) return scores[a] < scores[b];
      const double* of_a = ranks + static_cast<int64_t>(a) * criteria;
      const double* of_b = ranks + static_cast<int64_t>(b) * criteria;
      for (int r = 0; r < criteria; ++r) {
        if (of_a[r] != of_b[r]) return of_a[r] < of_b[r];
      }
      return a < b;
    });
    for (int k = threadIdx.x; k < candidates; k += blockDim.x) in.order[population * candidates + k] = order[k];
    if (threadIdx.x == 0) in.winner[population] = order[0];
  }
}

template <typename scalar>
void run(const Tensor& values, const std::vector<bool>& higher_is_better, const std::vector<double>& weights,
         const Ranking& results) {
  const auto& [ranks, scores, order, winner] = results;
  const int64_t candidates = values.size(values.dim() - 2), criteria = values.size(values.dim() - 1);
  const SortPlan<typename Call<scalar>::T> plan(values, candidates, winner.numel());
  Call<scalar> call{.values = static_cast<const scalar*>(values.const_data_ptr()),
                    .ranks = ranks.mutable_data_ptr<double>(),
                    .scores = scores.mutable_data_ptr<double>(),
                    .order = order.mutable_data_ptr<int64_t>(),
                    .winner = winner.mutable_data_ptr<int64_t>(),
                    .scratch = plan.items(),
                    .populations = winner.numel(),
                    .candidates = static_cast<int>(candidates),
                    .criteria = static_cast<int>(criteria),
                    .sort_size = plan.size};
  for (int64_t first = 0; first < criteria; first += kMostCriteria) {
    call.first = static_cast<int>(first);
    call.count = static_cast<int>(std::min<int64_t>(kMostCriteria, criteria - first));
    for (int r = 0; r < call.count; ++r) {
      call.higher_is_better[r] = higher_is_better[first + r];
      call.weights[r] = weights[first + r];
    }
    launch(rank_populations<scalar>, plan.blocks, plan.threads, plan.shared_bytes, values, call);
  }
}

Ranking rank_candidates_cuda(const Tensor& criteria, const std::vector<bool>& higher_is_better,
                             const std::vector<double>& weights) {
  check_ranking(criteria, higher_is_better, weights);
  const Ranking results = new_ranking(criteria);
  if (std::get<3>(results).numel() == 0) return results;

  const Tensor values = as_contiguous(criteria);
  for_scalar_of(values.scalar_type(), "criteria",
                [&](auto scalar) { run<decltype(scalar)>(values, higher_is_better, weights, results); });
  return results;
}

}  // namespace

TFKD_CUDA_LIBRARY(library) { library.impl("rank_candidates", TORCH_BOX(&rank_candidates_cuda)); }

}  // namespace tfkd_fast

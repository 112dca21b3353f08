// Class tables whose mass depends on the rank of a class by its similarity to the true one, on CUDA. The definition is
// `_reference` in tfkd_fast/ops/rank_binned_targets.py.
//
// A block sorts a row of similarities once, also when it serves several tables.

#include "../common/block_sort.cuh"

#include <functional>

namespace tfkd_fast {
namespace {

// They travel with the launch: a copy from the host would not follow a captured graph. More take several launches.
constexpr int kMostBins = 960;

template <typename scalar>
struct Call {
  using T = Computed<scalar>;
  const scalar *similarity, *true_mass, *bin_masses;
  scalar* table;
  SortItem<T>* scratch;
  int64_t rows;                                     // of similarities
  int64_t tables_of_similarity;                     // tables that a matrix of similarities serves
  int64_t true_mass_of_table, bin_masses_of_table;  // strides; 0 where all tables have the same
  int classes, sort_size;
  int first_bin, bins;        // of this launch
  int starts[kMostBins + 1];  // the ranks where they begin; the last is where they end
};

// The mass of a class in a bin. Every step is rounded to the type of the table.
template <typename scalar, typename T>
__device__ scalar share(scalar true_mass, scalar bin_mass, int size) {
  const scalar rest(T(1) - static_cast<T>(true_mass));
  const scalar in_bin(static_cast<T>(rest) * static_cast<T>(bin_mass));
  return static_cast<scalar>(static_cast<T>(in_bin) / static_cast<T>(size));
}

// The bin of a rank between the first start and the end.
template <typename scalar>
__device__ int bin_of(const Call<scalar>& in, int rank) {
  int bin = 0, beyond = in.bins;
  while (beyond - bin > 1) {
    const int middle = (bin + beyond) / 2;
    (in.starts[middle] <= rank ? bin : beyond) = middle;
  }
  return bin;
}

template <typename scalar>
__global__ void __launch_bounds__(kSortThreads, 4) fill_tables(const Call<scalar> in) {
  using T = typename Call<scalar>::T;
  using Item = SortItem<T>;
  Item* items = items_of_block<T>(in.scratch, in.sort_size);
  const int64_t size_of_table = static_cast<int64_t>(in.classes) * in.classes;
  for (int64_t row = blockIdx.x; row < in.rows; row += gridDim.x) {
    const int label = static_cast<int>(row % in.classes);
    const scalar* similarity = in.similarity + row * in.classes;
    __syncthreads();  // the items may still be read for the row before
    for (int c = threadIdx.x; c < in.sort_size; c += blockDim.x) {
      // The true class comes before all others, so that it has rank 0, and what is no class after them.
      const auto key = c == label       ? SortKey<T>(0)
                       : c < in.classes ? sort_key(-static_cast<T>(similarity[c]))
                                        : ~SortKey<T>(0);
      items[c] = {key, static_cast<uint32_t>(c)};
    }
    block_sort(items, in.sort_size, [](const Item& a, const Item& b) { return a < b; });

    const int64_t first_table = row / in.classes * in.tables_of_similarity;
    for (int rank = threadIdx.x; rank < in.classes; rank += blockDim.x) {
      const bool is_true = rank == 0;
      if (is_true ? in.first_bin > 0 : rank < in.starts[0] || rank >= in.starts[in.bins]) continue;
      const int bin = is_true ? 0 : bin_of(in, rank), size = in.starts[bin + 1] - in.starts[bin];
      const int64_t at = static_cast<int64_t>(label) * in.classes + items[rank].index;  // in a table
      for (int64_t p = first_table; p < first_table + in.tables_of_similarity; ++p) {
        const scalar true_mass = in.true_mass[p * in.true_mass_of_table];
        const scalar bin_mass = in.bin_masses[p * in.bin_masses_of_table + in.first_bin + bin];
        in.table[p * size_of_table + at] = is_true ? true_mass : share<scalar, T>(true_mass, bin_mass, size);
      }
    }
  }
}

template <typename scalar>
void run(const Tensor& similarity, const Tensor& true_mass, const Tensor& bin_masses,
         const std::vector<int64_t>& bin_starts, int64_t tables, const Tensor& table) {
  const int64_t classes = similarity.size(-1), similarities = similarity.dim() == 3 ? similarity.size(0) : 1;
  const int64_t bins = static_cast<int64_t>(bin_starts.size());
  const SortPlan<typename Call<scalar>::T> plan(similarity, classes, similarities * classes);
  Call<scalar> call{.similarity = static_cast<const scalar*>(similarity.const_data_ptr()),
                    .true_mass = static_cast<const scalar*>(true_mass.const_data_ptr()),
                    .bin_masses = static_cast<const scalar*>(bin_masses.const_data_ptr()),
                    .table = static_cast<scalar*>(table.mutable_data_ptr()),
                    .scratch = plan.items(),
                    .rows = similarities * classes,
                    .tables_of_similarity = tables / similarities,
                    .true_mass_of_table = true_mass.dim() == 1 ? 1 : 0,
                    .bin_masses_of_table = bin_masses.dim() == 2 ? bins : 0,
                    .classes = static_cast<int>(classes),
                    .sort_size = plan.size};
  for (int64_t first = 0; first < bins; first += kMostBins) {
    const int64_t count = std::min<int64_t>(kMostBins, bins - first);
    call.first_bin = static_cast<int>(first);
    call.bins = static_cast<int>(count);
    for (int64_t j = 0; j <= count; ++j) {
      call.starts[j] = static_cast<int>(first + j < bins ? bin_starts[first + j] : classes);
    }
    launch(fill_tables<scalar>, plan.blocks, plan.threads, plan.shared_bytes, table, call);
  }
}

Tensor rank_binned_targets_cuda(const Tensor& similarity_, const Tensor& true_mass_, const Tensor& bin_masses_,
                                const std::vector<int64_t>& bin_starts) {
  const int64_t axes = similarity_.dim();
  STD_TORCH_CHECK((axes == 2 || axes == 3) && similarity_.size(axes - 1) == similarity_.size(axes - 2),
                  "similarity must be (C,C) or (P,C,C)");
  const int64_t classes = similarity_.size(axes - 1), bins = static_cast<int64_t>(bin_starts.size());
  STD_TORCH_CHECK(true_mass_.dim() <= 1, "true_mass must be () or (P,)");
  STD_TORCH_CHECK((bin_masses_.dim() == 1 || bin_masses_.dim() == 2) && bin_masses_.size(bin_masses_.dim() - 1) == bins,
                  "bin_masses must be (J,) or (P,J)");
  STD_TORCH_CHECK(
      true_mass_.scalar_type() == similarity_.scalar_type() && bin_masses_.scalar_type() == similarity_.scalar_type(),
      "true_mass and bin_masses must have the dtype of similarity");
  check_device("true_mass", true_mass_, "similarity", similarity_);
  check_device("bin_masses", bin_masses_, "similarity", similarity_);
  std::vector<int64_t> shape{classes, classes};
  for (const auto& [tensor, own_axes] : {std::pair{&similarity_, 2}, {&true_mass_, 0}, {&bin_masses_, 1}}) {
    if (tensor->dim() == own_axes) continue;
    STD_TORCH_CHECK(shape.size() == 2 || shape[0] == tensor->size(0), "the tensors must have the same P");
    if (shape.size() == 2) shape.insert(shape.begin(), tensor->size(0));
  }
  STD_TORCH_CHECK(bins > 0 && bin_starts[0] == 1 && bin_starts.back() < classes &&
                      std::is_sorted(bin_starts.begin(), bin_starts.end(), std::less_equal<>()),
                  "bin_starts must ascend from 1 to at most C-1");

  const Tensor table = new_contiguous(similarity_, shape, similarity_.scalar_type());
  if (table.numel() == 0) return table;
  const int64_t tables = shape.size() == 3 ? shape[0] : 1;
  const Tensor similarity = as_contiguous(similarity_), true_mass = as_contiguous(true_mass_),
               bin_masses = as_contiguous(bin_masses_);
  for_scalar_of(similarity.scalar_type(), "similarity", [&](auto scalar) {
    run<decltype(scalar)>(similarity, true_mass, bin_masses, bin_starts, tables, table);
  });
  return table;
}

}  // namespace

TFKD_CUDA_LIBRARY(library) { library.impl("rank_binned_targets", TORCH_BOX(&rank_binned_targets_cuda)); }

}  // namespace tfkd_fast

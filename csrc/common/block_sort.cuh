// Sorting by a block, for the operators that rank.
#pragma once

#include "arguments.h"
#include "device.cuh"
#include "sort_key.h"

#include <algorithm>
#include <optional>

namespace tfkd_fast {

constexpr int kSortThreads = 256;  // of a block, at most

// What is sorted: equal keys are in the order of their indices.
template <typename T>
struct alignas(2 * sizeof(SortKey<T>)) SortItem {
  SortKey<T> key;
  uint32_t index;

  __device__ bool operator<(const SortItem& other) const {
    return key < other.key || (key == other.key && index < other.index);
  }
};

// Bitonic sort of `size` items, a power of 2, in shared memory or in the block's part of global memory. All threads of
// the block must call it; it begins and ends with a barrier.
template <typename Item, typename Less>
__device__ void block_sort(Item* items, int size, Less less) {
  // A step of up to 32 exchanges items within pieces of 64 that belong to one warp.
  bool exchanged = true;  // items between warps, in the step before
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      if (exchanged || step > kWarp) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      exchanged = step > kWarp;
      for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
        const int a = 2 * pair - (pair & (step - 1)), b = a + step;
        const Item at_a = items[a], at_b = items[b];
        if (less(at_b, at_a) != ((a & run) == 0)) continue;
        items[a] = at_b;
        items[b] = at_a;
      }
    }
  }
  __syncthreads();
}

// Where the blocks sort, and how many there are. Few items are sorted in shared memory, by a block for each of the
// `sorts`; many in global memory, by no more blocks than run at once.
template <typename T>
struct SortPlan {
  static constexpr size_t kMostShared = 64 * 1024;  // every device from capability 8.0 on has it

  int size = 1;  // a power of 2, of at least `count`
  unsigned blocks, threads;
  size_t shared_bytes = 0;
  std::optional<Tensor> scratch;

  SortPlan(const Tensor& like, int64_t count, int64_t sorts) {
    STD_TORCH_CHECK(count <= int64_t{1} << 29, "too many to rank: ", count);
    while (size < count) size *= 2;
    threads = static_cast<unsigned>(std::clamp(size / 2, kWarp, kSortThreads));
    const size_t bytes = size * sizeof(SortItem<T>);
    const bool in_shared = bytes <= kMostShared;
    blocks = static_cast<unsigned>(std::min<int64_t>(sorts, in_shared ? 0x7fffffff : 2 * multiprocessors(like)));
    if (in_shared) {
      shared_bytes = bytes;
    } else {
      scratch = new_contiguous(like, {static_cast<int64_t>(blocks * (bytes / sizeof(double)))}, ScalarType::Double);
    }
  }

  // Null: in shared memory.
  SortItem<T>* items() const { return scratch ? static_cast<SortItem<T>*>(scratch->mutable_data_ptr()) : nullptr; }
};

// The place of the calling block.
template <typename T>
__device__ SortItem<T>* items_of_block(SortItem<T>* scratch, int size) {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  if (scratch == nullptr) return reinterpret_cast<SortItem<T>*>(dynamic_shared);
  return scratch + static_cast<int64_t>(blockIdx.x) * size;
}

}  // namespace tfkd_fast

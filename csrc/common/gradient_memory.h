// Memory of gradients and maps on the CPU.
//
// The system takes back the memory of a large tensor when it is freed, and clears new pages for the next one, which
// takes longer than the loss. So the memory of the last large tensors is kept for the next ones of their sizes.
// Meanwhile the system may reclaim its pages (MADV_FREE), so kept memory does not reduce what other processes can use.
#pragma once

#include "arguments.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace tfkd_fast {

constexpr size_t kLargeGradient = 32 << 20;  // bytes; above it, malloc too returns memory at once

inline size_t bytes_of(const Tensor& logits) {
  return static_cast<size_t>(logits.numel()) * static_cast<size_t>(logits.element_size());
}

#ifdef __linux__
// Memory on huge pages, whose first touch costs one page fault for 2 MB instead of 512.
class LargeBlock {
 public:
  LargeBlock() = default;
  explicit LargeBlock(size_t bytes) : size_((bytes + kPage - 1) / kPage * kPage) {
    void* mapped = mmap(nullptr, size_ + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    char* begin = static_cast<char*>(mapped);
    const size_t before = -reinterpret_cast<uintptr_t>(begin) % kPage;
    if (before > 0) munmap(begin, before);
    memory_ = begin + before;
    munmap(memory_ + size_, kPage - before);
    madvise(memory_, size_, MADV_HUGEPAGE);  // advice: a refusal does no harm
  }
  LargeBlock(LargeBlock&& other) noexcept { *this = std::move(other); }
  LargeBlock& operator=(LargeBlock&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~LargeBlock() {
    if (memory_ != nullptr) munmap(memory_, size_);
  }

  char* memory() const { return memory_; }
  bool fits(size_t bytes) const { return bytes <= size_ && size_ - bytes < kPage; }
  void let_reclaim() const { madvise(memory_, size_, MADV_FREE); }

 private:
  static constexpr size_t kPage = 2 << 20;
  char* memory_ = nullptr;
  size_t size_ = 0;
};

// The blocks that were freed last: more than a step of a deep network has large tensors of ours, all of which are freed
// before the next step asks for them.
class KeptBlocks {
 public:
  // Never destroyed: a tensor may be freed after everything else.
  static KeptBlocks& get() {
    static auto* kept = new KeptBlocks;
    return *kept;
  }
  LargeBlock take(size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      for (size_t i = blocks_.size(); i-- > 0;) {
        if (!blocks_[i].fits(bytes)) continue;
        LargeBlock block = std::move(blocks_[i]);
        blocks_.erase(blocks_.begin() + i);
        return block;
      }
    }
    return LargeBlock(bytes);
  }
  void keep(LargeBlock block) {
    block.let_reclaim();
    LargeBlock oldest;  // returned to the system without the lock
    const std::lock_guard lock(mutex_);
    if (blocks_.size() == kMost) {
      oldest = std::move(blocks_.front());
      blocks_.erase(blocks_.begin());
    }
    blocks_.push_back(std::move(block));
  }

 private:
  static constexpr size_t kMost = 256;
  std::mutex mutex_;
  std::vector<LargeBlock> blocks_;
};
#endif

// Uninitialised, on the processor, in memory that is kept.
inline Tensor new_in_kept_memory(const Tensor& like, const std::vector<int64_t>& shape,
                                 const std::vector<int64_t>& strides, ScalarType type, size_t bytes) {
#ifdef __linux__
  auto* block = new LargeBlock(KeptBlocks::get().take(bytes));
  const auto give_back = [block](void*) {
    KeptBlocks::get().keep(std::move(*block));
    delete block;
  };
  return torch::stable::from_blob(block->memory(), {shape.data(), shape.size()}, {strides.data(), strides.size()},
                                  like.device(), type, give_back);
#else
  return new_strided(like, shape, strides, type);
#endif
}

// Uninitialised and contiguous, of the shape and type of the logits.
inline Tensor new_gradient(const Tensor& logits, const Axes& axes) {
  const auto shape = axes.shape({axes.batch, axes.classes});
  const size_t bytes = bytes_of(logits);
  if (bytes <= kLargeGradient) return new_contiguous(logits, shape, logits.scalar_type());
  return new_in_kept_memory(logits, shape, contiguous_strides(shape), logits.scalar_type(), bytes);
}

}  // namespace tfkd_fast

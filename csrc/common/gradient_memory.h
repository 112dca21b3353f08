// Where gradients on the processor lie.
//
// The system takes back the memory of a large tensor when it is freed, and clears new pages for the next one, which takes
// longer than the loss. So the memory of the last large gradient is kept for the next one of its size. While it is kept the
// system may reclaim it (MADV_FREE): it is missing to nobody.
#pragma once

#include "arguments.h"

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

// The block that was freed last.
class KeptBlock {
 public:
  // Never destroyed: a tensor may be freed after everything else.
  static KeptBlock& get() {
    static auto* kept = new KeptBlock;
    return *kept;
  }
  LargeBlock take(size_t bytes) {
    LargeBlock block;
    {
      const std::lock_guard lock(mutex_);
      std::swap(block, block_);
    }
    return block.fits(bytes) ? std::move(block) : LargeBlock(bytes);
  }
  void keep(LargeBlock block) {
    block.let_reclaim();
    const std::lock_guard lock(mutex_);
    std::swap(block, block_);
  }

 private:
  std::mutex mutex_;
  LargeBlock block_;
};

inline Tensor new_large_gradient(const Tensor& logits, size_t bytes) {
  const auto sizes = logits.sizes();
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t axis = strides.size(); axis-- > 0; stride *= sizes[axis]) strides[axis] = stride;
  auto* block = new LargeBlock(KeptBlock::get().take(bytes));
  const auto give_back = [block](void*) {
    KeptBlock::get().keep(std::move(*block));
    delete block;
  };
  return torch::stable::from_blob(block->memory(), sizes, {strides.data(), strides.size()}, logits.device(),
                                  logits.scalar_type(), give_back);
}
#endif

// Uninitialised and contiguous, of the shape and type of the logits.
inline Tensor new_gradient(const Tensor& logits, const Axes& axes) {
#ifdef __linux__
  if (const size_t bytes = bytes_of(logits); bytes > kLargeGradient) return new_large_gradient(logits, bytes);
#endif
  return new_contiguous(logits, axes.shape({axes.batch, axes.classes}), logits.scalar_type());
}

}  // namespace tfkd_fast

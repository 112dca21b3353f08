// What the direct convolutions are made of: pairs of bfloat16 in vectors, and maps as rows of them.
#pragma once

#include "../common/bf16_products.h"
#include "../common/convolution.h"
#include "../common/loss_cpu.h"

#include <memory>
#include <new>

#if TFKD_HAS_BF16
namespace tfkd_fast::direct {

using Pair = uint32_t;  // two values of bfloat16, the first one in the lower half

// Uninitialised memory that begins at a cache line.
template <typename T>
class Lines {
 public:
  explicit Lines(int64_t count) : memory_(static_cast<T*>(operator new(count * sizeof(T), kLine))) {}
  T* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* memory) const { operator delete(memory, kLine); }
  };
  std::unique_ptr<T, Free> memory_;
};

// The bits of a tensor (B,channels,H,W) of bfloat16, channels last.
struct Maps {
  const uint16_t* values;
  int64_t batch, channels, height, width;

  explicit Maps(const Tensor& x)
      : values(static_cast<const uint16_t*>(x.const_data_ptr())),
        batch(x.size(0)),
        channels(x.size(1)),
        height(x.size(2)),
        width(x.size(3)) {}
  int64_t positions() const { return batch * height * width; }
  int64_t line() const { return width * channels; }
  bool has_row(int64_t row) const { return row >= 0 && row < height; }
  const uint16_t* row(int64_t image, int64_t row) const { return values + (image * height + row) * line(); }
};

}  // namespace tfkd_fast::direct
#endif

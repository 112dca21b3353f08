// Random windows of padded images, mirrored and normalised, one image after another in the first cache.
// The definition is `_reference` in tfkd_fast/ops/augment.py.

#include "../common/loss_cpu.h"
#include "../common/vector_math.h"
#include "arguments.h"

#include <array>

namespace tfkd_fast {
namespace {

using Bytes = uint8_t __attribute__((vector_size(16)));

// Three vectors: a multiple of every number of channels, so that channels and lanes begin together.
constexpr int64_t kLanes = VectorOf<float>::kLanes, kBlock = 3 * kLanes;
static_assert(kLanes == sizeof(Bytes) && kBlock % 3 == 0 && kBlock % kMostChannels == 0);
constexpr int64_t kPart = 20 * kBlock;  // values that are computed before they are rounded

// The mean and the deviation of each value of a block.
struct Scale {
  float mean[kBlock], std[kBlock];

  explicit Scale(const AugmentCall& call) {
    for (int64_t i = 0; i < kBlock; ++i) {
      mean[i] = call.mean.const_data_ptr<float>()[i % call.channels];
      std[i] = call.std.const_data_ptr<float>()[i % call.channels];
    }
  }
};

INLINE void normalise_block(const uint8_t* pixels, const std::array<Floats, 3>& mean, const std::array<Floats, 3>& std,
                            float* to) {
  for (int k = 0; k < 3; ++k) {
    Bytes bytes;
    std::memcpy(&bytes, pixels + k * kLanes, sizeof(bytes));
    const Floats values = to_float(__builtin_convertvector(bytes, VectorOf<float>::Index));
    store<float>((values - mean[k]) / std[k], to + k * kLanes);
  }
}

FOR_EVERY_VECTOR_WIDTH void normalise(int64_t count, const uint8_t* pixels, const Scale& scale, float* to) {
  std::array<Floats, 3> mean, std;
  std::memcpy(&mean, scale.mean, sizeof(mean));
  std::memcpy(&std, scale.std, sizeof(std));
  const int64_t whole = count / kBlock * kBlock, rest = count - whole;
  for (int64_t i = 0; i < whole; i += kBlock) normalise_block(pixels + i, mean, std, to + i);
  if (rest > 0) {
    uint8_t last[kBlock] = {};
    float values[kBlock];
    std::memcpy(last, pixels + whole, rest);
    normalise_block(last, mean, std, values);
    std::memcpy(to + whole, values, rest * sizeof(float));
  }
}

template <int kChannels>
constexpr int kPixels = static_cast<int>(sizeof(Bytes)) / kChannels;  // in a vector, at its beginning

template <int kChannels, size_t... kPlaces>
INLINE Bytes mirrored(const Bytes& pixels, std::index_sequence<kPlaces...>) {
  constexpr auto source = [](int place) {
    const int pixel = place / kChannels;
    return pixel < kPixels<kChannels> ? (kPixels<kChannels> - 1 - pixel) * kChannels + place % kChannels : place;
  };
  return __builtin_shufflevector(pixels, pixels, source(kPlaces)...);
}

// Whole vectors: they read up to 16 bytes before `from`, and write as many beyond `to`.
template <int kChannels>
INLINE void mirror_rows_of(int height, int width, const uint8_t* from, uint8_t* to) {
  for (int y = 0; y < height; ++y, from += width * kChannels, to += width * kChannels) {
    for (int x = 0; x < width; x += kPixels<kChannels>) {
      Bytes bytes;
      std::memcpy(&bytes, from + (width - x - kPixels<kChannels>) * kChannels, sizeof(bytes));
      bytes = mirrored<kChannels>(bytes, std::make_index_sequence<sizeof(Bytes)>());
      std::memcpy(to + x * kChannels, &bytes, sizeof(bytes));  // what is too much, the next vector overwrites
    }
  }
}

FOR_EVERY_VECTOR_WIDTH void mirror_rows(int channels, int height, int width, const uint8_t* from, uint8_t* to) {
  switch (channels) {
    case 1:
      return mirror_rows_of<1>(height, width, from, to);
    case 2:
      return mirror_rows_of<2>(height, width, from, to);
    case 3:
      return mirror_rows_of<3>(height, width, from, to);
    default:
      return mirror_rows_of<4>(height, width, from, to);
  }
}

// The window, not mirrored. In image and window the rows follow each other without a gap, so all rows move by the same
// number of bytes: one copy. What it brings to the columns beside the image is then made black.
void crop(const AugmentCall& call, const uint8_t* image, const Window& window, uint8_t* to) {
  const int64_t row = int64_t{call.width} * call.channels;
  const int64_t first = std::max(0, -window.top), end = std::min(call.height, call.height - window.top);
  const int64_t before = std::max(0, -window.left), after = std::max(0, window.left);  // columns beside the image
  if (first >= end || before + after >= call.width) {
    std::memset(to, 0, call.values());
    return;
  }
  const int64_t begin_copy = first * row + before * call.channels, end_copy = end * row - after * call.channels;
  const int64_t moved = window.top * row + int64_t{window.left} * call.channels;
  std::memcpy(to + begin_copy, image + begin_copy + moved, end_copy - begin_copy);
  std::memset(to, 0, first * row);
  std::memset(to + end * row, 0, (call.height - end) * row);
  if (window.left == 0) return;
  const int64_t beside = window.left < 0 ? 0 : row - after * call.channels;
  for (int64_t y = first; y < end; ++y) std::memset(to + y * row + beside, 0, (before + after) * call.channels);
}

// Memory for one image after another.
class Scratch {
 public:
  explicit Scratch(const AugmentCall& call)
      : pixels_(2 * (call.values() + 2 * sizeof(Bytes))), second_(pixels_.data() + pixels_.size() / 2 + sizeof(Bytes)) {}

  // What is shown of an image, (H,W,C).
  const uint8_t* show(const AugmentCall& call, const uint8_t* image, const Window& window) {
    if (window.top == 0 && window.left == 0 && !window.mirrored) return image;
    uint8_t* cropped = pixels_.data() + sizeof(Bytes);
    crop(call, image, window, cropped);
    if (!window.mirrored) return cropped;
    mirror_rows(call.channels, call.height, call.width, cropped, second_);
    return second_;
  }

  template <typename scalar>
  void normalise_to(scalar* to, int64_t count, const uint8_t* pixels, const Scale& scale) {
    for (int64_t i = 0; i < count; i += kPart) {
      const int64_t size = std::min(kPart, count - i);
      float* values = computed_in(to + i, values_);
      normalise(size, pixels + i, scale, values);
      if constexpr (std::is_same_v<scalar, double>) {
        std::copy_n(values, size, to + i);
      } else {
        stored(size, values, to + i);
      }
    }
  }

 private:
  std::vector<uint8_t> pixels_;
  uint8_t* second_;
  float values_[kPart];
};

template <typename scalar>
Tensor run(const AugmentCall& call) {
  Tensor out = call.new_batch();
  auto* batch = static_cast<scalar*>(out.mutable_data_ptr());
  const auto* images = static_cast<const uint8_t*>(call.images.const_data_ptr());
  const int64_t *indices = call.indices.const_data_ptr<int64_t>(), *draw = call.draw.const_data_ptr<int64_t>();
  const int64_t values = call.values(), indices_of_candidate = call.indices_of_candidate(),
                draw_of_candidate = call.draw_of_candidate();
  const Scale scale(call);
  const auto index_of = [&](int64_t i) { return indices[i / call.batch * indices_of_candidate + i % call.batch]; };

  torch::stable::parallel_for(0, call.candidates * call.batch, rows_per_task(values), [&](int64_t begin, int64_t end) {
    Scratch scratch(call);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = index_of(i);
      const Window window = window_of(index, draw + i / call.batch * draw_of_candidate, call.augmentation);
      if (i + 1 < end) prefetch(images + index_of(i + 1) * values, values);
      const uint8_t* shown = scratch.show(call, images + index * values, window);
      scratch.normalise_to(batch + i * values, values, shown, scale);
    }
  });
  return out;
}

Tensor augment_cpu(const Tensor& images, const Tensor& indices, const Tensor& draw, int64_t pad, bool flip,
                   const Tensor& mean, const Tensor& std, ScalarType type) {
  const AugmentCall call = checked(images, indices, draw, pad, flip, mean, std, type);
  const int64_t* index = call.indices.const_data_ptr<int64_t>();
  for (int64_t i = 0, count = call.indices.numel(); i < count; ++i) {
    if (index[i] < 0 || index[i] >= call.count) {
      throw std::out_of_range("index " + std::to_string(index[i]) + " is not one of the N = " +
                              std::to_string(call.count) + " images");
    }
  }
  switch (type) {
    case ScalarType::Float:
      return run<float>(call);
    case ScalarType::Double:
      return run<double>(call);
    case ScalarType::Half:
      return run<torch::headeronly::Half>(call);
    case ScalarType::BFloat16:
      return run<torch::headeronly::BFloat16>(call);
    default:
      throw std::runtime_error("dtype must be float32, float64, float16 or bfloat16");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("augment", TORCH_BOX(&augment_cpu)); }

}  // namespace tfkd_fast

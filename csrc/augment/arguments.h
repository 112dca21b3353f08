// The arguments of augment, and what is shown of an image, alike on every device.
#pragma once

#include "../common/arguments.h"
#include "../common/random.h"

#include <limits>

namespace tfkd_fast {

constexpr int kMostChannels = 4;

struct Augmentation {
  int pad;
  bool flip;
};

// The first row and column of the window, from the image's own corner: negative ones are in the padding.
struct Window {
  int top, left;
  bool mirrored;
};

TFKD_HOST_AND_DEVICE Window window_of(int64_t index, const int64_t* draw, const Augmentation& augmentation) {
  const Words words = random_words(index, Purpose::kAugment, draw);
  const uint32_t places = 2 * static_cast<uint32_t>(augmentation.pad) + 1;
  return {static_cast<int>(below(words.at[0], places)) - augmentation.pad,
          static_cast<int>(below(words.at[1], places)) - augmentation.pad,
          augmentation.flip && below(words.at[2], 2) == 1};
}

// Contiguous.
struct AugmentCall {
  Tensor images, indices, draw, mean, std;
  Augmentation augmentation;
  ScalarType type;
  int64_t count, batch, candidates;  // images there are, to show, and populations to show them to
  int height, width, channels;

  int values() const { return height * width * channels; }  // of an image
  int64_t indices_of_candidate() const { return indices.dim() == 2 ? batch : 0; }
  int64_t draw_of_candidate() const { return draw.dim() == 2 ? 3 : 0; }

  // (B,H,W,C) or (P,B,H,W,C)
  Tensor new_batch() const {
    std::vector<int64_t> shape{batch, height, width, channels};
    if (indices.dim() == 2 || draw.dim() == 2) shape.insert(shape.begin(), candidates);
    return new_contiguous(images, shape, type);
  }
};

inline AugmentCall checked(const Tensor& images, const Tensor& indices, const Tensor& draw, int64_t pad, bool flip,
                           const Tensor& mean, const Tensor& std, ScalarType type) {
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Byte && images.dim() == 4 && images.size(3) >= 1 &&
                      images.size(3) <= kMostChannels,
                  "images must be (N,H,W,C) uint8 with C from 1 to 4");
  const int64_t height = images.size(1), width = images.size(2), channels = images.size(3);
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  STD_TORCH_CHECK(height <= kMost && width <= kMost && height * width <= kMost / kMostChannels,
                  "an image must have less than 2**29 pixels");
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long && (indices.dim() == 1 || indices.dim() == 2),
                  "indices must be (B,) or (P,B) int64");
  STD_TORCH_CHECK(
      draw.scalar_type() == ScalarType::Long && (draw.dim() == 1 || draw.dim() == 2) && draw.size(draw.dim() - 1) == 3,
      "draw must be (3,) or (P,3) int64");
  STD_TORCH_CHECK(indices.dim() == 1 || draw.dim() == 1 || indices.size(0) == draw.size(0),
                  "indices and draw must have the same P");
  STD_TORCH_CHECK(pad >= 0 && pad < int64_t{1} << 30, "pad must be in 0 .. 2**30 - 1");
  for (const Tensor* each : {&mean, &std}) {
    STD_TORCH_CHECK(each->scalar_type() == ScalarType::Float && has_shape(*each, {channels}),
                    "mean and std must be (C,) float32");
  }
  return {.images = as_contiguous(images),
          .indices = as_contiguous(indices),
          .draw = as_contiguous(draw),
          .mean = as_contiguous(mean),
          .std = as_contiguous(std),
          .augmentation = {static_cast<int>(pad), flip},
          .type = type,
          .count = images.size(0),
          .batch = indices.size(indices.dim() - 1),
          .candidates = indices.dim() == 2 ? indices.size(0)
                        : draw.dim() == 2  ? draw.size(0)
                                           : 1,
          .height = static_cast<int>(height),
          .width = static_cast<int>(width),
          .channels = static_cast<int>(channels)};
}

}  // namespace tfkd_fast

// Random windows of padded images, mirrored and normalised. The definition is `_reference` in tfkd_fast/ops/augment.py.
//
// A pixel has 256 values, so a channel has no more results: they are computed and rounded once, and then looked up.
// That is faster than to compute in vectors, of which the division is the larger part, and takes no more for a mirrored
// row.

#include "../common/loss_cpu.h"
#include "arguments.h"

#include <array>
#include <cstdlib>

namespace tfkd_fast {
namespace {

// What each value of a pixel becomes.
template <typename scalar>
using Table = std::array<scalar, 256>;

template <typename scalar>
std::vector<Table<scalar>> tables_of(const AugmentCall& call) {
  const float *mean = call.mean.const_data_ptr<float>(), *std = call.std.const_data_ptr<float>();
  std::vector<Table<scalar>> tables(call.channels);
  for (int c = 0; c < call.channels; ++c) {
    for (int pixel = 0; pixel < 256; ++pixel) {
      tables[c][pixel] = static_cast<scalar>((static_cast<float>(pixel) - mean[c]) / std[c]);
    }
  }
  return tables;
}

// `count` pixels of a row; `step` bytes are from one to the next.
template <int kChannels, typename scalar>
scalar* look_up(int64_t count, const uint8_t* from, int64_t step, const Table<scalar>* tables, scalar* to) {
  for (int64_t i = 0; i < count; ++i, from += step, to += kChannels) {
    for (int c = 0; c < kChannels; ++c) to[c] = tables[c][from[c]];
  }
  return to;
}

template <int kChannels, typename scalar>
void show(const AugmentCall& call, const uint8_t* image, const Window& window, const Table<scalar>* tables,
          scalar* to) {
  constexpr uint8_t kBlack[kChannels] = {};
  const int64_t height = call.height, width = call.width, step = window.mirrored ? -kChannels : kChannels;
  // Columns of the image that are shown, and of the padding before and after them.
  const int64_t shown = std::max<int64_t>(0, width - std::abs(int64_t{window.left}));
  const int64_t outside = std::min(width, std::abs(int64_t{window.left}));
  const int64_t before = (window.left < 0) != window.mirrored ? outside : 0, after = outside - before;
  const int64_t first = std::max<int64_t>(0, window.left) + (window.mirrored ? shown - 1 : 0);
  for (int64_t y = window.top; y < window.top + height; ++y) {
    if (y < 0 || y >= height) {
      to = look_up<kChannels>(width, kBlack, 0, tables, to);
      continue;
    }
    to = look_up<kChannels>(before, kBlack, 0, tables, to);
    to = look_up<kChannels>(shown, image + (y * width + first) * kChannels, step, tables, to);
    to = look_up<kChannels>(after, kBlack, 0, tables, to);
  }
}

template <int kChannels, typename scalar>
Tensor run(const AugmentCall& call) {
  Tensor out = call.new_batch();
  auto* batch = static_cast<scalar*>(out.mutable_data_ptr());
  const auto* images = static_cast<const uint8_t*>(call.images.const_data_ptr());
  const int64_t *indices = call.indices.const_data_ptr<int64_t>(), *draw = call.draw.const_data_ptr<int64_t>();
  const int64_t values = call.values(), indices_of_candidate = call.indices_of_candidate(),
                draw_of_candidate = call.draw_of_candidate();
  const auto tables = tables_of<scalar>(call);
  const auto index_of = [&](int64_t i) { return indices[i / call.batch * indices_of_candidate + i % call.batch]; };

  torch::stable::parallel_for(0, call.candidates * call.batch, rows_per_task(values), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = index_of(i);
      const Window window = window_of(index, draw + i / call.batch * draw_of_candidate, call.augmentation);
      if (i + 1 < end) prefetch(images + index_of(i + 1) * values, values);
      show<kChannels>(call, images + index * values, window, tables.data(), batch + i * values);
    }
  });
  return out;
}

template <typename scalar>
Tensor run(const AugmentCall& call) {
  switch (call.channels) {
    case 1:
      return run<1, scalar>(call);
    case 2:
      return run<2, scalar>(call);
    case 3:
      return run<3, scalar>(call);
    default:
      return run<4, scalar>(call);
  }
}

Tensor augment_cpu(const Tensor& images, const Tensor& indices, const Tensor& draw, int64_t pad, bool flip,
                   const Tensor& mean, const Tensor& std, ScalarType type) {
  const AugmentCall call = checked(images, indices, draw, pad, flip, mean, std, type);
  const int64_t* index = call.indices.const_data_ptr<int64_t>();
  for (int64_t i = 0, count = call.indices.numel(); i < count; ++i) {
    if (index[i] < 0 || index[i] >= call.count) {
      throw std::out_of_range("index " + std::to_string(index[i]) +
                              " is not one of the N = " + std::to_string(call.count) + " images");
    }
  }
  return for_scalar_of(type, "dtype", [&](auto scalar) { return run<decltype(scalar)>(call); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) { library.impl("augment", TORCH_BOX(&augment_cpu)); }

}  // namespace tfkd_fast

// The gradient of the weight: for each tap the products of outputs and the inputs under it, summed over all positions.
//
// 16 sums are outputs of a tap and an input, and a pair is a column of two rows, so rows are paired first. The images
// are cut into tasks by the shape alone: the sums do not depend on the number of threads.
#pragma once

#include "pairs.h"

#include <array>

#if TFKD_HAS_BF16
namespace tfkd_fast::direct {

// Rows of two maps, one beside the other. One of them may be null: zeros.
TFKD_BF16 inline void pair_rows(const uint16_t* first, const uint16_t* second, int64_t count, Pair* to) {
  if (first && second) {
    for (int64_t i = 0; i < count; ++i) to[i] = first[i] | static_cast<Pair>(second[i]) << 16;
  } else if (first) {
    for (int64_t i = 0; i < count; ++i) to[i] = first[i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Pair>(second[i]) << 16;
  }
}

// Two rows of the gradient and, under each row of the kernel, the two rows of inputs; null: outside of the map.
struct RowPairs {
  const Pair* gradient;
  std::array<const Pair*, 3> inputs;
};

// A block of sums, and the pairs that they are of.
struct BlockOfSums {
  const std::vector<RowPairs>& rows;
  int64_t tap;                        // row of the kernel
  int64_t first_output, first_input;  // channels
  int64_t outputs, inputs;            // channels in all
  int64_t output_columns, input_columns, stride;
  float* sums;  // [column of the kernel][input][lane of all vectors of outputs]
};

// The taps kFirst..kLast of a column of outputs. `inputs` is the column under the middle of the kernel.
template <int kFirst, int kLast, int kTaps, int kInputs, int kVectors>
TFKD_BF16_INLINE void add_column(__m512 (&sums)[kTaps][kInputs][kVectors], const Pair* gradient, const Pair* inputs,
                                 int64_t channels) {
  __m512i outputs[kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) outputs[v] = _mm512_loadu_si512(gradient + v * kLanes);
#pragma GCC unroll 3
  for (int tap = kFirst; tap < kLast; ++tap) {
#pragma GCC unroll 8
    for (int c = 0; c < kInputs; ++c) {
      const __m512i input = _mm512_set1_epi32(static_cast<int32_t>(inputs[(tap - kTaps / 2) * channels + c]));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sums[tap][c][v] = _mm512_dpbf16_ps(sums[tap][c][v], (__m512bh)outputs[v], (__m512bh)input);
      }
    }
  }
}

template <int kTaps, int kInputs, int kVectors>
TFKD_BF16 void add_rows(const BlockOfSums& block) {
  __m512 sums[kTaps][kInputs][kVectors];
#pragma GCC unroll 3
  for (int tap = 0; tap < kTaps; ++tap) {
#pragma GCC unroll 8
    for (int c = 0; c < kInputs; ++c) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sums[tap][c][v] = _mm512_load_ps(block.sums + ((tap * kInputs + c) * kVectors + v) * kLanes);
      }
    }
  }
  const int64_t columns = block.output_columns, step = block.stride * block.inputs;
  const bool last_is_whole = kTaps == 1 || block.stride * (columns - 1) + 1 < block.input_columns;
  for (const RowPairs& row : block.rows) {
    if (row.inputs[block.tap] == nullptr) continue;
    const Pair* outputs = row.gradient + block.first_output;
    const Pair* inputs = row.inputs[block.tap] + block.first_input;
    int64_t j = 0;
    if constexpr (kTaps == 3) {  // the first and the last column have a tap outside of the map
      if (columns == 1 && !last_is_whole) {
        add_column<1, 2>(sums, outputs, inputs, block.inputs);
        continue;
      }
      add_column<1, 3>(sums, outputs, inputs, block.inputs);
      j = 1;
    }
    for (; j < columns - !last_is_whole; ++j) {
      add_column<0, kTaps>(sums, outputs + j * block.outputs, inputs + j * step, block.inputs);
    }
    if constexpr (kTaps == 3) {
      if (!last_is_whole) add_column<0, 2>(sums, outputs + j * block.outputs, inputs + j * step, block.inputs);
    }
  }
#pragma GCC unroll 3
  for (int tap = 0; tap < kTaps; ++tap) {
#pragma GCC unroll 8
    for (int c = 0; c < kInputs; ++c) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        _mm512_store_ps(block.sums + ((tap * kInputs + c) * kVectors + v) * kLanes, sums[tap][c][v]);
      }
    }
  }
}

// How the sums of one weight are cut into blocks: 24 vectors for 3x3, which leaves registers for what is multiplied.
class WeightSums {
 public:
  WeightSums(const Maps& gradient, const Maps& x, int64_t taps, int64_t stride)
      : gradient_(gradient), x_(x), taps_(taps), stride_(stride) {
    if (gradient.channels > kLanes) {
      vectors_ = 2, inputs_ = 4, add_rows_ = taps == 3 ? add_rows<3, 4, 2> : add_rows<1, 4, 2>;
    } else if (x.channels > 4) {
      vectors_ = 1, inputs_ = 8, add_rows_ = taps == 3 ? add_rows<3, 8, 1> : add_rows<1, 8, 1>;
    } else {
      vectors_ = 1, inputs_ = 4, add_rows_ = taps == 3 ? add_rows<3, 4, 1> : add_rows<1, 4, 1>;
    }
  }

  int64_t lanes() const { return vectors_ * kLanes; }
  // Of all sums, [block of outputs][block of inputs][row of the kernel][column of the kernel][input].
  int64_t rows() const { return output_blocks() * input_blocks() * taps_ * taps_ * inputs_; }
  int64_t size() const { return rows() * lanes(); }

  // The channels and the tap of such a row. The last block of inputs overlaps with the one before, or has inputs that
  // there are not.
  struct Place {
    int64_t first_output, input, tap;
  };
  Place place(int64_t row) const {
    const int64_t block = row / (taps_ * taps_ * inputs_);
    return {block / input_blocks() * lanes(), first_input(block % input_blocks()) + row % inputs_,
            row / inputs_ % (taps_ * taps_)};
  }

  // Pairs of an image at most: two rows of the gradient may have rows of inputs in common with two others.
  int64_t pairs_of_image() const { return divided_up(gradient_.height, 2) * (gradient_.line() + taps_ * x_.line()); }

  // Adds the images begin..end. `pairs` has room for theirs.
  void add(int64_t begin, int64_t end, Pair* pairs, float* sums) const {
    const std::vector<RowPairs> rows = paired(begin, end, pairs);
    for (int64_t outputs = 0; outputs < output_blocks(); ++outputs) {
      for (int64_t inputs = 0; inputs < input_blocks(); ++inputs) {
        for (int64_t tap = 0; tap < taps_; ++tap, sums += taps_ * inputs_ * lanes()) {
          add_rows_({rows, tap, outputs * lanes(), first_input(inputs), gradient_.channels, x_.channels,
                     gradient_.width, x_.width, stride_, sums});
        }
      }
    }
  }

 private:
  int64_t output_blocks() const { return divided_up(gradient_.channels, lanes()); }
  int64_t input_blocks() const { return divided_up(x_.channels, inputs_); }
  int64_t first_input(int64_t block) const {
    return std::max<int64_t>(0, std::min(block * inputs_, x_.channels - inputs_));
  }

  std::vector<RowPairs> paired(int64_t begin, int64_t end, Pair* pairs) const {
    std::vector<RowPairs> rows;
    std::vector<const Pair*> known(x_.height + 2);  // by their first row, from -1 on, the pairs of inputs
    for (int64_t image = begin; image < end; ++image) {
      std::fill(known.begin(), known.end(), nullptr);
      for (int64_t i = 0; i < gradient_.height; i += 2) {
        RowPairs row{pairs, {}};
        const bool two = i + 1 < gradient_.height;
        pair_rows(gradient_.row(image, i), two ? gradient_.row(image, i + 1) : nullptr, gradient_.line(), pairs);
        pairs += gradient_.line();
        for (int64_t tap = 0; tap < taps_; ++tap) {
          const int64_t first = stride_ * i + tap - taps_ / 2, second = first + stride_;
          if (!x_.has_row(first) && !x_.has_row(second)) continue;
          if (known[first + 1] == nullptr) {
            pair_rows(x_.has_row(first) ? x_.row(image, first) : nullptr,
                      x_.has_row(second) ? x_.row(image, second) : nullptr, x_.line(), pairs);
            known[first + 1] = pairs;
            pairs += x_.line();
          }
          row.inputs[tap] = known[first + 1];
        }
        rows.push_back(row);
      }
    }
    return rows;
  }

  const Maps &gradient_, &x_;
  int64_t taps_, stride_;
  int64_t vectors_, inputs_;  // of a block
  void (*add_rows_)(const BlockOfSums&);
};

constexpr int64_t kPositionsPerTask = 512;  // make good for the sums of its own
constexpr int64_t kMostTasks = 32;
constexpr int64_t kPairsAtOnce = 32768;  // stay in the second-level cache

inline Tensor weight_gradient_from(const Tensor& gradient, const Tensor& x, const Tensor& weight, int64_t stride) {
  const Tensor outputs_last = channels_last(gradient), inputs_last = channels_last(x);
  const Maps outputs(outputs_last), inputs(inputs_last);
  const int64_t taps = weight.size(2), batch = outputs.batch;
  const WeightSums weight_sums(outputs, inputs, taps, stride);
  const int64_t size = weight_sums.size(), lanes = weight_sums.lanes();

  const int64_t most_tasks = std::clamp(batch, int64_t{1}, kMostTasks);
  const int64_t tasks = std::clamp(outputs.positions() / kPositionsPerTask, int64_t{1}, most_tasks);
  const int64_t at_once = std::max(int64_t{1}, kPairsAtOnce / weight_sums.pairs_of_image());
  const Lines<float> sums(tasks * size);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    // Vectors of the last position may reach beyond it; what they find there adds to no channel.
    const int64_t room = at_once * weight_sums.pairs_of_image() + 2 * kLanes;
    const Lines<Pair> pairs(room);
    std::fill_n(pairs.get(), room, 0);
    for (int64_t task = first; task < last; ++task) {
      float* of_task = sums.get() + task * size;
      std::fill_n(of_task, size, 0.0f);
      const int64_t end = batch * (task + 1) / tasks;
      for (int64_t image = batch * task / tasks; image < end; image += at_once) {
        weight_sums.add(image, std::min(end, image + at_once), pairs.get(), of_task);
      }
    }
  });

  const Tensor result = torch::stable::empty_like(weight);
  const int64_t strides[] = {result.stride(0), result.stride(1), result.stride(2), result.stride(3)};
  for_weight_type(result, [&](auto scalar) {
    auto* to = static_cast<decltype(scalar)*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, weight_sums.rows(), rows_per_task(tasks * lanes), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto place = weight_sums.place(row);
        if (place.input >= inputs.channels) continue;
        std::array<float, 2 * kLanes> total;
        std::copy_n(sums.get() + row * lanes, lanes, total.begin());
        for (int64_t task = 1; task < tasks; ++task) {
          const float* of_task = sums.get() + task * size + row * lanes;
          for (int64_t lane = 0; lane < lanes; ++lane) total[lane] += of_task[lane];
        }
        auto* value = to + place.first_output * strides[0] + place.input * strides[1] + place.tap / taps * strides[2] +
                      place.tap % taps * strides[3];
        const int64_t count = std::min(lanes, outputs.channels - place.first_output);
        for (int64_t k = 0; k < count; ++k) value[k * strides[0]] = static_cast<decltype(scalar)>(total[k]);
      }
    });
  });
  return result;
}

}  // namespace tfkd_fast::direct
#endif

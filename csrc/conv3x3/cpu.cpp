// 3x3 convolution of small maps in bfloat16 by matrix products over the taps that fall inside the map, and its
// gradients. The definition is `_reference` in tfkd_fast/ops/conv3x3.py.
//
// By the taps that fall inside a map has at most nine kinds of positions: four corners, four edges and the inside. The
// outputs of a kind are one product: the inputs under its taps, gathered, times the weights of those taps. A sum over
// all taps and channels is rounded once. The gradient of the inputs is the same with the kernel turned around.

#include "../common/convolution.h"
#include "../common/loss_cpu.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>
#include <bit>

namespace tfkd_fast {
namespace {

struct Tap {
  int64_t row, column;  // -1..1, from the middle of the kernel
  constexpr int bit() const { return 1 << (3 * (row + 1) + column + 1); }
};

// The taps of every kind of position are neighbours in this walk, each once, so that the weights laid out along it
// serve all kinds: those of a whole map's edges, corners and inside between the two spaces, the others in maps one row
// or column wide.
// clang-format off
constexpr std::array<Tap, 17> kWalk = {{
    {0, -1}, {0, 0},
    {0, 1}, {1, 1}, {1, 0}, {0, 0}, {1, -1}, {0, -1}, {-1, -1}, {-1, 0}, {0, 0}, {-1, 1}, {0, 1}, {1, 1}, {1, 0},
    {0, 0}, {-1, 0},
}};
// clang-format on

// Neighbouring positions along one axis under which the same taps fall inside.
struct Span {
  int64_t begin, end;
  int64_t lowest, highest;  // tap

  int64_t positions() const { return end - begin; }
};

std::vector<Span> spans_of(int64_t size) {
  if (size == 1) return {{0, 1, 0, 0}};
  if (size == 2) return {{0, 1, 0, 1}, {1, 2, -1, 0}};
  return {{0, 1, 0, 1}, {1, size - 1, -1, 1}, {size - 1, size, -1, 0}};
}

// A rectangle of positions under which the same taps fall inside: `taps` of the walk, from `first` on.
struct Kind {
  Span rows, columns;
  int64_t first, taps;

  Kind(const Span& rows, const Span& columns) : rows(rows), columns(columns) {
    int inside = 0;
    for (int64_t row = rows.lowest; row <= rows.highest; ++row) {
      for (int64_t column = columns.lowest; column <= columns.highest; ++column) inside |= Tap{row, column}.bit();
    }
    taps = std::popcount(static_cast<unsigned>(inside));
    const auto covers = [&](int64_t begin) {
      int walked = 0;
      for (int64_t t = begin; t < begin + taps; ++t) walked |= kWalk[t].bit();
      return walked == inside;
    };
    first = 0;
    while (!covers(first)) ++first;
  }

  int64_t positions() const { return rows.positions() * columns.positions(); }
};

// Of tensors (B,channels,H,W), channels last.
struct Maps {
  int64_t batch, height, width;

  int64_t positions() const { return height * width; }
  std::vector<Kind> kinds() const {
    std::vector<Kind> kinds;
    for (const Span& rows : spans_of(height)) {
      for (const Span& columns : spans_of(width)) kinds.emplace_back(rows, columns);
    }
    return kinds;
  }
};

Maps maps_of(const Tensor& x) { return {x.size(0), x.size(2), x.size(3)}; }

Tensor scratch(const Tensor& like, int64_t rows, int64_t columns) {
  return new_contiguous(like, {rows, columns}, ScalarType::BFloat16);
}

// A part of a matrix.
Tensor view(const Tensor& of, int64_t offset, std::array<int64_t, 2> sizes, std::array<int64_t, 2> strides) {
  auto* values = static_cast<BFloat16*>(of.mutable_data_ptr()) + offset;
  return torch::stable::from_blob(values, sizes, strides, of.device(), ScalarType::BFloat16);
}

void copy_row(int64_t count, const float* from, BFloat16* to) { store_row(count, from, to); }
void copy_row(int64_t count, const BFloat16* from, float* to) { load_row(count, from, to); }
void copy_row(int64_t count, const BFloat16* from, BFloat16* to) { std::copy_n(from, count, to); }

// The values of a weight (K,C,3,3), float32 or bfloat16, of any strides.
template <typename scalar>
struct Weight {
  scalar* values;
  int64_t inputs;
  std::array<int64_t, 4> strides;

  Weight(scalar* values, const Tensor& weight) : values(values), inputs(weight.size(1)) {
    for (int64_t axis = 0; axis < 4; ++axis) strides[axis] = weight.stride(axis);
  }

  scalar* at(int64_t output, const Tap& tap) const {
    return values + output * strides[0] + (tap.row + 1) * strides[2] + (tap.column + 1) * strides[3];
  }
  void read(int64_t output, const Tap& tap, BFloat16* to) const {
    const scalar* from = at(output, tap);
    if (strides[1] == 1) return copy_row(inputs, from, to);
    for (int64_t c = 0; c < inputs; ++c) to[c] = static_cast<BFloat16>(static_cast<float>(from[c * strides[1]]));
  }
  void write(int64_t output, const Tap& tap, const BFloat16* from) const {
    scalar* to = at(output, tap);
    if (strides[1] == 1) return copy_row(inputs, from, to);
    for (int64_t c = 0; c < inputs; ++c) to[c * strides[1]] = static_cast<scalar>(from[c]);
  }
};

// Weights along the walk as matrices that multiply gathered rows from the right.
struct WalkedWeight {
  Tensor values;
  int64_t begin;    // of the part of the walk that they cover
  int64_t per_tap;  // elements
  int64_t in_channels, out_channels;
  std::array<int64_t, 2> strides;  // of a matrix (taps * in_channels, out_channels)

  Tensor matrix(const Kind& kind) const {
    return view(values, (kind.first - begin) * per_tap, {kind.taps * in_channels, out_channels}, strides);
  }
};

// For the outputs from the inputs; turned, for the gradient of the inputs from that of the outputs. Rows of input
// channels lie together in both, as they do in a weight that is channels last.
WalkedWeight walked(const Tensor& weight, const std::vector<Kind>& kinds, bool turned) {
  int64_t begin = kWalk.size(), end = 0;
  for (const Kind& kind : kinds) {
    begin = std::min(begin, kind.first);
    end = std::max(end, kind.first + kind.taps);
  }
  const int64_t taps = end - begin, outputs = weight.size(0), inputs = weight.size(1);
  const int64_t per_tap = turned ? outputs * inputs : inputs, per_output = turned ? inputs : taps * inputs;
  WalkedWeight result{scratch(weight, taps * outputs, inputs),
                      begin,
                      per_tap,
                      turned ? outputs : inputs,
                      turned ? inputs : outputs,
                      {1, per_output}};
  if (turned) result.strides = {per_output, 1};

  auto* values = static_cast<BFloat16*>(result.values.mutable_data_ptr());
  for_weight_type(weight, [&](auto scalar) {
    const Weight from(static_cast<const decltype(scalar)*>(weight.const_data_ptr()), weight);
    torch::stable::parallel_for(0, outputs, rows_per_task(taps * inputs), [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        for (int64_t t = 0; t < taps; ++t) {
          const auto [row, column] = kWalk[begin + t];
          from.read(k, turned ? Tap{-row, -column} : Tap{row, column}, values + t * per_tap + k * per_output);
        }
      }
    });
  });
  return result;
}

// Calls f(row, b, i, j) for the positions of a kind in the samples first..last, by any thread.
template <typename Function>
void for_each_position(const Kind& kind, int64_t first, int64_t last, int64_t elements, Function f) {
  const int64_t height = kind.rows.positions(), width = kind.columns.positions();
  const int64_t rows = (last - first) * height * width;
  torch::stable::parallel_for(0, rows, rows_per_task(elements), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t column = row % width, line = row / width;
      f(row, first + line / height, kind.rows.begin + line % height, kind.columns.begin + column);
    }
  });
}

// So many are gathered at once: enough to make good for reading the weights, and memory that does not grow with the
// batch.
constexpr int64_t kPositionsAtOnce = 2048;

// x (B,I,H,W) channels last -> (B,O,H,W).
Tensor convolved(const Tensor& x, const WalkedWeight& weight, const std::vector<Kind>& kinds,
                 const std::optional<Tensor>& bias) {
  const Maps maps = maps_of(x);
  const int64_t in_channels = weight.in_channels, out_channels = weight.out_channels;
  const Tensor y = new_maps(x, out_channels);
  if (y.numel() == 0) return y;
  const int64_t at_once = std::min(maps.batch, std::max<int64_t>(1, kPositionsAtOnce / maps.positions()));
  int64_t most_rows = 0, most_elements = 0;
  for (const Kind& kind : kinds) {
    most_rows = std::max(most_rows, at_once * kind.positions());
    most_elements = std::max(most_elements, at_once * kind.positions() * kind.taps * in_channels);
  }
  const Tensor inputs = scratch(x, 1, most_elements), outputs = scratch(x, most_rows, out_channels);
  const BFloat16 *from = values_of(x), *computed = values_of(outputs);
  auto* gathered = static_cast<BFloat16*>(inputs.mutable_data_ptr());
  auto* to = static_cast<BFloat16*>(y.mutable_data_ptr());
  const auto pixel = [&](int64_t b, int64_t i, int64_t j) { return (b * maps.height + i) * maps.width + j; };

  for (int64_t first = 0; first < maps.batch; first += at_once) {
    const int64_t last = std::min(maps.batch, first + at_once);
    for (const Kind& kind : kinds) {
      const int64_t rows = (last - first) * kind.positions(), columns = kind.taps * in_channels;
      for_each_position(kind, first, last, columns, [&](int64_t row, int64_t b, int64_t i, int64_t j) {
        for (int64_t t = 0; t < kind.taps; ++t) {
          const Tap& tap = kWalk[kind.first + t];
          const BFloat16* input = from + pixel(b, i + tap.row, j + tap.column) * in_channels;
          std::copy_n(input, in_channels, gathered + row * columns + t * in_channels);
        }
      });
      const Tensor left = view(inputs, 0, {rows, columns}, {columns, 1}), right = weight.matrix(kind);
      const Tensor product = view(outputs, 0, {rows, out_channels}, {out_channels, 1});
      if (bias) {
        TFKD_CHECK_SHIM(aoti_torch_cpu_addmm_out(product.get(), bias->get(), left.get(), right.get(), 1.0, 1.0));
      } else {
        TFKD_CHECK_SHIM(aoti_torch_cpu_mm_out(product.get(), left.get(), right.get()));
      }
      for_each_position(kind, first, last, out_channels, [&](int64_t row, int64_t b, int64_t i, int64_t j) {
        std::copy_n(computed + row * out_channels, out_channels, to + pixel(b, i, j) * out_channels);
      });
    }
  }
  return y;
}

// Columns begin..end of maps, as rows of channels in the order (H,B,columns): neighbouring lines of maps stay
// neighbours.
Tensor columns_of(const Tensor& x, int64_t begin, int64_t end) {
  const Maps maps = maps_of(x);
  const int64_t channels = x.size(1), line = (end - begin) * channels;
  const Tensor columns = scratch(x, maps.height * maps.batch * (end - begin), channels);
  const BFloat16* from = values_of(x);
  auto* to = static_cast<BFloat16*>(columns.mutable_data_ptr());
  torch::stable::parallel_for(0, maps.height * maps.batch, rows_per_task(line), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t i = row / maps.batch, b = row % maps.batch;
      std::copy_n(from + ((b * maps.height + i) * maps.width + begin) * channels, line, to + row * line);
    }
  });
  return columns;
}

// Along one axis: the first of the outputs whose inputs under a tap are inside, the first of these inputs, and how
// many.
struct Overlap {
  int64_t outputs, inputs, count;
  Overlap(int64_t size, int64_t offset)
      : outputs(std::max<int64_t>(0, -offset)),
        inputs(std::max<int64_t>(0, offset)),
        count(std::max<int64_t>(0, size - std::abs(offset))) {}
};

// (3,3,K,C): for each tap the sum over its outputs and inputs, one product.
Tensor weight_gradients(const Tensor& gradient, const Tensor& x) {
  const Maps maps = maps_of(x);
  const int64_t outputs = gradient.size(1), inputs = x.size(1);
  const Tensor sums = scratch(x, 9 * outputs, inputs);
  for (int64_t column = -1; column <= 1; ++column) {
    const Overlap columns(maps.width, column);
    const Tensor of_outputs = columns_of(gradient, columns.outputs, columns.outputs + columns.count);
    const Tensor of_inputs = columns_of(x, columns.inputs, columns.inputs + columns.count);
    const int64_t line = maps.batch * columns.count;
    for (int64_t row = -1; row <= 1; ++row) {
      const Overlap rows(maps.height, row);
      const int64_t terms = rows.count * line, tap = 3 * (row + 1) + column + 1;
      const Tensor left = view(of_outputs, rows.outputs * line * outputs, {outputs, terms}, {1, outputs});
      const Tensor right = view(of_inputs, rows.inputs * line * inputs, {terms, inputs}, {inputs, 1});
      const Tensor product = view(sums, tap * outputs * inputs, {outputs, inputs}, {inputs, 1});
      TFKD_CHECK_SHIM(aoti_torch_cpu_mm_out(product.get(), left.get(), right.get()));
    }
  }
  return sums;
}

Tensor conv3x3_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_convolution(x, weight, bias);
  const auto kinds = maps_of(x).kinds();
  std::optional<Tensor> rounded;
  if (bias) rounded = torch::stable::to(*bias, ScalarType::BFloat16);
  return convolved(channels_last(x), walked(weight, kinds, false), kinds, rounded);
}

Tensor input_gradient_cpu(const Tensor& gradient, const Tensor& weight) {
  check_input_gradient(gradient, weight);
  const auto kinds = maps_of(gradient).kinds();
  return convolved(channels_last(gradient), walked(weight, kinds, true), kinds, std::nullopt);
}

Tensor weight_gradient_cpu(const Tensor& gradient, const Tensor& x, const Tensor& weight) {
  check_weight_gradient(gradient, x, weight);
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const Tensor sums = weight_gradients(channels_last(gradient), channels_last(x));
  const BFloat16* from = values_of(sums);
  const Tensor result = torch::stable::empty_like(weight);
  for_weight_type(weight, [&](auto scalar) {
    const Weight to(static_cast<decltype(scalar)*>(result.mutable_data_ptr()), result);
    torch::stable::parallel_for(0, outputs, rows_per_task(9 * inputs), [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) {
        for (int64_t t = 0; t < 9; ++t) to.write(k, {t / 3 - 1, t % 3 - 1}, from + (t * outputs + k) * inputs);
      }
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("conv3x3", TORCH_BOX(&conv3x3_cpu));
  library.impl("conv3x3_input_gradient", TORCH_BOX(&input_gradient_cpu));
  library.impl("conv3x3_weight_gradient", TORCH_BOX(&weight_gradient_cpu));
}

}  // namespace tfkd_fast

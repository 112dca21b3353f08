// Batch norm in training, ReLU and max-pooling of channels-last images on CUDA, forward and backward; without pooling a
// residual may be added before the ReLU. The definition is `_reference` in tfkd_fast/ops/norm_relu_pool.py.
//
// Forward reads the images twice: for mean and variance, and to write the largest value of each window and where it is.
// Backward reads them twice: for the sums over the gradient, which flows to those places alone, and to write the
// gradient of the images. Both begin with partial results of blocks, which a small kernel puts together in a fixed
// order. Without a pool a window is one position.

#include "../common/device.cuh"
#include "arguments.h"

#include <tuple>

namespace tfkd_fast {
namespace {

// Threads of a block, and blocks of a multiprocessor: 80 registers a thread, and 128 where a thread writes 4 positions.
constexpr int kThreads = 256, kBlocks = 3, kWideBlocks = 2;

// A thread serves a vector of channels, 16 bytes where they divide a position and else one channel, of every so many
// items: positions, or windows. The threads of a block hold neighbouring vectors of an item, and then of the next ones;
// what is more vectors than a block has threads is divided into tiles.
struct Division {
  unsigned items;
  int channels, vectors, tiles, vectors_of_tile, slots, blocks;
};

struct Worker {
  int vector, of_tile, slot;
  unsigned first, step;
  bool active;

  __device__ explicit Worker(const Division& of) {
    const int tile = blockIdx.x % of.tiles, block = blockIdx.x / of.tiles;
    of_tile = threadIdx.x % of.vectors_of_tile, slot = threadIdx.x / of.vectors_of_tile;
    vector = tile * of.vectors_of_tile + of_tile;
    first = block * of.slots + slot, step = of.blocks * of.slots;
    active = slot < of.slots && vector < of.vectors;
  }
};

template <typename scalar, int kVector>
struct Vector : AlignedVector<scalar, kVector> {
  __device__ __forceinline__ float get(int j) const { return static_cast<float>(this->at[j]); }
  __device__ __forceinline__ void set(int j, float value) { this->at[j] = static_cast<scalar>(value); }
};

// Vector number `at` of images, which begin at 16 bytes.
template <int kVector, typename scalar>
__device__ __forceinline__ Vector<scalar, kVector> get(const scalar* from, int64_t at) {
  return reinterpret_cast<const Vector<scalar, kVector>*>(from)[at];
}
template <int kVector, typename scalar>
__device__ __forceinline__ void put(const Vector<scalar, kVector>& vector, scalar* to, int64_t at) {
  reinterpret_cast<Vector<scalar, kVector>*>(to)[at] = vector;
}

// What the channels have one of, which need not lie side by side.
template <typename T>
struct Numbers {
  T* values;
  int64_t stride;
  __device__ T& operator[](int channel) const { return values[channel * stride]; }
};

// Statistics.

// Of a part of a channel's values.
struct Moments {
  double count, mean, squares;  // around the mean
};

// The count, the mean and the squares of values around it, for each channel and block; each thread's are around its
// first value, whatever the mean is.
template <typename scalar, int kVector>
__global__ void __launch_bounds__(kThreads, kBlocks)
    measure(const Division of, const scalar* x, Moments* moments) {
  constexpr int kAhead = 4;
  __shared__ float means[kThreads * kVector], squares[kThreads * kVector];
  __shared__ unsigned counts[kThreads];
  const Worker own(of);
  float origin[kVector] = {}, sum[kVector] = {}, square[kVector] = {};
  unsigned count = 0;
  const auto at = [&](unsigned item) { return static_cast<int64_t>(item) * of.vectors + own.vector; };
  const auto add = [&](const Vector<scalar, kVector>& values) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const float above = values.get(j) - origin[j];
      sum[j] += above;
      square[j] = fmaf(above, above, square[j]);
    }
    ++count;
  };
  if (own.active && own.first < of.items) {
    const auto values = get<kVector>(x, at(own.first));
#pragma unroll
    for (int j = 0; j < kVector; ++j) origin[j] = values.get(j);
    unsigned item = own.first;
    for (; item + uint64_t{kAhead - 1} * own.step < of.items; item += kAhead * own.step) {
      Vector<scalar, kVector> loaded[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) loaded[k] = get<kVector>(x, at(item + k * own.step));
#pragma unroll
      for (int k = 0; k < kAhead; ++k) add(loaded[k]);
    }
    for (; item < of.items; item += own.step) add(get<kVector>(x, at(item)));
  }
  const float share = count == 0 ? 0.0f : 1.0f / static_cast<float>(count);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    means[threadIdx.x * kVector + j] = origin[j] + sum[j] * share;
    squares[threadIdx.x * kVector + j] = square[j] - sum[j] * sum[j] * share;
  }
  counts[threadIdx.x] = count;
  __syncthreads();

  const int channels_of_tile = of.vectors_of_tile * kVector, tile = blockIdx.x % of.tiles;
  for (int c = threadIdx.x; c < channels_of_tile; c += kThreads) {
    const int channel = tile * channels_of_tile + c;
    if (channel >= of.channels) break;
    const auto thread = [&](int slot) { return slot * of.vectors_of_tile + c / kVector; };
    const auto number = [&](int slot) { return thread(slot) * kVector + c % kVector; };
    Moments all{};
    for (int slot = 0; slot < of.slots; ++slot) {
      all.count += counts[thread(slot)];
      all.mean += static_cast<double>(means[number(slot)]) * counts[thread(slot)];
    }
    if (all.count > 0) all.mean /= all.count;
    for (int slot = 0; slot < of.slots; ++slot) {
      const double away = means[number(slot)] - all.mean;
      all.squares += squares[number(slot)] + away * away * counts[thread(slot)];
    }
    moments[static_cast<int64_t>(blockIdx.x / of.tiles) * of.channels + channel] = all;
  }
}

// A block of the kernels that put parts together serves 32 channels; 32 threads of each share the parts.
constexpr int kOfBlock = 32;

// The sum of f(part) over the parts of a channel; every thread of the channel gets it, and all of the block call it.
template <typename Function>
__device__ __forceinline__ double sum_over_parts(int parts, bool present, double (&scratch)[kOfBlock][kOfBlock + 1],
                                                 Function f) {
  const int of_block = threadIdx.x % kOfBlock, group = threadIdx.x / kOfBlock;
  double sum = 0;
  if (present) {
#pragma unroll 4
    for (int part = group; part < parts; part += kOfBlock) sum += f(part);
  }
  __syncthreads();  // scratch may still be read from a call before
  scratch[group][of_block] = sum;
  __syncthreads();
  double total = 0;
  for (int k = 0; k < kOfBlock; ++k) total += scratch[k][of_block];
  return total;
}

struct Averages {
  Numbers<float> mean, var;
  float momentum;
};

__global__ void __launch_bounds__(kOfBlock * kOfBlock)
    finish_statistics(int channels, int parts, const Moments* moments, double eps, const Averages running, float* means,
                      float* invstds) {
  __shared__ double scratch[kOfBlock][kOfBlock + 1];
  const int channel = blockIdx.x * kOfBlock + threadIdx.x % kOfBlock;
  const bool present = channel < channels;
  const auto of_part = [&](int part) -> const Moments& {
    return moments[static_cast<int64_t>(part) * channels + channel];
  };
  const double count = sum_over_parts(parts, present, scratch, [&](int part) { return of_part(part).count; });
  const double divisor = count > 0 ? count : 1;  // of no images mean and variance are 0
  const double mean = sum_over_parts(parts, present, scratch, [&](int part) {
                        return of_part(part).mean * of_part(part).count;
                      }) / divisor;
  const double squares = sum_over_parts(parts, present, scratch, [&](int part) {
    const double away = of_part(part).mean - mean;
    return of_part(part).squares + away * away * of_part(part).count;
  });
  if (!present || threadIdx.x >= kOfBlock) return;
  means[channel] = static_cast<float>(mean);
  invstds[channel] = static_cast<float>(1.0 / sqrt(squares / divisor + eps));
  if (count == 0) return;
  const float share = running.momentum;
  float &old_mean = running.mean[channel], &old_var = running.var[channel];
  old_mean = share * static_cast<float>(mean) + (1.0f - share) * old_mean;
  old_var = share * static_cast<float>(squares / (count - 1)) + (1.0f - share) * old_var;
}

// Windows.

// Where windows lie. `rows` and `columns` are those of whole windows of an image, or of all, some of which may be cut
// off at its end.
struct Windows {
  unsigned height, width, rows, columns;
  struct Corner {
    unsigned image, row, column;
  };

  template <int kSide>
  __device__ __forceinline__ Corner corner(unsigned window) const {
    const unsigned line = window / columns, image = line / rows;
    return {image, kSide * (line - image * rows), kSide * (window - line * columns)};
  }
  __device__ __forceinline__ int64_t position(const Corner& at) const {
    return (static_cast<int64_t>(at.image) * height + at.row) * width + at.column;
  }
  // The first position of a window; the windows of one position are numbered as those are.
  template <int kSide>
  __device__ __forceinline__ int64_t first_position(unsigned window) const {
    if constexpr (kSide == 1) return window;
    return position(corner<kSide>(window));
  }
};

// Where the windows of a vector have their maxima: in 3 of 4 bits a channel, or kNowhere where the ReLU has made it 0;
// of a single position, whether it has not, in 1 bit.
constexpr int kNowhere = 4;
template <int kSide, int kVector>
struct Places {
  static constexpr int kBits = kSide == 1 ? 1 : 4, kAll = kVector * kBits;
  using Word = std::conditional_t<kAll == 32, uint32_t, std::conditional_t<kAll == 16, uint16_t, uint8_t>>;

  __device__ static __forceinline__ unsigned made(int at, bool flows, int j) {
    return static_cast<unsigned>(kSide == 1 ? flows : flows ? at : kNowhere) << (j * kBits);
  }
  // Which of the positions of a window the gradient flows to, or kNowhere.
  __device__ static __forceinline__ int of(unsigned word, int j) {
    const auto bits = static_cast<int>(word >> (j * kBits) & 7);
    return kSide == 2 ? bits : (bits & 1) != 0 ? 0 : kNowhere;
  }
};

// What forward knows of its channels.
struct Normalisation {
  const float *mean, *invstd;
  Numbers<const float> weight, bias;
};

template <typename scalar, int kSide, bool kResidual, int kVector>
__global__ void __launch_bounds__(kThreads, kBlocks)
    write_maxima(const Division of, const Windows windows, const scalar* x, const scalar* residual,
                 const Normalisation numbers, scalar* y,
                 typename Places<kSide, kVector>::Word* places) {
  static_assert(kSide == 1 || !kResidual);
  constexpr int kPositions = kSide * kSide;
  const Worker own(of);
  if (!own.active) return;
  float alpha[kVector], beta[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const int channel = own.vector * kVector + j;
    alpha[j] = numbers.invstd[channel] * numbers.weight[channel];
    beta[j] = numbers.bias[channel] - numbers.mean[channel] * alpha[j];
  }
#pragma unroll(kSide == 1 ? 2 : 1)
  for (unsigned item = own.first; item < of.items; item += own.step) {
    const int64_t corner = windows.first_position<kSide>(item) * of.vectors + own.vector;
    const int64_t at_out = static_cast<int64_t>(item) * of.vectors + own.vector;
    Vector<scalar, kVector> values[kPositions], added, result;
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
      values[k] = get<kVector>(x, corner + (k / kSide * windows.width + k % kSide) * of.vectors);
    }
    if constexpr (kResidual) added = get<kVector>(residual, at_out);
    unsigned word = 0;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      float highest = 0;
      int at = 0;
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        // Rounded as torch's functions store them, one after the other: of equal numbers the first has the gradient.
        values[k].set(j, fmaf(values[k].get(j), alpha[j], beta[j]));
        if constexpr (kResidual) values[k].set(j, values[k].get(j) + added.get(j));
        const float value = values[k].get(j);
        const bool above = k == 0 || value > highest || value != value;
        highest = above ? value : highest;
        at = above ? k : at;
      }
      const bool flows = !(highest <= 0.0f);  // NaN does
      result.set(j, flows ? highest : 0.0f);
      word |= Places<kSide, kVector>::made(at, flows, j);
    }
    put<kVector>(result, y, at_out);
    places[at_out] = static_cast<typename Places<kSide, kVector>::Word>(word);
  }
}

// Backward.

// Of a part of a channel: the gradient, and it times what the value is above the mean.
struct GradientSums {
  double gradient, product;
};

template <typename scalar, int kSide, int kVector>
__global__ void __launch_bounds__(kThreads, kBlocks)
    add_gradient(const Division of, const Windows windows, const scalar* x, const scalar* gradient,
                 const typename Places<kSide, kVector>::Word* places, const float* means, GradientSums* parts) {
  constexpr int kPositions = kSide * kSide;
  __shared__ float sums[kThreads * kVector], products[kThreads * kVector];
  const Worker own(of);
  float mean[kVector] = {}, sum[kVector] = {}, product[kVector] = {};
  if (own.active) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) mean[j] = means[own.vector * kVector + j];
#pragma unroll(kSide == 1 ? 2 : 1)
    for (unsigned item = own.first; item < of.items; item += own.step) {
      const int64_t corner = windows.first_position<kSide>(item) * of.vectors + own.vector;
      const int64_t at_gradient = static_cast<int64_t>(item) * of.vectors + own.vector;
      const auto upstream = get<kVector>(gradient, at_gradient);
      const unsigned word = places[at_gradient];
      Vector<scalar, kVector> values[kPositions];
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        values[k] = get<kVector>(x, corner + (k / kSide * windows.width + k % kSide) * of.vectors);
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const int at = Places<kSide, kVector>::of(word, j);
        float value = values[0].get(j);
#pragma unroll
        for (int k = 1; k < kPositions; ++k) value = at == k ? values[k].get(j) : value;
        const float flowing = at == kNowhere ? 0.0f : upstream.get(j);
        sum[j] += flowing;
        product[j] = fmaf(flowing, value - mean[j], product[j]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    sums[threadIdx.x * kVector + j] = sum[j], products[threadIdx.x * kVector + j] = product[j];
  }
  __syncthreads();
  const int channels_of_tile = of.vectors_of_tile * kVector, tile = blockIdx.x % of.tiles;
  for (int c = threadIdx.x; c < channels_of_tile; c += kThreads) {
    const int channel = tile * channels_of_tile + c;
    if (channel >= of.channels) break;
    GradientSums all{};
    for (int slot = 0; slot < of.slots; ++slot) {
      all.gradient += sums[slot * channels_of_tile + c];
      all.product += products[slot * channels_of_tile + c];
    }
    parts[static_cast<int64_t>(blockIdx.x / of.tiles) * of.channels + channel] = all;
  }
}

// By channel, the gradient of a value is gradient * scale + offset - value * slope. (The offset has the mean in it; its
// rounding is as one of the mean, which the values share.)
struct Linear {
  float scale, offset, slope;
};

__global__ void __launch_bounds__(kOfBlock * kOfBlock)
    finish_gradient(int channels, int parts, const GradientSums* sums, double positions, const float* means,
                    const float* invstds, const Numbers<const float> weight, float* of_weight, float* of_bias,
                    Linear* linear) {
  __shared__ double scratch[kOfBlock][kOfBlock + 1];
  const int channel = blockIdx.x * kOfBlock + threadIdx.x % kOfBlock;
  const bool present = channel < channels;
  const auto of_part = [&](int part) -> const GradientSums& {
    return sums[static_cast<int64_t>(part) * channels + channel];
  };
  const double sum = sum_over_parts(parts, present, scratch, [&](int part) { return of_part(part).gradient; });
  const double product = sum_over_parts(parts, present, scratch, [&](int part) { return of_part(part).product; });
  if (!present || threadIdx.x >= kOfBlock) return;
  const double invstd = invstds[channel], factor = weight[channel] * invstd;
  of_weight[channel] = static_cast<float>(product * invstd);
  of_bias[channel] = static_cast<float>(sum);
  const double slope = product * invstd * invstd / positions * factor;
  const double offset = slope * means[channel] - sum / positions * factor;
  linear[channel] = {static_cast<float>(factor), static_cast<float>(offset), static_cast<float>(slope)};
}

// Items are all windows, whole or not. The gradient of a residual is that which the ReLU lets through.
template <typename scalar, int kSide, bool kResidual, int kVector>
__global__ void __launch_bounds__(kThreads, kSide == 1 ? kBlocks : kWideBlocks)
    write_gradient(const Division of, const Windows windows, const scalar* x, const scalar* gradient,
                   const typename Places<kSide, kVector>::Word* places, const Linear* linear, scalar* out,
                   scalar* of_residual) {
  static_assert(kSide == 1 || !kResidual);
  constexpr int kPositions = kSide * kSide;
  const Worker own(of);
  if (!own.active) return;
  Linear channel[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) channel[j] = linear[own.vector * kVector + j];
  for (unsigned item = own.first; item < of.items; item += own.step) {
    int64_t corner = item, window = item;
    bool bottom = true, right = true;  // whether the window has them
    if constexpr (kSide == 2) {
      const auto at = windows.corner<kSide>(item);
      corner = windows.position(at);
      bottom = at.row + 1 < windows.height, right = at.column + 1 < windows.width;
      const int64_t line = static_cast<int64_t>(at.image) * (windows.height / 2) + at.row / 2;
      window = line * (windows.width / 2) + at.column / 2;
    }
    const bool whole = bottom && right;
    Vector<scalar, kVector> upstream{}, values[kPositions], through;
    unsigned word = 0;
    if (whole) {
      upstream = get<kVector>(gradient, window * of.vectors + own.vector);
      word = places[window * of.vectors + own.vector];
    }
    const auto position = [&](int k) {
      return (corner + k / kSide * static_cast<int64_t>(windows.width) + k % kSide) * of.vectors + own.vector;
    };
    const auto has = [&](int k) { return (k / kSide == 0 || bottom) && (k % kSide == 0 || right); };
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
      if (has(k)) values[k] = get<kVector>(x, position(k));
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int at = whole ? Places<kSide, kVector>::of(word, j) : kNowhere;
      const auto [scale, offset, slope] = channel[j];
      const float flowing = fmaf(upstream.get(j), scale, offset);
#pragma unroll
      for (int k = 0; k < kPositions; ++k) {
        values[k].set(j, fmaf(-values[k].get(j), slope, at == k ? flowing : offset));
      }
      if constexpr (kResidual) through.set(j, at == kNowhere ? 0.0f : upstream.get(j));
    }
#pragma unroll
    for (int k = 0; k < kPositions; ++k) {
      if (has(k)) put<kVector>(values[k], out, position(k));
    }
    if constexpr (kResidual) put<kVector>(through, of_residual, window * of.vectors + own.vector);
  }
}

// The host's side.

template <typename scalar>
constexpr int kWide = 16 / sizeof(scalar);

Division division_of(const Tensor& x, int64_t items, int vector, int resident = kBlocks) {
  const auto channels = static_cast<int>(x.size(1)), vectors = channels / vector;
  const int tiles = (vectors + kThreads - 1) / kThreads, of_tile = (vectors + tiles - 1) / tiles;
  const int slots = kThreads / of_tile;
  constexpr int64_t kMost = int64_t{1} << 30;  // items are counted in 32 bits, with room for a few steps
  STD_TORCH_CHECK(items <= kMost, "x has more than 2^30 positions");
  const int64_t rounds = (items + slots - 1) / slots;
  const int64_t room = std::max<int64_t>(1, static_cast<int64_t>(multiprocessors(x)) * resident / tiles);
  return {static_cast<unsigned>(items),
          channels,
          vectors,
          tiles,
          of_tile,
          slots,
          static_cast<int>(std::min(rounds, room))};
}

Windows windows_of(const Tensor& x, int64_t side, bool whole) {
  const auto height = static_cast<unsigned>(x.size(2)), width = static_cast<unsigned>(x.size(3));
  const auto cut = static_cast<unsigned>(whole ? 0 : side - 1);
  return {height, width, (height + cut) / static_cast<unsigned>(side), (width + cut) / static_cast<unsigned>(side)};
}

int64_t count_of(const Windows& windows, const Tensor& x) {
  return x.size(0) * static_cast<int64_t>(windows.rows) * windows.columns;
}

Numbers<const float> numbers_of(const Tensor& tensor) { return {tensor.const_data_ptr<float>(), tensor.stride(0)}; }
Numbers<float> numbers_in(Tensor& tensor) { return {tensor.mutable_data_ptr<float>(), tensor.stride(0)}; }

// The images, in memory that begins at 16 bytes: of others a copy.
Tensor at_16_bytes(const Tensor& images) {
  return reinterpret_cast<uintptr_t>(images.const_data_ptr()) % 16 == 0 ? images : torch::stable::clone(images);
}

Tensor new_images(const Tensor& x, int64_t height, int64_t width) {
  const int64_t channels = x.size(1);
  return new_strided(x, {x.size(0), channels, height, width}, channels_last(channels, height, width), x.scalar_type());
}

// Calls f(scalar{}, kVector, kSide, kResidual), the last three as constants.
template <typename Function>
void for_kind_of(const Tensor& x, bool pool, bool residual, Function f) {
  const auto with_vector = [&](auto scalar, auto vector) {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (pool) return f(scalar, vector, Two(), std::false_type());
    if (residual) return f(scalar, vector, One(), std::true_type());
    return f(scalar, vector, One(), std::false_type());
  };
  const auto with_type = [&](auto scalar) {
    constexpr int kVector = kWide<decltype(scalar)>;
    if (x.size(1) % kVector == 0) return with_vector(scalar, std::integral_constant<int, kVector>());
    return with_vector(scalar, std::integral_constant<int, 1>());
  };
  if (x.scalar_type() == ScalarType::BFloat16) return with_type(BFloat16{});
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "x must be bfloat16 or float32");
  with_type(float{});
}

dim3 grid_of(const Division& of) { return dim3(static_cast<unsigned>(of.blocks * of.tiles)); }
dim3 grid_of_channels(const Tensor& x) { return dim3(static_cast<unsigned>((x.size(1) + kOfBlock - 1) / kOfBlock)); }

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Results norm_relu_pool_cuda(const Tensor& x_, const Tensor& weight, const Tensor& bias, Tensor running_mean,
                            Tensor running_var, double momentum, double eps, bool pool,
                            std::optional<Tensor> residual) {
  check_forward(x_, weight, bias, running_mean, running_var, pool, residual);
  const Tensor x = at_16_bytes(x_);
  if (residual) residual = at_16_bytes(*residual);
  const int64_t channels = x.size(1), side = pool ? 2 : 1;
  const Windows windows = windows_of(x, side, true);
  Tensor y = new_images(x, windows.rows, windows.columns);
  Tensor mean = new_contiguous(x, {channels}, ScalarType::Float);
  Tensor invstd = new_contiguous(x, {channels}, ScalarType::Float), places;
  for_kind_of(x, pool, residual.has_value(), [&](auto zero, auto vector, auto of_side, auto of_residual) {
    using scalar = decltype(zero);
    constexpr int kVector = vector, kSide = of_side;
    using Word = typename Places<kSide, kVector>::Word;
    const auto* images = static_cast<const scalar*>(x.const_data_ptr());
    const auto* added = residual ? static_cast<const scalar*>(residual->const_data_ptr()) : nullptr;

    const Division of = division_of(x, x.numel() / channels, kVector);
    Tensor scratch = new_contiguous(x, {of.blocks, channels, sizeof(Moments) / sizeof(double)}, ScalarType::Double);
    auto* moments = reinterpret_cast<Moments*>(scratch.mutable_data_ptr<double>());
    if (of.items > 0) {
      launch(&measure<scalar, kVector>, grid_of(of), dim3(kThreads), 0, x, of, images, moments);
    }
    const Averages running{numbers_in(running_mean), numbers_in(running_var), static_cast<float>(momentum)};
    auto* means = mean.mutable_data_ptr<float>();
    auto* invstds = invstd.mutable_data_ptr<float>();
    launch(&finish_statistics, grid_of_channels(x), dim3(kOfBlock * kOfBlock), 0, x, static_cast<int>(channels),
           of.blocks, moments, eps, running, means, invstds);

    const Division of_windows = division_of(x, count_of(windows, x), kVector);
    places = new_contiguous(
        x, {x.size(0), windows.rows, windows.columns, of_windows.vectors * static_cast<int64_t>(sizeof(Word))},
        ScalarType::Byte);
    if (of_windows.items == 0) return;
    const Normalisation numbers{means, invstds, numbers_of(weight), numbers_of(bias)};
    launch(&write_maxima<scalar, kSide, of_residual, kVector>, grid_of(of_windows), dim3(kThreads), 0, x, of_windows,
           windows, images, added, numbers, static_cast<scalar*>(y.mutable_data_ptr()),
           reinterpret_cast<Word*>(places.mutable_data_ptr<uint8_t>()));
  });
  return {y, places, mean, invstd};
}

// The last of the results, the gradient of the residual, is empty if there is none.
Results norm_relu_pool_backward_cuda(const Tensor& gradient_, const Tensor& x_, const Tensor& weight,
                                     const Tensor& places, const Tensor& mean, const Tensor& invstd, bool pool,
                                     bool residual) {
  check_backward(gradient_, x_, weight, places, mean, invstd, pool, residual);
  const Tensor gradient = at_16_bytes(gradient_), x = at_16_bytes(x_);
  STD_TORCH_CHECK(mean.is_contiguous() && invstd.is_contiguous(), "mean and invstd must be contiguous");
  const int64_t channels = x.size(1), side = pool ? 2 : 1, positions = x.numel() / channels;
  const Windows whole = windows_of(x, side, true), all = windows_of(x, side, false);
  Tensor of_x = new_images(x, x.size(2), x.size(3));
  Tensor of_residual = residual ? new_images(x, x.size(2), x.size(3)) : new_contiguous(x, {0}, x.scalar_type());
  Tensor of_weight = new_contiguous(x, {channels}, ScalarType::Float);
  Tensor of_bias = new_contiguous(x, {channels}, ScalarType::Float);
  for_kind_of(x, pool, residual, [&](auto zero, auto vector, auto of_side, auto with_residual) {
    using scalar = decltype(zero);
    constexpr int kVector = vector, kSide = of_side;
    using Word = typename Places<kSide, kVector>::Word;
    const Division of = division_of(x, count_of(whole, x), kVector);
    const int64_t bytes = of.vectors * static_cast<int64_t>(sizeof(Word));
    STD_TORCH_CHECK(has_shape(places, {x.size(0), whole.rows, whole.columns, bytes}) &&
                        reinterpret_cast<uintptr_t>(places.const_data_ptr()) % sizeof(Word) == 0,
                    "places does not fit x");
    const auto* images = static_cast<const scalar*>(x.const_data_ptr());
    const auto* upstream = static_cast<const scalar*>(gradient.const_data_ptr());
    const auto* words = reinterpret_cast<const Word*>(places.const_data_ptr<uint8_t>());
    const auto* means = mean.const_data_ptr<float>();

    Tensor scratch = new_contiguous(x, {of.blocks, channels, 2}, ScalarType::Double);
    auto* parts = reinterpret_cast<GradientSums*>(scratch.mutable_data_ptr<double>());
    if (of.items > 0) {
      launch(&add_gradient<scalar, kSide, kVector>, grid_of(of), dim3(kThreads), 0, x, of, whole, images, upstream,
             words, means, parts);
    }
    Tensor coefficients = new_contiguous(x, {channels, 3}, ScalarType::Float);
    auto* linear = reinterpret_cast<Linear*>(coefficients.mutable_data_ptr<float>());
    launch(&finish_gradient, grid_of_channels(x), dim3(kOfBlock * kOfBlock), 0, x, static_cast<int>(channels),
           of.blocks, parts, static_cast<double>(std::max<int64_t>(1, positions)), means,
           invstd.const_data_ptr<float>(), numbers_of(weight), of_weight.mutable_data_ptr<float>(),
           of_bias.mutable_data_ptr<float>(), linear);
    const Division of_all = division_of(x, count_of(all, x), kVector, kSide == 1 ? kBlocks : kWideBlocks);
    if (of_all.items == 0) return;
    launch(&write_gradient<scalar, kSide, with_residual, kVector>, grid_of(of_all), dim3(kThreads), 0, x, of_all, all,
           images, upstream, words, linear, static_cast<scalar*>(of_x.mutable_data_ptr()),
           static_cast<scalar*>(of_residual.mutable_data_ptr()));
  });
  return {of_x, of_weight, of_bias, of_residual};
}

}  // namespace

TFKD_CUDA_LIBRARY(library) {
  library.impl("norm_relu_pool", TORCH_BOX(&norm_relu_pool_cuda));
  library.impl("norm_relu_pool_backward", TORCH_BOX(&norm_relu_pool_backward_cuda));
}

}  // namespace tfkd_fast

// Batch norm in training, ReLU and max-pooling of channels-last images, forward and backward.
// The definition is `_reference` in tfkd_fast/ops/norm_relu_pool.py.
//
// Forward reads the images three times: for the mean, for the variance, summed as torch sums them, and to write the largest
// value of each window and its position. Backward reads them twice: for the sums over the gradient, which has entries at
// those positions alone, and to write the gradient of the images. Without a pool a window is one position.

#include "../common/arguments.h"
#include "../common/vector_math.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>

#include <array>
#include <tuple>

namespace tfkd_fast {
namespace {

using torch::headeronly::BFloat16;
template <typename T>
using Vector = typename VectorOf<T>::Type;
template <typename T>
using Bits = typename VectorOf<T>::Index;
template <typename T>
using Bytes = typename VectorOf<T>::Bytes;

constexpr uint8_t kNowhere = 4;  // the position of a maximum that the ReLU has made 0

// Windows in rows, and the positions of the images that they are made of.
struct Windows {
  int64_t side;  // 1 or 2
  int64_t images, height, width, channels;

  int64_t positions() const { return images * height * width; }
  int64_t rows_of_image() const { return height / side; }
  int64_t rows() const { return images * rows_of_image(); }
  int64_t in_row() const { return width / side; }
  // The first number of the images that belongs to a row.
  int64_t offset(int64_t row) const {
    return (row / rows_of_image() * height + row % rows_of_image() * side) * width * channels;
  }
};

// Calls visit(c, count) for the channels in vectors: `count` is a constant for whole ones, and the last one is shorter.
template <typename T, typename Visit>
INLINE void for_channels(int64_t channels, Visit visit) {
  constexpr int64_t kLanes = VectorOf<T>::kLanes;
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) visit(c, std::integral_constant<int64_t, kLanes>());
  if (c < channels) visit(c, channels - c);
}
#define VISIT [&](int64_t c, auto count) __attribute__((always_inline))

// `count` numbers, and 0 in the other lanes.
template <typename T>
INLINE Vector<T> get(const T* from, auto count) {
  Vector<T> values{};
  std::memcpy(&values, from, count * sizeof(T));
  return values;
}
INLINE Floats get(const BFloat16* from, auto count) {
  Halves values{};
  std::memcpy(&values, from, count * sizeof(BFloat16));
  return widened(values);
}

template <typename T>
INLINE void put(const Vector<T>& values, T* to, auto count) {
  std::memcpy(to, &values, count * sizeof(T));
}
INLINE void put(const Floats& values, BFloat16* to, auto count) {
  const Halves bits = narrowed(values);
  std::memcpy(to, &bits, count * sizeof(BFloat16));
}

template <typename T>
INLINE Bits<T> get_positions(const uint8_t* from, auto count) {
  Bytes<T> bytes{};
  std::memcpy(&bytes, from, count);
  return __builtin_convertvector(bytes, Bits<T>);
}
template <typename T>
INLINE void put_positions(const Bits<T>& positions, uint8_t* to, auto count) {
  const auto bytes = __builtin_convertvector(positions, Bytes<T>);
  std::memcpy(to, &bytes, count);
}

// The bits of max(value, 0), in the order of the numbers; NaN comes last.
template <typename T>
INLINE Bits<T> rectified(const Vector<T>& value) {
  const Vector<T> positive = value < T(0) ? Vector<T>{} : value;
  return reinterpret_cast<Bits<T>>(positive) & std::numeric_limits<typename VectorOf<T>::Lane>::max();
}

// What such bits become in the type of the images, still as bits of a T.
template <typename scalar, typename T>
INLINE Bits<T> rounded(const Bits<T>& bits) {
  if constexpr (std::is_same_v<scalar, BFloat16>) {
    const Bits<T> quiet = bits < 0x7fc00000 ? bits : Bits<T>{} + 0x7fc00000;  // a NaN must not become -0
    return (quiet + 0x7fff + ((quiet >> 16) & 1)) & ~0xffff;
  } else {
    return bits;
  }
}

// The lowest bits that are rounded to these: half-way ones go to the even neighbour.
template <typename scalar, typename T>
INLINE Bits<T> lowest_rounded_to(const Bits<T>& bits) {
  if constexpr (std::is_same_v<scalar, BFloat16>) {
    return bits - 0x8000 + ((bits >> 16) & 1);
  } else {
    return bits;
  }
}

// `bits` are rounded.
template <typename T>
INLINE void put_bits(const Bits<T>& bits, T* to, auto count) {
  put(reinterpret_cast<Vector<T>>(bits), to, count);
}
template <typename T>
INLINE void put_bits(const Bits<T>& bits, BFloat16* to, auto count) {
  const Halves upper = __builtin_convertvector(bits >> 16, Halves);
  std::memcpy(to, &upper, count * sizeof(BFloat16));
}

// As many windows as stay in the first-level cache while one vector of channels after the other visits them.
template <typename scalar>
INLINE int64_t windows_in_cache(int64_t side, int64_t channels) {
  constexpr int64_t kBytes = 16 << 10;
  return std::max<int64_t>(1, kBytes / static_cast<int64_t>(sizeof(scalar)) / (side * side * channels));
}

// Calls visit(windows, from, window) for parts of the rows: `windows` in number, the first has its first number at `from`
// of the images, and is the window `window` of all.
template <typename scalar, typename Visit>
INLINE void for_parts(const Windows& in, int64_t begin, int64_t end, Visit visit) {
  const int64_t most = windows_in_cache<scalar>(in.side, in.channels);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < in.in_row(); first += most) {
      visit(std::min(most, in.in_row() - first), in.offset(row) + first * in.side * in.channels,
            row * in.in_row() + first);
    }
  }
}

// sums += term(value, c, count) for each position, in their order.
template <typename scalar, typename T, typename Term>
INLINE void add_terms(const scalar* images, int64_t positions, int64_t channels, T* sums, Term term) {
  const int64_t most = windows_in_cache<scalar>(1, channels);
  for (int64_t first = 0; first < positions; first += most) {
    const int64_t last = std::min(first + most, positions);
    for_channels<T>(channels, VISIT {
      Vector<T> sum = get(sums + c, count);
      term.at(c, count);
      for (int64_t i = first; i < last; ++i) sum = term(sum, get(images + i * channels + c, count));
      put(sum, sums + c, count);
    });
  }
}

template <typename T>
struct Value {
  INLINE void at(int64_t, auto) {}
  INLINE Vector<T> operator()(const Vector<T>& sum, const Vector<T>& value) const { return sum + value; }
};

template <typename T>
struct SquareAroundMean {
  const T* means;
  Vector<T> mean{};
  INLINE void at(int64_t c, auto count) { mean = get(means + c, count); }
  INLINE Vector<T> operator()(const Vector<T>& sum, const Vector<T>& value) const {
    return sum + (value - mean) * (value - mean);
  }
};

template <int kSide, typename scalar, typename T>
INLINE void maxima_of_rows(const Windows& in, int64_t begin, int64_t end, const scalar* images, const T* alphas,
                           const T* betas, scalar* out, uint8_t* positions) {
  const int64_t channels = in.channels, line = in.width * channels;
  for_parts<scalar>(in, begin, end, [&](int64_t windows, int64_t from, int64_t window) __attribute__((always_inline)) {
    for_channels<T>(channels, VISIT {
      const Vector<T> alpha = get(alphas + c, count), beta = get(betas + c, count);
      for (int64_t w = 0; w < windows; ++w) {
        const scalar* corner = images + from + w * kSide * channels + c;
        Bits<T> values[kSide * kSide];
        for (int k = 0; k < kSide * kSide; ++k) {
          values[k] = rectified<T>(get(corner + k / kSide * line + k % kSide * channels, count) * alpha + beta);
        }
        Bits<T> highest = values[0];
        for (int k = 1; k < kSide * kSide; ++k) highest = values[k] > highest ? values[k] : highest;
        const Bits<T> result = rounded<scalar, T>(highest), lowest = lowest_rounded_to<scalar, T>(result);
        Bits<T> position = Bits<T>{} + (kSide * kSide - 1);
        for (int k = kSide * kSide - 2; k >= 0; --k) position = values[k] >= lowest ? Bits<T>{} + k : position;
        position = result > 0 ? position : Bits<T>{} + kNowhere;
        const int64_t to = (window + w) * channels + c;
        put_bits<T>(result, out + to, count);
        put_positions<T>(position, positions + to, count);
      }
    });
  });
}


// sums: of the gradient, and of it times what the image is above its mean.
template <int kSide, typename scalar, typename T>
INLINE void gradient_sums_of_rows(const Windows& in, int64_t begin, int64_t end, const scalar* gradient,
                                  const uint8_t* positions, const scalar* images, const T* means, T* sums, T* products) {
  const int64_t channels = in.channels, line = in.width * channels;
  for_parts<scalar>(in, begin, end, [&](int64_t windows, int64_t from, int64_t window) __attribute__((always_inline)) {
    for_channels<T>(channels, VISIT {
      const Vector<T> mean = get(means + c, count);
      Vector<T> sum = get(sums + c, count), product = get(products + c, count);
      for (int64_t w = 0; w < windows; ++w) {
        const scalar* corner = images + from + w * kSide * channels + c;
        const int64_t at = (window + w) * channels + c;
        const Bits<T> position = get_positions<T>(positions + at, count);
        const Vector<T> flowing = position == kNowhere ? Vector<T>{} : get(gradient + at, count);
        Vector<T> value = get(corner, count);
        for (int k = 1; k < kSide * kSide; ++k) {
          value = position == k ? get(corner + k / kSide * line + k % kSide * channels, count) : value;
        }
        sum += flowing;
        product += flowing * (value - mean);
      }
      put(sum, sums + c, count);
      put(product, products + c, count);
    });
  });
}

// By channel, the gradient of a value is gradient * scale + shift - (value - mean) * slope.
template <typename T>
struct Linear {
  const T *mean, *scale, *shift, *slope;
};

// The gradient of `positions` that belong to no window.
template <typename scalar, typename T>
INLINE void gradient_without_window(const scalar* images, int64_t positions, int64_t channels, const Linear<T>& linear,
                                    scalar* out) {
  for_channels<T>(channels, VISIT {
    const Vector<T> mean = get(linear.mean + c, count), shift = get(linear.shift + c, count);
    const Vector<T> slope = get(linear.slope + c, count);
    for (int64_t i = c; i < positions * channels; i += channels) {
      put(shift - (get(images + i, count) - mean) * slope, out + i, count);
    }
  });
}

template <int kSide, typename scalar, typename T>
INLINE void gradient_of_rows(const Windows& in, int64_t begin, int64_t end, const scalar* gradient,
                             const uint8_t* positions, const scalar* images, const Linear<T>& linear, scalar* out) {
  const int64_t channels = in.channels, line = in.width * channels;
  for_parts<scalar>(in, begin, end, [&](int64_t windows, int64_t from, int64_t window) __attribute__((always_inline)) {
    for_channels<T>(channels, VISIT {
      const Vector<T> mean = get(linear.mean + c, count), scale = get(linear.scale + c, count);
      const Vector<T> shift = get(linear.shift + c, count), slope = get(linear.slope + c, count);
      for (int64_t w = 0; w < windows; ++w) {
        const int64_t corner = from + w * kSide * channels + c, at = (window + w) * channels + c;
        const Bits<T> position = get_positions<T>(positions + at, count);
        const Vector<T> flowing = get(gradient + at, count) * scale + shift;
        for (int k = 0; k < kSide * kSide; ++k) {
          const int64_t i = corner + k / kSide * line + k % kSide * channels;
          put((position == k ? flowing : shift) - (get(images + i, count) - mean) * slope, out + i, count);
        }
      }
    });
  });
  if constexpr (kSide == 1) return;
  const auto left_out = [&](int64_t from, int64_t count) {
    gradient_without_window(images + from, count, channels, linear, out + from);
  };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t from = in.offset(row);
    if (in.width % 2 == 1) {
      left_out(from + line - channels, 1);
      left_out(from + 2 * line - channels, 1);
    }
    if (in.height % 2 == 1 && (row + 1) % in.rows_of_image() == 0) left_out(from + 2 * line, in.width);
  }
}

#define DEFINE(scalar, T)                                                                                             \
  FOR_EVERY_VECTOR_WIDTH void add_values(const scalar* images, int64_t positions, int64_t channels, T* sums) {        \
    add_terms(images, positions, channels, sums, Value<T>());                                                         \
  }                                                                                                                   \
  FOR_EVERY_VECTOR_WIDTH void add_squares(const scalar* images, int64_t positions, int64_t channels, const T* mean,   \
                                          T* sums) {                                                                  \
    add_terms(images, positions, channels, sums, SquareAroundMean<T>{mean});                                          \
  }                                                                                                                   \
  FOR_EVERY_VECTOR_WIDTH void write_maxima(const Windows& in, int64_t begin, int64_t end, const scalar* images,       \
                                           const T* alpha, const T* beta, scalar* out, uint8_t* positions) {          \
    if (in.side == 1) return maxima_of_rows<1>(in, begin, end, images, alpha, beta, out, positions);                  \
    maxima_of_rows<2>(in, begin, end, images, alpha, beta, out, positions);                                           \
  }                                                                                                                   \
  FOR_EVERY_VECTOR_WIDTH void add_gradient(const Windows& in, int64_t begin, int64_t end, const scalar* gradient,     \
                                           const uint8_t* positions, const scalar* images, const T* mean, T* sums,    \
                                           T* products) {                                                             \
    if (in.side == 1) return gradient_sums_of_rows<1>(in, begin, end, gradient, positions, images, mean, sums, products); \
    gradient_sums_of_rows<2>(in, begin, end, gradient, positions, images, mean, sums, products);                      \
  }                                                                                                                   \
  FOR_EVERY_VECTOR_WIDTH void write_gradient(const Windows& in, int64_t begin, int64_t end, const scalar* gradient,   \
                                             const uint8_t* positions, const scalar* images,                          \
                                             const Linear<T>& linear, scalar* out) {                                  \
    if (in.side == 1) return gradient_of_rows<1>(in, begin, end, gradient, positions, images, linear, out);           \
    gradient_of_rows<2>(in, begin, end, gradient, positions, images, linear, out);                                    \
  }
DEFINE(BFloat16, float)
DEFINE(float, float)
DEFINE(double, double)
#undef DEFINE

// A value becomes value * alpha + beta.
#define DEFINE(T)                                                                                                     \
  FOR_EVERY_VECTOR_WIDTH void linear_terms(int64_t channels, const T* weight, const T* bias, const T* mean,           \
                                           const T* invstd, T* alpha, T* beta) {                                      \
    for (int64_t c = 0; c < channels; ++c) {                                                                          \
      alpha[c] = invstd[c] * weight[c];                                                                               \
      beta[c] = bias[c] - mean[c] * alpha[c];                                                                         \
    }                                                                                                                 \
  }
DEFINE(float)
DEFINE(double)
#undef DEFINE

Windows windows_of(const Tensor& images, bool pool) {
  STD_TORCH_CHECK(images.dim() == 4, "x must be (B,C,H,W)");
  const int64_t batch = images.size(0), channels = images.size(1), height = images.size(2), width = images.size(3);
  const std::array<int64_t, 4> strides{height * width * channels, 1, width * channels, channels};
  for (int64_t axis = 0; axis < 4; ++axis) {
    STD_TORCH_CHECK(images.size(axis) <= 1 || images.numel() == 0 || images.stride(axis) == strides[axis],
                    "x must be channels-last");
  }
  const int64_t side = pool ? 2 : 1;
  STD_TORCH_CHECK(channels > 0 && height >= side && width >= side, "x has no window");
  return pool ? Windows{2, batch, height, width, channels} : Windows{1, batch, 1, height * width, channels};
}

// Uninitialised and channels-last, of the batch and the channels of `images`.
Tensor new_images(const Tensor& images, int64_t height, int64_t width, ScalarType type) {
  const int64_t channels = images.size(1);
  return new_strided(images, {images.size(0), channels, height, width},
                     {height * width * channels, 1, width * channels, channels}, type);
}

// The numbers of a tensor (C,) in order, whatever its stride.
template <typename T>
std::vector<T> numbers_of(const Tensor& tensor) {
  std::vector<T> numbers(tensor.size(0));
  for (size_t c = 0; c < numbers.size(); ++c) numbers[c] = tensor.const_data_ptr<T>()[c * tensor.stride(0)];
  return numbers;
}

constexpr int64_t kElementsPerTask = 8192;  // a few us of work, above the cost of waking a thread

// Calls add(begin, end, sums) for a part of the `rows` for each thread, as torch divides them, and adds up what it did to
// the parts' `count` sums, which begin at 0. The result depends on the number of threads alone.
template <typename Total, typename T, typename Add>
std::vector<Total> sums_of_parts(int64_t rows, int64_t elements, int64_t count, Add add) {
  const int64_t parts = torch::stable::get_num_threads(), rows_of_part = (rows + parts - 1) / parts;
  std::vector<T> sums(parts * count);
  torch::stable::parallel_for(0, parts, elements < kElementsPerTask ? parts : 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      add(std::min(part * rows_of_part, rows), std::min((part + 1) * rows_of_part, rows), sums.data() + part * count);
    }
  });
  std::vector<Total> totals(count);
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t i = 0; i < count; ++i) totals[i] += sums[part * count + i];
  }
  return totals;
}

template <typename Function>
void for_rows(const Windows& in, Function f) {
  const int64_t elements = in.side * in.width * in.channels;
  torch::stable::parallel_for(0, in.rows(), std::max<int64_t>(1, kElementsPerTask / elements), f);
}

template <typename scalar, typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                   Tensor& running_mean, Tensor& running_var, double momentum,
                                                   double eps, bool pool) {
  const Windows in = windows_of(x, pool);
  const int64_t channels = in.channels, positions = in.positions();
  const auto* images = static_cast<const scalar*>(x.const_data_ptr());
  Tensor mean = new_contiguous(x, {channels}, weight.scalar_type()), invstd = new_contiguous(x, {channels}, weight.scalar_type());
  T *means = mean.mutable_data_ptr<T>(), *invstds = invstd.mutable_data_ptr<T>();

  // torch's types: the parts' sums are added up in double, but those of bfloat16 in float.
  using Total = std::conditional_t<std::is_same_v<scalar, BFloat16>, float, double>;
  const auto sums = sums_of_parts<Total, T>(positions, x.numel(), channels, [&](int64_t begin, int64_t end, T* out) {
    add_values(images + begin * channels, end - begin, channels, out);
  });
  for (int64_t c = 0; c < channels; ++c) means[c] = static_cast<T>(sums[c] / positions);
  const auto squares = sums_of_parts<Total, T>(positions, x.numel(), channels, [&](int64_t begin, int64_t end, T* out) {
    add_squares(images + begin * channels, end - begin, channels, means, out);
  });
  const T new_share = static_cast<T>(momentum), old_share = static_cast<T>(1 - momentum);
  for (int64_t c = 0; c < channels; ++c) {
    const T square = static_cast<T>(squares[c]);
    invstds[c] = static_cast<T>(1.0 / std::sqrt(square / positions + eps));
    if (positions == 0) continue;
    T& old_mean = running_mean.mutable_data_ptr<T>()[c * running_mean.stride(0)];
    T& old_var = running_var.mutable_data_ptr<T>()[c * running_var.stride(0)];
    old_mean = new_share * means[c] + old_share * old_mean;
    old_var = static_cast<T>(new_share * static_cast<Total>(square / (positions - 1)) + old_share * old_var);
  }

  std::vector<T> alpha(channels), beta(channels);
  linear_terms(channels, numbers_of<T>(weight).data(), numbers_of<T>(bias).data(), means, invstds, alpha.data(),
               beta.data());
  const int64_t height = x.size(2) / in.side, width = x.size(3) / in.side;
  Tensor maxima = new_images(x, height, width, x.scalar_type());
  Tensor places = new_images(x, height, width, ScalarType::Byte);
  auto* out = static_cast<scalar*>(maxima.mutable_data_ptr());
  auto* place = places.mutable_data_ptr<uint8_t>();
  for_rows(in, [&](int64_t begin, int64_t end) {
    write_maxima(in, begin, end, images, alpha.data(), beta.data(), out, place);
  });
  return {maxima, places, mean, invstd};
}

template <typename scalar, typename T>
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& upstream, const Tensor& x, const Tensor& weight,
                                            const Tensor& places, const Tensor& mean, const Tensor& invstd, bool pool) {
  const Windows in = windows_of(x, pool);
  const int64_t channels = in.channels, positions = in.positions();
  const auto* images = static_cast<const scalar*>(x.const_data_ptr());
  const auto* gradient = static_cast<const scalar*>(upstream.const_data_ptr());
  const auto* place = places.const_data_ptr<uint8_t>();
  const T *means = mean.const_data_ptr<T>(), *invstds = invstd.const_data_ptr<T>();

  const auto sums = sums_of_parts<double, T>(in.rows(), x.numel(), 2 * channels, [&](int64_t begin, int64_t end, T* out) {
    add_gradient(in, begin, end, gradient, place, images, means, out, out + channels);
  });
  Tensor of_weight = new_contiguous(x, {channels}, weight.scalar_type());
  Tensor of_bias = new_contiguous(x, {channels}, weight.scalar_type());
  std::vector<T> scale = numbers_of<T>(weight), shift(channels), slope(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double sum = sums[c], product = sums[channels + c], factor = static_cast<double>(scale[c]) * invstds[c];
    of_weight.mutable_data_ptr<T>()[c] = static_cast<T>(product * invstds[c]);
    of_bias.mutable_data_ptr<T>()[c] = static_cast<T>(sum);
    scale[c] = static_cast<T>(factor);
    shift[c] = static_cast<T>(-sum / positions * factor);
    slope[c] = static_cast<T>(product * invstds[c] * invstds[c] / positions * factor);
  }

  Tensor of_x = new_images(x, x.size(2), x.size(3), x.scalar_type());
  auto* out = static_cast<scalar*>(of_x.mutable_data_ptr());
  const Linear<T> linear{means, scale.data(), shift.data(), slope.data()};
  for_rows(in, [&](int64_t begin, int64_t end) {
    write_gradient(in, begin, end, gradient, place, images, linear, out);
  });
  return {of_x, of_weight, of_bias};
}

// Calls f(scalar{}, T{}) with the type of the images and that of the parameters.
template <typename Function>
auto for_type_of(const Tensor& images, Function f) {
  switch (images.scalar_type()) {
    case ScalarType::BFloat16:
      return f(BFloat16{}, float{});
    case ScalarType::Float:
      return f(float{}, float{});
    case ScalarType::Double:
      return f(double{}, double{});
    default:
      throw std::runtime_error("x must be bfloat16, float32 or float64");
  }
}

void check_numbers(const char* name, const Tensor& numbers, const Tensor& images) {
  STD_TORCH_CHECK(numbers.scalar_type() == loss_type(images) && has_shape(numbers, {images.size(1)}), name,
                  " does not fit x");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_relu_pool_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                              Tensor running_mean, Tensor running_var, double momentum,
                                                              double eps, bool pool) {
  return for_type_of(x, [&](auto scalar, auto value) {
    return forward<decltype(scalar), decltype(value)>(x, weight, bias, running_mean, running_var, momentum, eps, pool);
  });
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_backward_cpu(const Tensor& gradient, const Tensor& x,
                                                               const Tensor& weight, const Tensor& position,
                                                               const Tensor& mean, const Tensor& invstd, bool pool) {
  return for_type_of(x, [&](auto scalar, auto value) {
    return backward<decltype(scalar), decltype(value)>(gradient, x, weight, position, mean, invstd, pool);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("norm_relu_pool", TORCH_BOX(&norm_relu_pool_cpu));
  library.impl("norm_relu_pool_backward", TORCH_BOX(&norm_relu_pool_backward_cpu));
}

}  // namespace tfkd_fast

// Batch norm in training, ReLU and max-pooling of channels-last images, forward and backward; without pooling a residual
// may be added before the ReLU.
// The definition is `_reference` in tfkd_fast/ops/norm_relu_pool.py.
//
// Forward reads the images three times: for the mean, for the variance, summed as torch sums them, and to write the
// largest value of each window and where it is. Backward reads them twice: for the sums over the gradient, which has
// entries at those places alone, and to write the gradient of the images. Without a pool a window is one position.

#include "../common/gradient_memory.h"
#include "../common/vector_math.h"
#include "arguments.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <numeric>
#include <tuple>

namespace tfkd_fast {
namespace {

template <typename T>
using Bits = typename VectorOf<T>::Index;

// A pack is 64 bytes of an image, some channels of a position, which are computed in one or two vectors of T. A
// bfloat16 is the upper half of a float, so each lane of a pack holds two channels, an even one and an odd one, that
// become floats by a shift and a mask: moving them between lanes would take longer than what is computed with them.
// Numbers of the channels lie in this order, too: those of the even channels of a pack before those of the odd ones,
// and whole packs.
template <typename scalar>
constexpr int kPackParts = std::is_same_v<scalar, BFloat16> ? 2 : 1;
template <typename scalar>
constexpr int64_t kPackChannels = 64 / sizeof(scalar);
template <typename scalar>
constexpr int64_t kLanes = VectorOf<Computed<scalar>>::kLanes;

template <typename scalar>
int64_t packs_of(int64_t channels) {
  return (channels + kPackChannels<scalar> - 1) / kPackChannels<scalar>;
}

// What packs hold of a position. Where channels do not fill packs, some are in two places, and are computed twice to
// the same numbers: to move as many bytes as only the run knows would be a call of a function.
enum class Fill {
  kWhole,     // 64 bytes each; the last pack ends where the position does, and may begin inside of the one before
  kHalves,    // one pack, the first 32 bytes of the position and the last 32
  kQuarters,  // one pack, the first 16 bytes and the last 16, and then 0
  kPart,      // one pack, less than 16 bytes, and then 0
};
template <typename scalar>
Fill fill_of(int64_t channels) {
  const size_t bytes = channels * sizeof(scalar);
  return bytes >= 64 ? Fill::kWhole : bytes >= 32 ? Fill::kHalves : bytes >= 16 ? Fill::kQuarters : Fill::kPart;
}

// The channel of each number of the packs; -1 where a pack holds none.
template <typename scalar>
std::vector<int64_t> channels_of_packs(int64_t channels) {
  constexpr int64_t kCount = kPackChannels<scalar>;
  const Fill fill = fill_of<scalar>(channels);
  const int64_t piece = fill == Fill::kHalves ? kCount / 2 : fill == Fill::kQuarters ? kCount / 4 : 0;
  std::vector<int64_t> numbers(packs_of<scalar>(channels) * kCount);
  for (int64_t i = 0; i < static_cast<int64_t>(numbers.size()); ++i) {
    const int64_t first = i / kCount * kCount, part = (i - first) / kLanes<scalar>, lane = i % kLanes<scalar>;
    const int64_t in_pack = lane * kPackParts<scalar> + part;
    if (fill == Fill::kWhole) {
      numbers[i] = std::min(first, channels - kCount) + in_pack;
    } else if (fill == Fill::kPart) {
      numbers[i] = in_pack < channels ? in_pack : -1;
    } else {
      numbers[i] = in_pack < piece ? in_pack : in_pack < 2 * piece ? channels - 2 * piece + in_pack : -1;
    }
  }
  return numbers;
}

// Where a window has its maximum is a number of 4 bits, and kNowhere where the ReLU has made it 0. Those of a group of
// windows, as many as a pack has room for, lie in one.
constexpr int kNowhere = 4;
template <typename scalar>
constexpr int64_t kGroup = 2 * sizeof(scalar);  // windows
template <typename scalar>
int shift_of(int64_t window_of_group, int part) {
  return static_cast<int>(4 * (window_of_group * kPackParts<scalar> + part));
}

// Rows of windows, and the positions of the images that they are made of.
struct Windows {
  int64_t side;  // 1 or 2
  int64_t images, height, width, channels;

  int64_t rows_of_image() const { return height / side; }
  int64_t rows() const { return images * rows_of_image(); }
  int64_t in_row() const { return width / side; }
  // The first number of the images that belongs to a row.
  int64_t offset(int64_t row) const {
    return (row / rows_of_image() * height + row % rows_of_image() * side) * width * channels;
  }

  // Without a pool a number of positions of an image that fill packs together may be taken for one position with all
  // of their channels, if their numbers stay in the first-level cache.
  template <typename scalar>
  Windows with_whole_packs() const {
    constexpr int64_t kMost = 1024;  // channels; beyond them packs that overlap waste little
    const int64_t together = kPackChannels<scalar> / std::gcd(channels, kPackChannels<scalar>);
    if (side > 1 || width % together != 0 || channels * together > kMost) return *this;
    return {side, images, height, width / together, channels * together};
  }

  // Of the tensor of places: a pack for each group of windows in a row and each pack of channels.
  template <typename scalar>
  std::vector<int64_t> shape_of_places() const {
    return {rows(), groups_in_row<scalar>(), packs_of<scalar>(channels), 64};
  }
  template <typename scalar>
  int64_t groups_in_row() const {
    return (in_row() + kGroup<scalar> - 1) / kGroup<scalar>;
  }
  template <typename scalar>
  int64_t offset_of_places(int64_t row, int64_t window, int64_t pack) const {
    const int64_t group = row * groups_in_row<scalar>() + window / kGroup<scalar>;
    return (group * packs_of<scalar>(channels) + pack) * 64;
  }
};

// Calls visit(pack, c) for each pack and its first channel.
template <Fill kFill, typename scalar, typename Visit>
TFKD_INLINE void for_packs(int64_t channels, Visit visit) {
  constexpr int64_t kCount = kPackChannels<scalar>;
  const int64_t packs = kFill == Fill::kWhole ? packs_of<scalar>(channels) : 1;
  for (int64_t pack = 0; pack < packs; ++pack) {
    visit(pack, kFill == Fill::kWhole ? std::min(pack * kCount, channels - kCount) : 0);
  }
}
#define VISIT [&](int64_t pack, int64_t c) __attribute__((always_inline))  // until the last of the loops

using Quarter = int32_t __attribute__((vector_size(16)));
using Half = int32_t __attribute__((vector_size(32)));

template <typename Vector, size_t... kLanes>
TFKD_INLINE auto joined(const Vector& first, const Vector& second, std::index_sequence<kLanes...>) {
  return __builtin_shufflevector(first, second, kLanes...);
}
template <size_t kFirst, typename Vector, size_t... kLanes>
TFKD_INLINE auto lanes_of(const Vector& vector, std::index_sequence<kLanes...>) {
  return __builtin_shufflevector(vector, vector, (kFirst + kLanes)...);
}

// A pack of a position that has `channels`, from its first channel there on.
template <Fill kFill, typename scalar>
TFKD_INLINE Bits<Computed<scalar>> get(const scalar* from, int64_t channels) {
  using Pack = Bits<Computed<scalar>>;
  if constexpr (kFill == Fill::kHalves || kFill == Fill::kQuarters) {
    using Piece = std::conditional_t<kFill == Fill::kHalves, Half, Quarter>;
    Piece first, last;
    std::memcpy(&first, from, sizeof(Piece));
    std::memcpy(&last, from + channels - sizeof(Piece) / sizeof(scalar), sizeof(Piece));
    const auto both = joined(first, last, std::make_index_sequence<2 * sizeof(Piece) / 4>());
    if constexpr (kFill == Fill::kHalves) {
      return reinterpret_cast<Pack>(both);
    } else {
      return reinterpret_cast<Pack>(joined(both, Half{}, std::make_index_sequence<16>()));
    }
  } else {
    Pack pack{};
    std::memcpy(&pack, from, kFill == Fill::kWhole ? sizeof(pack) : channels * sizeof(scalar));
    return pack;
  }
}
template <Fill kFill, typename scalar>
TFKD_INLINE void put(const Bits<Computed<scalar>>& pack, scalar* to, int64_t channels) {
  if constexpr (kFill == Fill::kHalves || kFill == Fill::kQuarters) {
    constexpr size_t kLanesOfPiece = kFill == Fill::kHalves ? 8 : 4;
    constexpr auto kPiece = std::make_index_sequence<kLanesOfPiece>();
    const auto lanes = reinterpret_cast<Bits<float>>(pack);
    const auto first = lanes_of<0>(lanes, kPiece), last = lanes_of<kLanesOfPiece>(lanes, kPiece);
    std::memcpy(to, &first, sizeof(first));
    std::memcpy(to + channels - sizeof(last) / sizeof(scalar), &last, sizeof(last));
  } else {
    std::memcpy(to, &pack, kFill == Fill::kWhole ? sizeof(pack) : channels * sizeof(scalar));
  }
}

constexpr int32_t kUpperHalf = -0x10000;
template <typename T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

template <typename scalar>
TFKD_INLINE Vector<Computed<scalar>> part_of(const Bits<Computed<scalar>>& pack, int part) {
  if constexpr (std::is_same_v<scalar, BFloat16>) {
    return from_bits(part == 0 ? pack << 16 : pack & kUpperHalf);
  } else {
    return reinterpret_cast<Vector<Computed<scalar>>>(pack);
  }
}

// Bits whose upper half is the nearest bfloat16, of two equally near ones the even one. Of a NaN the lower half must be
// 0.
TFKD_INLINE Bits<float> rounded(const Bits<float>& bits) { return bits + 0x7fff + ((bits >> 16) & 1); }

// Makes numbers, as bits that are rounded, a part of a pack that was 0.
template <typename scalar>
TFKD_INLINE void set_part(Bits<Computed<scalar>>& pack, int part, const Bits<Computed<scalar>>& bits) {
  if constexpr (std::is_same_v<scalar, BFloat16>) {
    using Unsigned = uint32_t __attribute__((vector_size(64)));
    pack |= part == 0 ? reinterpret_cast<Bits<float>>(reinterpret_cast<Unsigned>(bits) >> 16) : bits & kUpperHalf;
  } else {
    pack = bits;
  }
}

template <typename scalar>
TFKD_INLINE void set_part(Bits<Computed<scalar>>& pack, int part, const Vector<Computed<scalar>>& values) {
  const auto bits = reinterpret_cast<Bits<Computed<scalar>>>(values);
  if constexpr (std::is_same_v<scalar, BFloat16>) {
    set_part<scalar>(pack, part, rounded(bits));
  } else {
    set_part<scalar>(pack, part, bits);
  }
}

// What a number is after it was stored.
template <typename scalar>
TFKD_INLINE Vector<Computed<scalar>> as_stored(const Vector<Computed<scalar>>& values) {
  if constexpr (std::is_same_v<scalar, BFloat16>) {
    return from_bits(rounded(to_bits(values)) & kUpperHalf);
  } else {
    return values;
  }
}

// sums += term(value, number of the packs) for each position, in their order.
template <Fill kFill, typename scalar, typename Term>
TFKD_INLINE void add_terms(const scalar* images, int64_t positions, int64_t channels, Computed<scalar>* sums,
                           Term term) {
  constexpr int64_t kPositions = 16;  // of all channels in turn, so that memory is read as it lies
  constexpr int kParts = kPackParts<scalar>;
  for (int64_t first = 0; first < positions; first += kPositions) {
    const int64_t last = std::min(first + kPositions, positions);
    for_packs<kFill, scalar>(channels, VISIT {
      const int64_t numbers = pack * kPackChannels<scalar>;
      Vector<Computed<scalar>> sum[kParts];
      for (int p = 0; p < kParts; ++p) sum[p] = load(sums + numbers + p * kLanes<scalar>);
      for (int64_t i = first; i < last; ++i) {
        const auto values = get<kFill>(images + i * channels + c, channels);
        for (int p = 0; p < kParts; ++p) {
          sum[p] = term(sum[p], part_of<scalar>(values, p), numbers + p * kLanes<scalar>);
        }
      }
      for (int p = 0; p < kParts; ++p) store<Computed<scalar>>(sum[p], sums + numbers + p * kLanes<scalar>);
    });
  }
}

template <Fill kFill, typename scalar>
TFKD_FOR_EVERY_VECTOR_WIDTH void add_values(const scalar* images, int64_t positions, int64_t channels,
                                            Computed<scalar>* sums) {
  const auto term = [](const auto& sum, const auto& value, int64_t) __attribute__((always_inline)) {
    return sum + value;
  };
  add_terms<kFill>(images, positions, channels, sums, term);
}

template <Fill kFill, typename scalar>
TFKD_FOR_EVERY_VECTOR_WIDTH void add_squares(const scalar* images, int64_t positions, int64_t channels,
                                             const Computed<scalar>* means, Computed<scalar>* sums) {
  const auto term = [means](const auto& sum, const auto& value, int64_t number) __attribute__((always_inline)) {
    const auto centred = value - load(means + number);
    return sum + centred * centred;
  };
  add_terms<kFill>(images, positions, channels, sums, term);
}

// Calls visit(row, first, last) for each group of windows. They stay in the first-level cache while one pack of
// channels after the other visits them; the numbers of more windows, with many channels, would fall on too few places
// in it.
template <typename scalar, typename Visit>
TFKD_INLINE void for_groups(const Windows& in, int64_t begin, int64_t end, Visit visit) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < in.in_row(); first += kGroup<scalar>) {
      visit(row, first, std::min(first + kGroup<scalar>, in.in_row()));
    }
  }
}

// max(value * alpha + beta, 0), the largest of each window and where it is. The bits of floats that are not negative
// are in the order of the numbers, and those of negative ones are negative, so integers are compared. NaN, whose bits
// may be anywhere, comes of an alpha or beta that is not finite alone: there `lowest` is NaN, the result, and elsewhere
// 0. A residual may have any values; it is added to what is rounded as if it were stored, as torch's functions do.
template <int kSide, Fill kFill, bool kResidual, typename scalar>
TFKD_FOR_EVERY_VECTOR_WIDTH void write_maxima(const Windows& in, int64_t begin, int64_t end, const scalar* images,
                                              const scalar* residual, const Computed<scalar>* alphas,
                                              const Computed<scalar>* betas, const Computed<scalar>* lowest,
                                              scalar* out, uint8_t* places) {
  static_assert(kSide == 1 || !kResidual);
  using T = Computed<scalar>;
  constexpr int kParts = kPackParts<scalar>, kPositions = kSide * kSide;
  const int64_t channels = in.channels, line = in.width * channels;
  const Bits<T> nan = reinterpret_cast<Bits<T>>(Vector<T>{} + kNaN<T>);
  for_groups<scalar>(in, begin, end, [&](int64_t row, int64_t first, int64_t last) __attribute__((always_inline)) {
    for_packs<kFill, scalar>(channels, VISIT {
      Vector<T> alpha[kParts], beta[kParts];
      Bits<T> floor[kParts];
      for (int p = 0; p < kParts; ++p) {
        const int64_t lane = pack * kPackChannels<scalar> + p * kLanes<scalar>;
        alpha[p] = load(alphas + lane), beta[p] = load(betas + lane);
        floor[p] = reinterpret_cast<Bits<T>>(load(lowest + lane));
      }
      Bits<T> place{};
#pragma GCC unroll 4
      for (int64_t j = 0; j < kGroup<scalar>; ++j) {
        const int64_t w = first + j;
        if (w == last) break;
        const scalar* corner = images + in.offset(row) + w * kSide * channels + c;
        const int64_t at_out = (row * in.in_row() + w) * channels + c;
        Bits<T> packs[kPositions], result{}, added{};
        if constexpr (kResidual) added = get<kFill>(residual + at_out, channels);
        for (int k = 0; k < kPositions; ++k) {
          packs[k] = get<kFill>(corner + k / kSide * line + k % kSide * channels, channels);
        }
        for (int p = 0; p < kParts; ++p) {
          Bits<T> values[kPositions];
          for (int k = 0; k < kPositions; ++k) {
            Vector<T> value = part_of<scalar>(packs[k], p) * alpha[p] + beta[p];
            if constexpr (kResidual) value = as_stored<scalar>(value) + part_of<scalar>(added, p);
            values[k] = reinterpret_cast<Bits<T>>(value);
            if constexpr (kResidual) values[k] = value == value ? values[k] : nan;
          }
          Bits<T> highest = values[0] > floor[p] ? values[0] : floor[p];
          for (int k = 1; k < kPositions; ++k) highest = values[k] > highest ? values[k] : highest;
          highest = highest < nan ? highest : nan;
          Bits<T> least = highest;  // of those that become the same number
          if constexpr (std::is_same_v<scalar, BFloat16>) {
            highest = rounded(highest) & kUpperHalf;
            least = highest - 0x8000 + ((highest >> 16) & 1);
          }
          Bits<T> at = Bits<T>{} + (kPositions - 1);
          for (int k = kPositions - 2; k >= 0; --k) at = values[k] >= least ? Bits<T>{} + k : at;
          at = highest > 0 ? at : Bits<T>{} + kNowhere;
          set_part<scalar>(result, p, highest);
          place |= at << shift_of<scalar>(j, p);
        }
        put<kFill>(result, out + at_out, channels);
      }
      std::memcpy(places + in.offset_of_places<scalar>(row, first, pack), &place, sizeof(place));
    });
  });
}

// Sums of the gradient, and of it times what the image is above its mean.
template <int kSide, Fill kFill, typename scalar>
TFKD_FOR_EVERY_VECTOR_WIDTH void add_gradient(const Windows& in, int64_t begin, int64_t end, const scalar* gradient,
                                              const uint8_t* places, const scalar* images,
                                              const Computed<scalar>* means, Computed<scalar>* sums,
                                              Computed<scalar>* products) {
  using T = Computed<scalar>;
  constexpr int kParts = kPackParts<scalar>, kPositions = kSide * kSide;
  const int64_t channels = in.channels, line = in.width * channels;
  for_groups<scalar>(in, begin, end, [&](int64_t row, int64_t first, int64_t last) __attribute__((always_inline)) {
    for_packs<kFill, scalar>(channels, VISIT {
      Vector<T> mean[kParts], sum[kParts], product[kParts];
      for (int p = 0; p < kParts; ++p) {
        const int64_t lane = pack * kPackChannels<scalar> + p * kLanes<scalar>;
        mean[p] = load(means + lane), sum[p] = load(sums + lane), product[p] = load(products + lane);
      }
      Bits<T> place;
      std::memcpy(&place, places + in.offset_of_places<scalar>(row, first, pack), sizeof(place));
#pragma GCC unroll 4
      for (int64_t j = 0; j < kGroup<scalar>; ++j) {
        const int64_t w = first + j;
        if (w == last) break;
        const scalar* corner = images + in.offset(row) + w * kSide * channels + c;
        const Bits<T> upstream = get<kFill>(gradient + (row * in.in_row() + w) * channels + c, channels);
        Bits<T> packs[kPositions];
        for (int k = 0; k < kPositions; ++k) {
          packs[k] = get<kFill>(corner + k / kSide * line + k % kSide * channels, channels);
        }
        for (int p = 0; p < kParts; ++p) {
          const Bits<T> at = place >> shift_of<scalar>(j, p) & 15;
          const Vector<T> flowing = at == kNowhere ? Vector<T>{} : part_of<scalar>(upstream, p);
          Vector<T> value = part_of<scalar>(packs[0], p);
          for (int k = 1; k < kPositions; ++k) value = at == k ? part_of<scalar>(packs[k], p) : value;
          sum[p] += flowing;
          product[p] += flowing * (value - mean[p]);
        }
      }
      for (int p = 0; p < kParts; ++p) {
        const int64_t lane = pack * kPackChannels<scalar> + p * kLanes<scalar>;
        store<T>(sum[p], sums + lane), store<T>(product[p], products + lane);
      }
    });
  });
}

// By channel, the gradient of a value is gradient * scale + shift - (value - mean) * slope.
template <typename T>
struct Linear {
  const T *mean, *scale, *shift, *slope;
};

// Of `positions` that belong to no window.
template <Fill kFill, typename scalar>
TFKD_INLINE void gradient_without_window(const scalar* images, int64_t positions, int64_t channels,
                                         const Linear<Computed<scalar>>& linear, scalar* out) {
  using T = Computed<scalar>;
  for_packs<kFill, scalar>(channels, VISIT {
    for (int64_t i = c; i < positions * channels; i += channels) {
      const Bits<T> values = get<kFill>(images + i, channels);
      Bits<T> result{};
      for (int p = 0; p < kPackParts<scalar>; ++p) {
        const int64_t lane = pack * kPackChannels<scalar> + p * kLanes<scalar>;
        const Vector<T> above = part_of<scalar>(values, p) - load(linear.mean + lane);
        set_part<scalar>(result, p, load(linear.shift + lane) - above * load(linear.slope + lane));
      }
      put<kFill>(result, out + i, channels);
    }
  });
}

// The gradient of a residual is that which the ReLU lets through.
template <int kSide, Fill kFill, bool kResidual, typename scalar>
TFKD_FOR_EVERY_VECTOR_WIDTH void write_gradient(const Windows& in, int64_t begin, int64_t end, const scalar* gradient,
                                                const uint8_t* places, const scalar* images,
                                                const Linear<Computed<scalar>>& linear, scalar* out,
                                                scalar* of_residual) {
  static_assert(kSide == 1 || !kResidual);
  using T = Computed<scalar>;
  constexpr int kParts = kPackParts<scalar>, kPositions = kSide * kSide;
  const int64_t channels = in.channels, line = in.width * channels;
  for_groups<scalar>(in, begin, end, [&](int64_t row, int64_t first, int64_t last) __attribute__((always_inline)) {
    for_packs<kFill, scalar>(channels, VISIT {
      Vector<T> mean[kParts], scale[kParts], shift[kParts], slope[kParts];
      for (int p = 0; p < kParts; ++p) {
        const int64_t lane = pack * kPackChannels<scalar> + p * kLanes<scalar>;
        mean[p] = load(linear.mean + lane), scale[p] = load(linear.scale + lane);
        shift[p] = load(linear.shift + lane), slope[p] = load(linear.slope + lane);
      }
      Bits<T> place;
      std::memcpy(&place, places + in.offset_of_places<scalar>(row, first, pack), sizeof(place));
#pragma GCC unroll 4
      for (int64_t j = 0; j < kGroup<scalar>; ++j) {
        const int64_t w = first + j;
        if (w == last) break;
        const int64_t corner = in.offset(row) + w * kSide * channels + c;
        const int64_t at_gradient = (row * in.in_row() + w) * channels + c;
        const Bits<T> upstream = get<kFill>(gradient + at_gradient, channels);
        Bits<T> results[kPositions]{}, through{};
        for (int p = 0; p < kParts; ++p) {
          const Bits<T> at = place >> shift_of<scalar>(j, p) & 15;
          if constexpr (kResidual) {
            const auto bits = reinterpret_cast<Bits<T>>(part_of<scalar>(upstream, p));
            set_part<scalar>(through, p, at == kNowhere ? Bits<T>{} : bits);
          }
          const Vector<T> flowing = part_of<scalar>(upstream, p) * scale[p] + shift[p];
          for (int k = 0; k < kPositions; ++k) {
            const Bits<T> values = get<kFill>(images + corner + k / kSide * line + k % kSide * channels, channels);
            const Vector<T> above = part_of<scalar>(values, p) - mean[p];
            set_part<scalar>(results[k], p, (at == k ? flowing : shift[p]) - above * slope[p]);
          }
        }
        for (int k = 0; k < kPositions; ++k) {
          put<kFill>(results[k], out + corner + k / kSide * line + k % kSide * channels, channels);
        }
        if constexpr (kResidual) put<kFill>(through, of_residual + at_gradient, channels);
      }
    });
  });
  if constexpr (kSide == 1) return;
  const auto left_out = [&](int64_t from, int64_t count) __attribute__((always_inline)) {
    gradient_without_window<kFill>(images + from, count, channels, linear, out + from);
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

#undef VISIT

// A value becomes value * alpha + beta.
template <typename T>
TFKD_FOR_EVERY_VECTOR_WIDTH void linear_terms(int64_t count, const T* weight, const T* bias, const T* mean,
                                              const T* invstd, T* alpha, T* beta) {
  for (int64_t i = 0; i < count; ++i) {
    alpha[i] = invstd[i] * weight[i];
    beta[i] = bias[i] - mean[i] * alpha[i];
  }
}

Windows windows_of(const Tensor& images, bool pool) {
  const int64_t batch = images.size(0), channels = images.size(1), height = images.size(2), width = images.size(3);
  return pool ? Windows{2, batch, height, width, channels} : Windows{1, batch, 1, height * width, channels};
}

// Uninitialised and channels-last, of the batch, the channels and the type of `images`.
Tensor new_images(const Tensor& images, int64_t height, int64_t width) {
  constexpr size_t kLarge = 4 << 20;  // bytes; in a training step malloc returns such memory to the system every time
  const int64_t channels = images.size(1);
  const std::vector<int64_t> shape{images.size(0), channels, height, width};
  const std::vector<int64_t> strides = channels_last(channels, height, width);
  const size_t bytes = images.size(0) * channels * height * width * images.element_size();
  if (bytes >= kLarge) return new_in_kept_memory(images, shape, strides, images.scalar_type(), bytes);
  return new_strided(images, shape, strides, images.scalar_type());
}

// From numbers of the channels to numbers in the order of the packs, and back. Where several positions are taken for
// one, packs hold each channel several times.
template <typename scalar>
class Order {
 public:
  using T = Computed<scalar>;
  Order(int64_t channels, int64_t channels_of_position)
      : channels_(channels), own_(channels_of_position), channel_(channels_of_packs<scalar>(channels_of_position)) {}

  int64_t size() const { return channel_.size(); }

  // 0 where a pack holds no channel.
  std::vector<T> packed(const std::vector<T>& of_channels) const {
    std::vector<T> numbers(size());
    for (int64_t i = 0; i < size(); ++i) {
      if (channel_[i] >= 0) numbers[i] = of_channels[channel_[i] % channels_];
    }
    return numbers;
  }

  // The sum of each channel.
  template <typename Total>
  std::vector<Total> unpacked(const Total* sums) const {
    std::vector<Total> of_position(own_);
    for (int64_t i = 0; i < size(); ++i) {
      if (channel_[i] >= 0) of_position[channel_[i]] = sums[i];
    }
    std::vector<Total> of_channels(channels_);
    for (int64_t i = 0; i < own_; ++i) of_channels[i % channels_] += of_position[i];
    return of_channels;
  }

 private:
  int64_t channels_, own_;
  std::vector<int64_t> channel_;
};

template <typename T>
std::vector<T> numbers_of(const Tensor& tensor) {
  const auto* from = tensor.const_data_ptr<T>();
  const int64_t channels = tensor.size(0), stride = tensor.stride(0);  // each question calls into torch
  std::vector<T> numbers(channels);
  for (int64_t c = 0; c < channels; ++c) numbers[c] = from[c * stride];
  return numbers;
}

constexpr int64_t kElementsPerTask = 8192;  // a few us of work, above the cost of waking a thread

// Calls add(begin, end, sums) for a part of the `rows` for each thread, as torch divides them, and adds up the parts'
// `count` sums, which begin at 0. For one number of threads the result is always the same.
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

// Calls f with what packs hold of a position, as a constant.
template <typename scalar, typename Function>
void for_fill_of(int64_t channels, Function f) {
  switch (fill_of<scalar>(channels)) {
    case Fill::kWhole:
      return f(std::integral_constant<Fill, Fill::kWhole>());
    case Fill::kHalves:
      return f(std::integral_constant<Fill, Fill::kHalves>());
    case Fill::kQuarters:
      return f(std::integral_constant<Fill, Fill::kQuarters>());
    case Fill::kPart:
      return f(std::integral_constant<Fill, Fill::kPart>());
  }
}

template <typename scalar>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                   Tensor& running_mean, Tensor& running_var, double momentum,
                                                   double eps, bool pool, const std::optional<Tensor>& residual) {
  using T = Computed<scalar>;
  const Windows in = windows_of(x, pool).with_whole_packs<scalar>();
  const int64_t channels = x.size(1), positions = x.numel() / channels;
  const int64_t divisor = std::max<int64_t>(1, positions);  // of no images mean and variance are 0
  const auto* images = static_cast<const scalar*>(x.const_data_ptr());

  // The parts' sums are added up as torch does it: in double, but those of bfloat16 in float.
  using Total = std::conditional_t<std::is_same_v<scalar, BFloat16>, float, double>;
  std::vector<T> mean(channels), invstd(channels);
  std::vector<Total> squares;
  for_fill_of<scalar>(channels, [&](auto fill) {
    const Order<scalar> order(channels, channels);
    const int64_t count = order.size();
    const auto sums = sums_of_parts<Total, T>(positions, x.numel(), count, [&](int64_t begin, int64_t end, T* out) {
      add_values<fill>(images + begin * channels, end - begin, channels, out);
    });
    const auto totals = order.unpacked(sums.data());
    for (int64_t c = 0; c < channels; ++c) mean[c] = static_cast<T>(totals[c] / divisor);
    const auto means = order.packed(mean);
    const auto parts = sums_of_parts<Total, T>(positions, x.numel(), count, [&](int64_t begin, int64_t end, T* out) {
      add_squares<fill>(images + begin * channels, end - begin, channels, means.data(), out);
    });
    squares = order.unpacked(parts.data());
  });

  Tensor mean_out = new_contiguous(x, {channels}, weight.scalar_type());
  Tensor invstd_out = new_contiguous(x, {channels}, weight.scalar_type());
  T *means = mean_out.mutable_data_ptr<T>(), *invstds = invstd_out.mutable_data_ptr<T>();
  T *running_means = running_mean.mutable_data_ptr<T>(), *running_vars = running_var.mutable_data_ptr<T>();
  const int64_t mean_stride = running_mean.stride(0), var_stride = running_var.stride(0);
  const T new_share = static_cast<T>(momentum), old_share = 1 - new_share;
  for (int64_t c = 0; c < channels; ++c) {
    const T square = static_cast<T>(squares[c]);
    invstd[c] = static_cast<T>(1.0 / std::sqrt(square / divisor + eps));
    means[c] = mean[c], invstds[c] = invstd[c];
    if (positions == 0) continue;
    T &old_mean = running_means[c * mean_stride], &old_var = running_vars[c * var_stride];
    old_mean = new_share * means[c] + old_share * old_mean;
    old_var = static_cast<T>(new_share * static_cast<Total>(square / (positions - 1)) + old_share * old_var);
  }

  std::vector<T> alpha(channels), beta(channels), lowest(channels);
  linear_terms(channels, numbers_of<T>(weight).data(), numbers_of<T>(bias).data(), mean.data(), invstd.data(),
               alpha.data(), beta.data());
  for (int64_t c = 0; c < channels; ++c) {
    lowest[c] = std::isfinite(alpha[c]) && !std::isnan(beta[c]) ? T(0) : kNaN<T>;
  }
  const Order<scalar> order(channels, in.channels);
  alpha = order.packed(alpha), beta = order.packed(beta), lowest = order.packed(lowest);
  Tensor maxima = new_images(x, x.size(2) / in.side, x.size(3) / in.side);
  Tensor places = new_contiguous(x, in.shape_of_places<scalar>(), ScalarType::Byte);
  const auto* added = residual ? static_cast<const scalar*>(residual->const_data_ptr()) : nullptr;
  auto* out = static_cast<scalar*>(maxima.mutable_data_ptr());
  auto* place = places.mutable_data_ptr<uint8_t>();
  for_fill_of<scalar>(in.channels, [&](auto fill) {
    const auto write = pool       ? write_maxima<2, fill, false, scalar>
                       : residual ? write_maxima<1, fill, true, scalar>
                                  : write_maxima<1, fill, false, scalar>;
    for_rows(in, [&](int64_t begin, int64_t end) {
      write(in, begin, end, images, added, alpha.data(), beta.data(), lowest.data(), out, place);
    });
  });
  return {maxima, places, mean_out, invstd_out};
}

// The last of the results, the gradient of the residual, is empty if there is none.
template <typename scalar>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& upstream, const Tensor& x, const Tensor& weight,
                                                    const Tensor& places, const Tensor& means, const Tensor& invstds,
                                                    bool pool, bool residual) {
  using T = Computed<scalar>;
  const Windows in = windows_of(x, pool).with_whole_packs<scalar>();
  const int64_t channels = x.size(1), positions = x.numel() / channels;
  STD_TORCH_CHECK(has_shape(places, in.shape_of_places<scalar>()), "places does not fit x");
  const auto* images = static_cast<const scalar*>(x.const_data_ptr());
  const auto* gradient = static_cast<const scalar*>(upstream.const_data_ptr());
  const auto* place = places.const_data_ptr<uint8_t>();

  const Order<scalar> order(channels, in.channels);
  const int64_t count = order.size();
  const std::vector<T> mean = order.packed(numbers_of<T>(means));
  std::vector<double> sums;
  for_fill_of<scalar>(in.channels, [&](auto fill) {
    const auto add = in.side == 1 ? add_gradient<1, fill, scalar> : add_gradient<2, fill, scalar>;
    sums = sums_of_parts<double, T>(in.rows(), x.numel(), 2 * count, [&](int64_t begin, int64_t end, T* out) {
      add(in, begin, end, gradient, place, images, mean.data(), out, out + count);
    });
  });

  const auto sum = order.unpacked(sums.data()), products = order.unpacked(sums.data() + count);
  const std::vector<T> weights = numbers_of<T>(weight), invstd = numbers_of<T>(invstds);
  Tensor of_weight = new_contiguous(x, {channels}, weight.scalar_type());
  Tensor of_bias = new_contiguous(x, {channels}, weight.scalar_type());
  T *weight_gradient = of_weight.mutable_data_ptr<T>(), *bias_gradient = of_bias.mutable_data_ptr<T>();
  std::vector<T> scale(channels), shift(channels), slope(channels);
  for (int64_t c = 0; c < channels; ++c) {
    const double product = products[c] * invstd[c], of_channel = weights[c];
    const double factor = std::isnan(of_channel) ? kNaN<double> : of_channel * invstd[c];  // that NaN is safe to round
    weight_gradient[c] = static_cast<T>(product);
    bias_gradient[c] = static_cast<T>(sum[c]);
    scale[c] = static_cast<T>(factor);
    shift[c] = static_cast<T>(-sum[c] / positions * factor);
    slope[c] = static_cast<T>(product * invstd[c] / positions * factor);
  }
  scale = order.packed(scale), shift = order.packed(shift), slope = order.packed(slope);

  Tensor of_x = new_images(x, x.size(2), x.size(3));
  Tensor of_residual = residual ? new_images(x, x.size(2), x.size(3)) : new_contiguous(x, {0}, x.scalar_type());
  auto* out = static_cast<scalar*>(of_x.mutable_data_ptr());
  auto* through = static_cast<scalar*>(of_residual.mutable_data_ptr());
  const Linear<T> linear{mean.data(), scale.data(), shift.data(), slope.data()};
  for_fill_of<scalar>(in.channels, [&](auto fill) {
    const auto write = pool       ? write_gradient<2, fill, false, scalar>
                       : residual ? write_gradient<1, fill, true, scalar>
                                  : write_gradient<1, fill, false, scalar>;
    for_rows(in, [&](int64_t begin, int64_t end) {
      write(in, begin, end, gradient, place, images, linear, out, through);
    });
  });
  return {of_x, of_weight, of_bias, of_residual};
}

// Calls f(scalar{}) with the type of the images.
template <typename Function>
auto for_type_of(const Tensor& images, Function f) {
  switch (images.scalar_type()) {
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    default:
      throw std::runtime_error("x must be bfloat16, float32 or float64");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_relu_pool_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                              Tensor running_mean, Tensor running_var, double momentum,
                                                              double eps, bool pool, std::optional<Tensor> residual) {
  check_forward(x, weight, bias, running_mean, running_var, pool, residual);
  return for_type_of(x, [&](auto scalar) {
    return forward<decltype(scalar)>(x, weight, bias, running_mean, running_var, momentum, eps, pool, residual);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_relu_pool_backward_cpu(const Tensor& gradient, const Tensor& x,
                                                                       const Tensor& weight, const Tensor& places,
                                                                       const Tensor& mean, const Tensor& invstd,
                                                                       bool pool, bool residual) {
  check_backward(gradient, x, weight, places, mean, invstd, pool, residual);
  return for_type_of(x, [&](auto scalar) {
    return backward<decltype(scalar)>(gradient, x, weight, places, mean, invstd, pool, residual);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tfkd_fast, CPU, library) {
  library.impl("norm_relu_pool", TORCH_BOX(&norm_relu_pool_cpu));
  library.impl("norm_relu_pool_backward", TORCH_BOX(&norm_relu_pool_backward_cpu));
}

}  // namespace tfkd_fast

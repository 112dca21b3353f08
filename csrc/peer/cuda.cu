// The losses of a population whose candidates teach each other, and their gradients, on CUDA. The definition is
// `_reference` in tfkd_fast/ops/peer.py.
//
// Moves P*B*C logits in and P*B*C gradients out. A block visits a sample for all candidates, twice: for the sum of
// their predictions, and for loss and gradient. The second visit reads the caches. Only the sums over the candidates
// exist, in shared memory. Rows of more than 1,024 classes and float64 are read once more before that, for their
// softmax's sums.

#include "../common/loss.cuh"

#include <tuple>

namespace tfkd_fast {
namespace {

struct Peers {
  int candidates;
  bool include_self;
  int team;  // rows that work on one sample at a time

  // The target's probability of a class: the mean over the peers, from the sum over all candidates.
  template <typename T>
  __device__ __forceinline__ T mean(T total, T own) const {
    // What rounding leaves of a sum without its parts may be negative.
    if (include_self) return total / static_cast<T>(candidates);
    const T others = total - own;
    return (others < T(0) ? T(0) : others) / static_cast<T>(candidates - 1);
  }
};

template <typename scalar, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    peers_in_registers(const LossArguments<scalar> in, const Peers peers) {
  constexpr int kPositions = S::kLanes * S::kItems;
  constexpr int kStride = kPositions + S::kLanes;  // so that the rows of a warp begin in different banks
  __shared__ float totals[S::kRows * kStride];
  const int lane = threadIdx.x % S::kLanes, slot = threadIdx.x / S::kLanes;
  const int samples = S::kRows / peers.team, member = slot % peers.team, of_block = slot / peers.team;
  const int step = static_cast<int>(gridDim.x) * samples, batch = static_cast<int>(in.batch);

  float values[S::kItems], q[S::kItems];
  const auto load = [&](int64_t candidate, int sample, bool present) {
    RowPart<scalar, S> part;
    part.fill(kNoLogits<scalar>);
    if (present) part.load(in.logits + in.row(candidate, sample), in.classes, in.vector_bits, lane);
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) values[i] = part.get(i);
  };
  // Writes the exponentials of `values` at the temperature to `terms`, which may be `values`; returns what makes their
  // sum 1.
  const auto exponentiate = [&](float temperature, float (&terms)[S::kItems]) {
    const Exponent<float> softened(highest_of<S>(values), temperature);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) {
      terms[i] = power_of_2(softened(values[i]));
      sum += terms[i];
    }
    return __fdividef(1.0f, over_lanes<S::kLanes>(sum, Plus()));
  };

  for (int begin = blockIdx.x * samples; begin < batch; begin += step) {
    const int sample = begin + of_block;
    const bool with_sample = of_block < samples && sample < batch;
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) q[i] = 0.0f;
    for (int first = 0; first < peers.candidates; first += peers.team) {
      const int candidate = first + member;
      const bool present = with_sample && candidate < peers.candidates;
      load(candidate, sample, present);
      const float normaliser = exponentiate(in.terms(0).temperature, values);
#pragma unroll
      for (int i = 0; i < S::kItems; ++i) q[i] += present ? values[i] * normaliser : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < S::kItems; ++i) totals[slot * kStride + i * S::kLanes + lane] = q[i];
    __syncthreads();
    for (int k = threadIdx.x; k < samples * kPositions; k += S::kThreads) {
      float* column = totals + k / kPositions * peers.team * kStride + k % kPositions;
      float total = 0.0f;
      for (int i = 0; i < peers.team; ++i) total += column[i * kStride];
      column[0] = total;
    }
    __syncthreads();

    for (int first = 0; first < peers.candidates; first += peers.team) {
      const int candidate = first + member;
      const bool present = with_sample && candidate < peers.candidates;
      load(candidate, sample, present);
      const float* total = totals + (present ? of_block : 0) * peers.team * kStride + lane;
      const Terms<float> terms = in.terms(present ? candidate : 0);
      const float normaliser = exponentiate(terms.temperature, q);
#pragma unroll
      for (int i = 0; i < S::kItems; ++i) q[i] = peers.mean(total[i * S::kLanes], q[i] * normaliser);
      const int64_t label = present ? in.labels[candidate * in.labels_of_candidate + sample] : 0;
      check_label(label, in.classes);
      const int64_t row = in.row(candidate, sample);
      const RowLabel row_label{item_of<S>(static_cast<int>(label), lane, in.vector_bits),
                               present ? static_cast<float>(in.logits[row + label]) : 0.0f};
      const Outcome<float> outcome =
          row_loss<true, false, S>(values, q, 0.0f, row_label, terms, in.gradient_scale, [](int, float) {});
      if (!present) continue;  // nothing is exchanged below
      RowPart<scalar, S> gradient;
      gradient.set(values);
      gradient.store(in.gradient + row, in.classes, in.vector_bits, lane);
      if (lane == 0) {
        const int64_t place = candidate * in.batch + sample;
        if (in.sample_loss != nullptr) in.sample_loss[place] = outcome.loss;
        if (in.partial != nullptr) in.partial[place] = outcome.loss;
      }
    }
    __syncthreads();  // `totals` is free again
  }
  if (gridDim.x == 1 && in.loss != nullptr) {
    for (int p = 0; p < peers.candidates; ++p) add_partial_sums_of<false>(in, p);
  }
}

// Long rows.

// What is known of a row when the target is formed. `share` is what an exponential adds to its softmax.
template <typename T>
struct Known {
  T shift, share, log_sum;
  T plain_shift, plain_share;  // at temperature 1
  T hard_loss;                 // with its weight
};

// One block a row.
template <typename scalar, int kVector>
__global__ void __launch_bounds__(128) know_rows(const LossArguments<scalar> in, Known<Computed<scalar>>* known) {
  using T = Computed<scalar>;
  __shared__ T scratch[kWarp];
  const int64_t candidate = blockIdx.x / in.batch, sample = blockIdx.x % in.batch;
  const Terms<T> terms = in.terms(candidate);
  const scalar* row = in.logits + in.row(candidate, sample);
  const int64_t label = in.labels[candidate * in.labels_of_candidate + sample];
  check_label(label, in.classes);
  OnlineSoftmax<T> online{terms.temperature, true};
  for_vectors<kVector, 4>(row, in.classes,
                          [&](int, const AlignedVector<scalar, kVector>& logits) { online.add(logits); });
  online.over_block(scratch);
  if (threadIdx.x != 0) return;
  const Exponent<T> softened(online.highest, terms.temperature), plain(online.highest, T(1));
  const T cross_entropy = kLn2<T> * (log_2(online.plain_sum) - plain(static_cast<T>(row[label])));
  known[blockIdx.x] = {softened.shift, T(1) / online.sum,       log_2(online.sum),
                       plain.shift,    T(1) / online.plain_sum, weighted(terms.hard_weight, cross_entropy)};
}

constexpr int kThreads = 128, kVectors = 4;  // a block, a thread

// One block a sample and kThreads * kVectors * kVector classes.
template <typename scalar, int kVector>
__global__ void __launch_bounds__(kThreads) peers_in_blocks(const LossArguments<scalar> in, const Peers peers,
                                                            const Known<Computed<scalar>>* known, int tiles) {
  using T = Computed<scalar>;
  const int64_t sample = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles, first = tile * kVectors * kThreads + threadIdx.x, count = in.classes / kVector;
  const int warp = threadIdx.x / kWarp, warps = tiles * (kThreads / kWarp);

  // Calls f(k, c, logits) for the thread's vectors of a candidate's row.
  const auto for_row = [&](int candidate, auto f) {
    const auto* row = reinterpret_cast<const AlignedVector<scalar, kVector>*>(in.logits + in.row(candidate, sample));
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int at = first + k * kThreads;
      if (at < count) f(k, at * kVector, row[at]);
    }
  };

  const T scale = kLog2E<T> / in.terms(0).temperature;
  T totals[kVectors][kVector] = {};
  for (int p = 0; p < peers.candidates; ++p) {
    const Known<T> row = known[p * in.batch + sample];
    for_row(p, [&](int k, int, const AlignedVector<scalar, kVector>& logits) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        totals[k][j] += row.share * power_of_2(multiply_add(static_cast<T>(logits.at[j]), scale, row.shift));
      }
    });
  }
  for (int p = 0; p < peers.candidates; ++p) {
    const Known<T> row = known[p * in.batch + sample];
    const Terms<T> terms = in.terms(p);
    const int64_t label = in.labels[p * in.labels_of_candidate + sample];
    const T soft_factor = terms.soft_weight * terms.temperature * in.gradient_scale;
    const T hard_factor = terms.hard_weight * in.gradient_scale;
    auto* gradient = reinterpret_cast<AlignedVector<scalar, kVector>*>(in.gradient + in.row(p, sample));
    T divergence = 0;
    for_row(p, [&](int k, int c, const AlignedVector<scalar, kVector>& logits) {
      AlignedVector<scalar, kVector> out;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const T logit = static_cast<T>(logits.at[j]), x = multiply_add(logit, scale, row.shift);
        const T own = row.share * power_of_2(x);
        const T q = peers.mean(totals[k][j], own);
        divergence += q == T(0) ? T(0) : q * (quick_log_2(q) - (x - row.log_sum));
        T slope = soft_factor * (own - q);
        if (hard_factor != T(0)) {
          const T plain = row.plain_share * power_of_2(multiply_add(logit, kLog2E<T>, row.plain_shift));
          slope += hard_factor * (plain - (c + j == label ? T(1) : T(0)));
        }
        out.at[j] = static_cast<scalar>(slope);
      }
      gradient[c / kVector] = out;
    });
    divergence = over_lanes<kWarp>(divergence, Plus());
    if (threadIdx.x % kWarp != 0) continue;
    const T soft_loss = weighted(terms.soft_weight, terms.temperature * terms.temperature * kLn2<T> * divergence);
    in.partial[(p * in.batch + sample) * warps + tile * (kThreads / kWarp) + warp] =
        soft_loss + (tile == 0 && warp == 0 ? row.hard_loss : T(0));
  }
}

template <typename scalar>
LossResults run_peers(const LossCall& call, bool include_self) {
  using T = Computed<scalar>;
  const Axes& axes = call.axes;
  LossResults out;
  LossArguments<scalar> in = prepared<scalar>(call, out);
  STD_TORCH_CHECK(axes.candidates <= std::numeric_limits<int>::max() / 2, "logits have too many candidates");
  Peers peers{static_cast<int>(axes.candidates), include_self, 0};

  Tensor partial;
  const auto partial_of_row = [&](int64_t count) {
    partial = new_contiguous(call.logits, {axes.candidates, axes.batch, count}, ScalarType::Double);
    in.partial = partial.mutable_data_ptr<double>();
    in.blocks = axes.batch * count;
  };
  const auto add_up = [&](int64_t sums) {
    launch(&add_partial_sums<scalar, false>, dim3(static_cast<unsigned>(sums)), dim3(128), 0, call.logits, in);
  };

  const bool done = with_shape<scalar, 2>(axes.classes, [&](auto shape) {
    using S = decltype(shape);
    if (in.loss != nullptr) partial_of_row(1);
    const int rounds = (peers.candidates + S::kRows - 1) / S::kRows;
    peers.team = (peers.candidates + rounds - 1) / rounds;
    const Axes one{false, 1, axes.batch, axes.classes};
    const int blocks = blocks_of_candidate(call.logits, one, S::kRows / peers.team, S::kBlocks);
    launch(&peers_in_registers<scalar, S>, dim3(blocks), dim3(S::kThreads), 0, call.logits, in, peers);
    if (blocks > 1 && in.loss != nullptr) add_up(axes.candidates);
  });
  if (done) return out;

  auto* know = &know_rows<scalar, 1>;
  auto* kernel = &peers_in_blocks<scalar, 1>;
  int64_t classes_of_block = kThreads * kVectors;
  if constexpr (!std::is_same_v<scalar, double>) {
    if (in.vector_bits == 2) {
      know = &know_rows<scalar, 4>;
      kernel = &peers_in_blocks<scalar, 4>;
      classes_of_block *= 4;
    }
  }
  const int64_t tiles = (axes.classes + classes_of_block - 1) / classes_of_block;
  constexpr int64_t kMostBlocks = std::numeric_limits<int>::max();
  STD_TORCH_CHECK(axes.rows() <= kMostBlocks && axes.batch * tiles <= kMostBlocks, "logits have too many rows");
  partial_of_row(tiles * (kThreads / kWarp));
  if (axes.rows() > 0) {
    Tensor scratch = new_contiguous(call.logits, {axes.rows(), sizeof(Known<T>) / sizeof(T)}, loss_type(call.logits));
    auto* known = reinterpret_cast<Known<T>*>(scratch.mutable_data_ptr<T>());
    launch(know, dim3(static_cast<unsigned>(axes.rows())), dim3(kThreads), 0, call.logits, in, known);
    launch(kernel, dim3(static_cast<unsigned>(axes.batch * tiles)), dim3(kThreads), 0, call.logits, in, peers, known,
           static_cast<int>(tiles));
  }
  if (in.loss != nullptr) {
    add_up(axes.candidates);
  } else if (axes.rows() > 0) {  // each row is a sum of its own
    in.loss = in.sample_loss;
    in.blocks /= axes.batch;
    add_up(axes.rows());
  }
  return out;
}

std::tuple<Tensor, Tensor> loss_cuda(const Tensor& logits_, const Tensor& labels, const Tensor& temperature,
                                     const Tensor& alpha, bool include_self, const std::string& reduction) {
  const Axes axes = axes_of(logits_);
  const ScalarType type = loss_type(logits_);
  STD_TORCH_CHECK(axes.with_candidates && axes.candidates >= (include_self ? 1 : 2), "logits must be (P,B,C)");
  check_shape("labels", labels, ScalarType::Long, axes, {axes.batch});
  STD_TORCH_CHECK(temperature.scalar_type() == type && temperature.dim() == 0, "temperature must be ()");
  check_shape("alpha", alpha, type, axes, {});
  check_reduction(reduction);
  const Tensor logits = as_contiguous(logits_);
  const LossCall call{.logits = logits,
                      .labels = as_contiguous(labels),
                      .temperature = temperature,
                      .weight = alpha,
                      .weight_is_hard = false,
                      .reduction = reduction,
                      .axes = axes,
                      .vector_bits = vector_bits(axes.classes, {logits})};
  const LossResults out = for_scalar_of(logits.scalar_type(), "logits",
                                        [&](auto scalar) { return run_peers<decltype(scalar)>(call, include_self); });
  return {out.loss, out.gradient};
}

}  // namespace

TFKD_CUDA_LIBRARY(library) { library.impl("peer_loss", TORCH_BOX(&loss_cuda)); }

}  // namespace tfkd_fast

// The host's side of a loss: its checks, its results and the launch of its kernels.
#pragma once

#include "blocks.cuh"
#include "registers.cuh"

#include <initializer_list>
#include <optional>
#include <string>

namespace tfkd_fast {

// How many elements of the logits, the first of the tensors, one load of at most 16 bytes may fetch: log2 of it. They
// divide the row, and all tensors begin at a multiple of them: a view may begin anywhere.
inline int vector_bits(int64_t classes, std::initializer_list<Tensor> tensors) {
  int bits = tensors.begin()->element_size() == 2 ? 3 : 2;
  while (classes % (int64_t{1} << bits) != 0) --bits;
  for (const Tensor& tensor : tensors) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    while (address % (tensor.element_size() << bits) != 0) --bits;
  }
  return bits;
}

// Blocks a candidate: as many as run at once, so that few partial sums are left; one where it needs no more than a few
// rounds, because a second kernel takes longer than those.
inline int blocks_of_candidate(const Tensor& logits, const Axes& axes, int rows_of_block, int resident) {
  constexpr int64_t kFewRounds = 4;
  const int64_t rounds = (axes.batch + rows_of_block - 1) / rows_of_block;
  const int64_t room = static_cast<int64_t>(multiprocessors(logits)) * resident / axes.candidates;
  return rounds <= kFewRounds ? 1 : static_cast<int>(std::max<int64_t>(1, std::min(room, rounds)));
}

struct LossResults {
  Tensor loss, gradient, correct, true_probability, entropy;  // the last three with statistics
};

// What the operators hand over. The tensors are contiguous, but for temperature, weight and similarity.
struct LossCall {
  Tensor logits;
  std::optional<Tensor> labels, temperature, weight;
  bool weight_is_hard;
  bool with_stats = false;
  std::optional<Tensor> similarity = std::nullopt;
  std::string reduction;
  Axes axes;
  int vector_bits;
};

// New tensors for the results, and what the kernels are told.
template <typename scalar>
LossArguments<scalar> prepared(const LossCall& call, LossResults& out) {
  using T = Computed<scalar>;
  const Axes& axes = call.axes;
  constexpr int64_t kMost = int64_t{1} << 30;  // classes and samples are counted in int, with room for a step
  STD_TORCH_CHECK(axes.classes <= kMost && axes.batch <= kMost, "logits have more than 2^30 classes or samples");
  STD_TORCH_CHECK(axes.candidates > 0, "logits must have a candidate");
  out.gradient = new_contiguous(call.logits, axes.shape({axes.batch, axes.classes}), call.logits.scalar_type());
  out.loss = empty_loss(call.logits, axes, call.reduction);

  LossArguments<scalar> in{};
  in.logits = static_cast<const scalar*>(call.logits.const_data_ptr());
  in.gradient = static_cast<scalar*>(out.gradient.mutable_data_ptr());
  if (call.labels) {
    check_device("labels", *call.labels, "the logits", call.logits);
    in.labels = call.labels->const_data_ptr<int64_t>();
    in.labels_of_candidate = has_candidates(*call.labels, 1) ? axes.batch : 0;
  }
  const auto setting = [&](const char* name, const std::optional<Tensor>& tensor, const T*& values, int64_t& stride) {
    if (!tensor) return;
    check_device(name, *tensor, "the logits", call.logits);
    values = tensor->const_data_ptr<T>();
    stride = tensor->dim() == 0 ? 0 : tensor->stride(0);
  };
  setting("temperature", call.temperature, in.temperature, in.temperature_of_candidate);
  setting(call.weight_is_hard ? "hard_weight" : "alpha", call.weight, in.weight, in.weight_of_candidate);
  in.weight_is_hard = call.weight_is_hard;
  const bool mean = call.reduction == "mean";
  in.gradient_scale = mean ? T(1) / static_cast<T>(axes.batch) : T(1);
  in.loss_divisor = mean ? static_cast<double>(axes.batch) : 1.0;
  in.batch = axes.batch;
  in.classes = static_cast<int>(axes.classes);
  in.vector_bits = std::min(call.vector_bits, 2);
  (call.reduction == "none" ? in.sample_loss : in.loss) = out.loss.mutable_data_ptr<T>();
  if (call.with_stats) {
    const auto total = [&](Tensor& tensor) {
      tensor = new_contiguous(call.logits, axes.shape(), ScalarType::Float);
      return tensor.mutable_data_ptr<float>();
    };
    in.correct = total(out.correct);
    in.true_probability = total(out.true_probability);
    in.entropy = total(out.entropy);
  }
  if (call.similarity) {
    check_device("similarity", *call.similarity, "the logits", call.logits);
    in.similarity = call.similarity->mutable_data_ptr<float>();
    const int64_t dims = call.similarity->dim();
    in.similarity_strides[0] = axes.with_candidates ? call.similarity->stride(0) : 0;
    in.similarity_strides[1] = call.similarity->stride(dims - 2);
    in.similarity_strides[2] = call.similarity->stride(dims - 1);
  }
  return in;
}

// Calls f(Shape) with the shape that holds a row in registers; false where none does.
template <typename scalar, int kArrays, typename Function>
bool with_shape(int64_t classes, Function f) {
  if constexpr (!std::is_same_v<scalar, double>) {
    if (classes <= 16) return f(Shape<4, 4, kArrays>()), true;
    if (classes <= 64) return f(Shape<4, 16, kArrays>()), true;
    if (classes <= 112) return f(Shape<4, 28, kArrays>()), true;
    if (classes <= 256) return f(Shape<8, 32, kArrays>()), true;
    if (classes <= 512) return f(Shape<16, 32, kArrays>()), true;
    if (classes <= 1024) return f(Shape<32, 32, kArrays>()), true;
  }
  return false;
}

// Launches `Target`'s kernels. kStats: whether there are kernels with statistics. `target_bytes` of shared memory are
// for the target of a long row.
template <bool kStats, typename scalar, typename Target>
LossResults run(const LossCall& call, const Target& target, int target_bytes) {
  const Axes& axes = call.axes;
  LossResults out;
  LossArguments<scalar> in = prepared<scalar>(call, out);

  // The grid has all candidates in x: y would end at 65,535.
  const auto launch_rows = [&](auto with_stats, auto* kernel, int threads, int rows, int resident, size_t shared,
                               auto... more) {
    constexpr bool kWithStats = decltype(with_stats)::value;
    in.blocks = blocks_of_candidate(call.logits, axes, rows, resident);
    STD_TORCH_CHECK(axes.candidates * in.blocks <= std::numeric_limits<int>::max(), "logits have too many candidates");
    Tensor partial;
    if (in.blocks > 1) {
      partial = new_contiguous(call.logits, {axes.candidates, in.blocks, Sums<kWithStats>::kCount}, ScalarType::Double);
      in.partial = partial.mutable_data_ptr<double>();
    }
    launch(kernel, dim3(static_cast<unsigned>(axes.candidates * in.blocks)), dim3(threads), shared, call.logits, in,
           target, more...);
    if (in.blocks > 1 && (in.loss != nullptr || kWithStats)) {
      launch(&add_partial_sums<scalar, kWithStats>, dim3(static_cast<unsigned>(axes.candidates)), dim3(128), 0,
             call.logits, in);
    }
  };
  const auto dispatch = [&](auto with_stats) {
    constexpr bool kWithStats = decltype(with_stats)::value;
    const auto in_registers = [&](auto shape) {
      using S = decltype(shape);
      launch_rows(with_stats, &rows_in_registers<scalar, S, kWithStats, Target>, S::kThreads, S::kRows, S::kBlocks, 0);
    };
    if (with_shape<scalar, Target::kArrays + kWithStats>(axes.classes, in_registers)) return;
    // A row is kept in shared memory where a block can, and read once. Two blocks of a multiprocessor, where both have
    // room for a row, let the loads of one go with the arithmetic of the other; of longer rows one has all threads.
    constexpr int kMost = kMostThreads<scalar>, kHalf = 384;
    constexpr int64_t kOther = 2048;  // bytes of a block beside what it asks for
    const int64_t row_bytes = axes.classes * static_cast<int64_t>(sizeof(scalar));
    const int64_t kept_bytes = row_bytes + target_bytes + kOther, room = shared_memory_of_multiprocessor(call.logits);
    const bool keep = kept_bytes <= room;
    const int threads = axes.classes < 4096 ? 128 : keep && kept_bytes > room / 2 ? kMost : kHalf;
    const size_t shared = target_bytes + (keep ? row_bytes : 0);
    auto* kernel = &rows_in_blocks<scalar, kWithStats, 1, Target>;
    if constexpr (!std::is_same_v<scalar, double>) {
      if (call.vector_bits == 2) kernel = &rows_in_blocks<scalar, kWithStats, 4, Target>;
    }
    if constexpr (sizeof(scalar) == 2) {
      if (call.vector_bits == 3) kernel = &rows_in_blocks<scalar, kWithStats, 8, Target>;
    }
    launch_rows(with_stats, kernel, threads, 1, kMost / threads, shared, target_bytes, keep);
  };
  if constexpr (kStats) {
    if (call.with_stats) {
      dispatch(std::true_type());
      return out;
    }
  }
  dispatch(std::false_type());
  return out;
}

}  // namespace tfkd_fast

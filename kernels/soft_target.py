"""The soft-target loss, its gradient and the training statistics. The definition is `tfkd_fast.ops.soft_target`.

Moves B*C logits in and B*C gradients out, and B*C targets in where each sample has its own; a class table stays in the
caches. Up to 1,024 classes a program holds several rows in registers, so each logit is read once. A longer row is read
twice, the second time from the L2 cache, because its gradient needs its softmax's sum first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import (
    LARGE_TILE,
    LN_2,
    LOG2_E,
    LOWEST,
    TILE,
    WARPS,
    add_partial_sums,
    add_to_softmax,
    computed,
    gradient_scale,
    load_labels,
    new_loss,
    on_device,
    registers,
    setting,
    shape_of,
    softmax_terms,
    stride_of_candidates,
    sum_of_present,
    total_softmax,
    weighted,
    write_sums,
)


@triton.jit(
    do_not_specialize=[
        "batch", "blocks", "labels_stride", "targets_stride", "temperature_stride", "hard_weight_stride",
        "similarity_stride_p", "similarity_stride_y", "similarity_stride_c",
    ]
)  # fmt: skip
def _rows_in_registers(
    logits: tl.tensor, labels: tl.tensor, targets: tl.tensor, temperature: tl.tensor, hard_weight: tl.tensor,
    similarity: tl.tensor,
    gradient: tl.tensor, sample_loss: tl.tensor, loss: tl.tensor, correct: tl.tensor, true_probability: tl.tensor,
    entropy: tl.tensor, partial: tl.tensor,
    batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, labels_stride: tl.tensor, targets_stride: tl.tensor,
    temperature_stride: tl.tensor, hard_weight_stride: tl.tensor,
    similarity_stride_p: tl.tensor, similarity_stride_y: tl.tensor, similarity_stride_c: tl.tensor,
    CLASS_ROWS: tl.constexpr, MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """`blocks` programs a candidate; each takes every `blocks`-th tile of ROWS samples."""
    candidate, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    classes = classes // ALIGNMENT * ALIGNMENT  # the same number, which the compiler now knows to be divisible
    column = tl.arange(0, COLUMNS)
    with_stats: tl.constexpr = correct is not None
    with_plain: tl.constexpr = with_stats or hard_weight is not None
    t = setting(temperature, candidate, temperature_stride, 1.0, T)
    hard = setting(hard_weight, candidate, hard_weight_stride, 0.0, T)
    soft = 1.0 - hard
    loss_sum = tl.zeros((), tl.float64)
    correct_sum = tl.zeros((), tl.float64)
    true_probability_sum = tl.zeros((), tl.float64)
    entropy_sum = tl.zeros((), tl.float64)

    for first in range(block * ROWS, batch, blocks * ROWS):
        sample = first + tl.arange(0, ROWS)
        present = sample < batch
        inside = present[:, None] & (column < classes)[None, :]
        row = (candidate * batch + sample) * classes
        label, in_range = load_labels(labels, candidate, labels_stride, sample, present, classes)
        scale = gradient_scale(batch, in_range, MEAN, T)
        z = tl.load(logits + row[:, None] + column[None, :], mask=inside, other=float("-inf")).to(T)
        target_row = candidate * targets_stride + (label if CLASS_ROWS else sample).to(tl.int64) * classes
        q = tl.load(targets + target_row[:, None] + column[None, :], mask=inside, other=0.0)

        highest = tl.max(z, 1)
        x, e, total = softmax_terms(z, highest, t)
        log_total = tl.log2(total)
        divergence = tl.sum(weighted(q, tl.log2(q) - (x - log_total[:, None])), 1)
        value = weighted(soft, t * t * LN_2 * divergence)
        factor = soft * t * scale
        slope = (factor * tl.sum(q, 1) / total)[:, None] * e - factor[:, None] * q

        if with_plain:  # the softmax at temperature 1
            if (t != 1.0) & (with_stats | (hard != 0.0)):
                x, e, total = softmax_terms(z, highest, tl.full((), 1.0, T))
                log_total = tl.log2(total)
            own_logit = tl.load(logits + row + label, mask=present, other=0.0).to(T)
            own = (own_logit - highest) * LOG2_E
            value += weighted(hard, (log_total - own) * LN_2)
            is_own = column[None, :] == label[:, None]
            slope += (hard * scale)[:, None] * (e / total[:, None] - is_own.to(T))
            if with_stats:
                earlier = tl.max(((z == highest[:, None]) & (column[None, :] < label[:, None])).to(tl.int32), 1)
                first_best = (own_logit == highest) & (earlier == 0) & (total == total) & in_range
                probability = tl.where(in_range, tl.exp2(own) / total, float("nan"))
                uncertainty = (log_total - tl.sum(weighted(e, x), 1) / total) * LN_2
                correct_sum += sum_of_present(first_best, present)
                true_probability_sum += sum_of_present(probability, present)
                entropy_sum += sum_of_present(uncertainty, present)
            if similarity is not None:
                line = similarity + candidate * similarity_stride_p + label.to(tl.int64) * similarity_stride_y
                to = line[:, None] + (column * similarity_stride_c)[None, :]
                tl.atomic_add(to, (e / total[:, None]).to(tl.float32), mask=inside & in_range[:, None], sem="relaxed")

        value = tl.where(in_range, value, float("nan"))
        tl.store(gradient + row[:, None] + column[None, :], slope.to(gradient.dtype.element_ty), mask=inside)
        if sample_loss is not None:
            tl.store(sample_loss + candidate * batch + sample, value, mask=present)
        loss_sum += sum_of_present(value, present)

    write_sums(
        candidate, block, blocks, batch, loss_sum, correct_sum, true_probability_sum, entropy_sum,
        loss, correct, true_probability, entropy, partial, MEAN,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "batch", "blocks", "labels_stride", "targets_stride", "temperature_stride", "hard_weight_stride",
        "similarity_stride_p", "similarity_stride_y", "similarity_stride_c",
    ]
)  # fmt: skip
def _rows_in_blocks(
    logits: tl.tensor, labels: tl.tensor, targets: tl.tensor, temperature: tl.tensor, hard_weight: tl.tensor,
    similarity: tl.tensor,
    gradient: tl.tensor, sample_loss: tl.tensor, loss: tl.tensor, correct: tl.tensor, true_probability: tl.tensor,
    entropy: tl.tensor, partial: tl.tensor,
    batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, labels_stride: tl.tensor, targets_stride: tl.tensor,
    temperature_stride: tl.tensor, hard_weight_stride: tl.tensor,
    similarity_stride_p: tl.tensor, similarity_stride_y: tl.tensor, similarity_stride_c: tl.tensor,
    CLASS_ROWS: tl.constexpr, MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """`blocks` programs a candidate; each takes every `blocks`-th sample, COLUMNS classes at a time."""
    candidate, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    classes = classes // ALIGNMENT * ALIGNMENT
    column = tl.arange(0, COLUMNS)
    with_stats: tl.constexpr = correct is not None
    with_plain: tl.constexpr = with_stats or hard_weight is not None
    t = setting(temperature, candidate, temperature_stride, 1.0, T)
    hard = setting(hard_weight, candidate, hard_weight_stride, 0.0, T)
    soft = 1.0 - hard
    rate = 1.0 / (t * LN_2)
    loss_sum = tl.zeros((), tl.float64)
    correct_sum = tl.zeros((), tl.float64)
    true_probability_sum = tl.zeros((), tl.float64)
    entropy_sum = tl.zeros((), tl.float64)

    for first in range(block, batch, blocks):
        sample = first + tl.arange(0, 1)
        row = (candidate * batch + first) * classes
        labels_, in_ranges = load_labels(labels, candidate, labels_stride, sample, sample < batch, classes)
        label, in_range = tl.sum(labels_, 0), tl.sum(in_ranges.to(tl.int32), 0) == 1
        scale = gradient_scale(batch, in_range, MEAN, T)
        target_row = candidate * targets_stride + (label.to(tl.int64) if CLASS_ROWS else first) * classes

        highest_of_place = tl.full((COLUMNS,), LOWEST, T)
        total_of_place = tl.zeros((COLUMNS,), T)
        plain_total_of_place = tl.zeros((COLUMNS,), T)
        mass_of_place = tl.zeros((COLUMNS,), T)
        for start in range(0, classes, COLUMNS):
            c = start + column
            z = tl.load(logits + row + c, mask=c < classes, other=float("-inf")).to(T)
            mass_of_place += tl.load(targets + target_row + c, mask=c < classes, other=0.0)
            total_of_place = add_to_softmax(z, highest_of_place, total_of_place, rate)
            if with_plain:
                plain_total_of_place = add_to_softmax(z, highest_of_place, plain_total_of_place, LOG2_E)
            highest_of_place = tl.where(z > highest_of_place, z, highest_of_place)
        highest = tl.max(highest_of_place, 0)
        total = total_softmax(highest_of_place, total_of_place, rate)
        plain_total = total_softmax(highest_of_place, plain_total_of_place, LOG2_E)
        log_total = tl.log2(total)
        factor = soft * t * scale
        softmax_factor = factor * tl.sum(mass_of_place, 0) / total
        hard_factor = hard * scale

        divergence_of_place = tl.zeros((COLUMNS,), T)
        dot_of_place = tl.zeros((COLUMNS,), T)
        earlier_of_place = tl.zeros((COLUMNS,), tl.int32)
        for start in range(0, classes, COLUMNS):
            c = start + column
            z = tl.load(logits + row + c, mask=c < classes, other=float("-inf")).to(T)
            q = tl.load(targets + target_row + c, mask=c < classes, other=0.0)
            x = (z - highest) * rate
            e = tl.exp2(x)
            divergence_of_place += weighted(q, tl.log2(q) - (x - log_total))
            slope = softmax_factor * e - factor * q
            if with_plain:
                if t != 1.0:
                    x = (z - highest) * LOG2_E
                    e = tl.exp2(x)
                slope += hard_factor * (e / plain_total - (c == label).to(T))
                if with_stats:
                    dot_of_place += weighted(e, x)
                    earlier_of_place |= ((z == highest) & (c < label)).to(tl.int32)
                if similarity is not None:
                    line = similarity + candidate * similarity_stride_p + label.to(tl.int64) * similarity_stride_y
                    to = line + c * similarity_stride_c
                    tl.atomic_add(to, (e / plain_total).to(tl.float32), mask=(c < classes) & in_range, sem="relaxed")
            tl.store(gradient + row + c, slope.to(gradient.dtype.element_ty), mask=c < classes)

        value = weighted(soft, t * t * LN_2 * tl.sum(divergence_of_place, 0))
        if with_plain:
            own_logit = tl.load(logits + row + label).to(T)
            own = (own_logit - highest) * LOG2_E
            plain_log_total = tl.log2(plain_total)
            value += weighted(hard, (plain_log_total - own) * LN_2)
            if with_stats:
                first_best = (own_logit == highest) & (tl.max(earlier_of_place, 0) == 0) & (plain_total > 0.0)
                probability = tl.where(in_range, tl.exp2(own) / plain_total, float("nan"))
                uncertainty = (plain_log_total - tl.sum(dot_of_place, 0) / plain_total) * LN_2
                correct_sum += (first_best & in_range).to(tl.float64)
                true_probability_sum += probability.to(tl.float64)
                entropy_sum += uncertainty.to(tl.float64)
        value = tl.where(in_range, value, float("nan"))
        if sample_loss is not None:
            tl.store(sample_loss + candidate * batch + first, value)
        loss_sum += value.to(tl.float64)

    write_sums(
        candidate, block, blocks, batch, loss_sum, correct_sum, true_probability_sum, entropy_sum,
        loss, correct, true_probability, entropy, partial, MEAN,
    )  # fmt: skip


def soft_target_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    temperature: Tensor | None,
    hard_weight: Tensor | None,
    class_rows: bool,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient; see `tfkd_fast.ops.soft_target_loss`."""
    loss, gradient, *_ = _run(logits, labels, targets, None, temperature, hard_weight, class_rows, reduction, False)
    return loss, gradient


def soft_target_loss_with_stats(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    similarity: Tensor | None,
    temperature: Tensor | None,
    hard_weight: Tensor | None,
    class_rows: bool,
    reduction: str,
) -> tuple[Tensor, ...]:
    """Loss, gradient, correct, true_probability, entropy; see `tfkd_fast.ops.soft_target_loss_with_stats`."""
    return _run(logits, labels, targets, similarity, temperature, hard_weight, class_rows, reduction, True)


def _run(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    similarity: Tensor | None,
    temperature: Tensor | None,
    hard_weight: Tensor | None,
    class_rows: bool,
    reduction: str,
    with_stats: bool,
) -> tuple[Tensor, ...]:
    logits, labels, targets = logits.contiguous(), labels.contiguous(), targets.contiguous()
    shape = shape_of(logits, TILE if with_stats or hard_weight is not None else LARGE_TILE)
    blocks = shape.blocks(logits)
    mean, each = reduction == "mean", reduction == "none"
    gradient, loss = torch.empty_like(logits), new_loss(logits, reduction)
    stats = tuple(logits.new_empty(logits.shape[:-2], dtype=torch.float32) for _ in range(3 * with_stats))
    results = (None if each else loss, *(stats or (None,) * 3))
    partial = None
    if blocks > 1 and (with_stats or not each):
        partial = logits.new_empty((shape.candidates, blocks, 1 + len(stats)), dtype=torch.float64)

    similarity_strides: tuple[int, ...] = (0, 0, 0)
    if similarity is not None:
        similarity_strides = (stride_of_candidates(similarity, 2), *similarity.stride()[-2:])
    kernel = _rows_in_registers if shape.in_registers else _rows_in_blocks
    with on_device(logits):
        kernel[(shape.candidates * blocks,)](
            logits, labels, targets, temperature, hard_weight, similarity,
            gradient, loss if each else None, *results, partial,
            shape.batch, shape.classes, blocks,
            stride_of_candidates(labels, 1), stride_of_candidates(targets, 2),
            stride_of_candidates(temperature, 0), stride_of_candidates(hard_weight, 0), *similarity_strides,
            CLASS_ROWS=class_rows, MEAN=mean, ALIGNMENT=shape.alignment, T=computed(logits)[1],
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=WARPS, maxnreg=registers(logits),
        )  # fmt: skip
        add_partial_sums(partial, results, shape.candidates, blocks, shape.batch, mean)
    return loss, gradient, *stats

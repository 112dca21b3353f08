"""Triton kernels of `tfkd_fast.ops.soft_target`: the loss, its gradient and the training statistics.

Moves B*C logits in and B*C gradients out, and B*C targets in where each sample has its own; a class table stays in the
caches. Up to 1,024 classes a program holds several rows in registers, so each logit is read once. A longer row is read
twice, the second time from the L2 cache, because its gradient needs its softmax's sum first.
"""

import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import (
    LARGE_TILE,
    LN_2,
    LOG2_E,
    TILE,
    WARPS,
    candidate_and_block,
    divisible,
    load_labels,
    loss_dtypes,
    on_device,
    registers,
    shape_of,
    stride_of_candidates,
    sum_of_present,
)
from tfkd_fast.kernels.losses import (
    Results,
    Sums,
    add_cross_entropy,
    add_partial_sums,
    gradient_scale,
    hard_loss,
    load_classes,
    load_label,
    load_tile,
    new_results,
    no_sums,
    online_softmax,
    safe_product,
    setting,
    soft_loss,
    softmax_of,
    store_gradient,
    store_loss,
    store_tile,
    tile_of,
    write_sums,
)

NOT_SPECIALIZED = [
    "batch", "blocks", "labels_stride", "targets_stride", "temperature_stride", "hard_weight_stride",
    "similarity_stride_p", "similarity_stride_y", "similarity_stride_c",
]  # fmt: skip


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _rows_in_registers(
    logits: tl.tensor, labels: tl.tensor, targets: tl.tensor, temperature: tl.tensor, hard_weight: tl.tensor,
    similarity: tl.tensor, out: Results,
    batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, labels_stride: tl.tensor, targets_stride: tl.tensor,
    temperature_stride: tl.tensor, hard_weight_stride: tl.tensor,
    similarity_stride_p: tl.tensor, similarity_stride_y: tl.tensor, similarity_stride_c: tl.tensor,
    CLASS_ROWS: tl.constexpr, MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute every `blocks`-th tile of ROWS samples of a candidate, which has `blocks` programs."""
    candidate, block = candidate_and_block(blocks)
    classes = divisible(classes, ALIGNMENT)
    with_stats: tl.constexpr = out.correct is not None
    with_plain: tl.constexpr = with_stats or hard_weight is not None
    t = setting(temperature, candidate, temperature_stride, 1.0, T)
    hard = setting(hard_weight, candidate, hard_weight_stride, 0.0, T)
    soft = 1.0 - hard
    sums = no_sums()

    for first in range(block * ROWS, batch, blocks * ROWS):
        tile = tile_of(candidate, first, batch, classes, ROWS, COLUMNS)
        label, in_range = load_labels(labels, candidate, labels_stride, tile.sample, tile.present, classes)
        scale = gradient_scale(batch, in_range, MEAN, T)
        z = load_tile(logits, tile.row, tile, T)
        target_row = candidate * targets_stride + (label if CLASS_ROWS else tile.sample).to(tl.int64) * classes
        q = tl.load(targets + target_row[:, None] + tile.column[None, :], mask=tile.inside, other=0.0)

        highest = tl.max(z, 1)
        softmax = softmax_of(z, highest, t)
        surprise = tl.log2(q) - (softmax.exponent - softmax.log_total[:, None])
        value = soft_loss(soft, t, tl.sum(safe_product(q, surprise), 1))
        factor = soft * t * scale
        slope = (factor * tl.sum(q, 1) / softmax.total)[:, None] * softmax.power - factor[:, None] * q

        if with_plain:
            own_logit = tl.load(logits + tile.row + label, mask=tile.present, other=0.0).to(T)
            value, slope, plain, own = add_cross_entropy(
                value, slope, softmax, z, own_logit, label, tile, hard, scale, t, with_stats
            )
            if with_stats:
                earlier = (z == highest[:, None]) & (tile.column[None, :] < label[:, None])
                first_best = (own_logit == highest) & (tl.max(earlier.to(tl.int32), 1) == 0)
                first_best = first_best & (plain.total == plain.total) & in_range
                probability = tl.where(in_range, tl.exp2(own) / plain.total, float("nan"))
                dot = tl.sum(safe_product(plain.power, plain.exponent), 1)
                uncertainty = (plain.log_total - dot / plain.total) * LN_2
                sums = Sums(
                    sums.loss,
                    sums.correct + sum_of_present(first_best, tile.present),
                    sums.true_probability + sum_of_present(probability, tile.present),
                    sums.entropy + sum_of_present(uncertainty, tile.present),
                )
            if similarity is not None:
                line = similarity + candidate * similarity_stride_p + label.to(tl.int64) * similarity_stride_y
                to = line[:, None] + (tile.column.to(tl.int64) * similarity_stride_c)[None, :]
                share = (plain.power / plain.total[:, None]).to(tl.float32)
                tl.atomic_add(to, share, mask=tile.inside & in_range[:, None], sem="relaxed")

        value = tl.where(in_range, value, float("nan"))
        loss = store_tile(out, tile, batch, value, slope)
        sums = Sums(sums.loss + loss, sums.correct, sums.true_probability, sums.entropy)

    write_sums(out, sums, candidate, block, blocks, batch, MEAN)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _rows_in_blocks(
    logits: tl.tensor, labels: tl.tensor, targets: tl.tensor, temperature: tl.tensor, hard_weight: tl.tensor,
    similarity: tl.tensor, out: Results,
    batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, labels_stride: tl.tensor, targets_stride: tl.tensor,
    temperature_stride: tl.tensor, hard_weight_stride: tl.tensor,
    similarity_stride_p: tl.tensor, similarity_stride_y: tl.tensor, similarity_stride_c: tl.tensor,
    CLASS_ROWS: tl.constexpr, MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute every `blocks`-th sample of a candidate, which has `blocks` programs, COLUMNS classes at a time."""
    candidate, block = candidate_and_block(blocks)
    classes = divisible(classes, ALIGNMENT)
    column = tl.arange(0, COLUMNS)
    with_stats: tl.constexpr = out.correct is not None
    with_plain: tl.constexpr = with_stats or hard_weight is not None
    t = setting(temperature, candidate, temperature_stride, 1.0, T)
    hard = setting(hard_weight, candidate, hard_weight_stride, 0.0, T)
    soft = 1.0 - hard
    rate = 1.0 / (t * LN_2)
    sums = no_sums()

    for sample in range(block, batch, blocks):
        row = (candidate * batch + sample) * classes
        label, in_range = load_label(labels, candidate, labels_stride, sample, classes)
        scale = gradient_scale(batch, in_range, MEAN, T)
        target_row = candidate * targets_stride + tl.cast(label if CLASS_ROWS else sample, tl.int64) * classes

        highest, total, plain_total = online_softmax(logits + row, classes, rate, with_plain, T, COLUMNS)
        mass_of_place = tl.zeros((COLUMNS,), T)
        for start in range(0, classes, COLUMNS):
            c = start + column
            mass_of_place += tl.load(targets + target_row + c, mask=c < classes, other=0.0)
        log_total = tl.log2(total)
        factor = soft * t * scale
        softmax_factor = factor * tl.sum(mass_of_place, 0) / total
        hard_factor = hard * scale

        divergence_of_place = tl.zeros((COLUMNS,), T)
        dot_of_place = tl.zeros((COLUMNS,), T)
        earlier_of_place = tl.zeros((COLUMNS,), tl.int32)
        for start in range(0, classes, COLUMNS):
            c = start + column
            z = load_classes(logits + row, c, classes, T)
            q = tl.load(targets + target_row + c, mask=c < classes, other=0.0)
            x = (z - highest) * rate
            e = tl.exp2(x)
            divergence_of_place += safe_product(q, tl.log2(q) - (x - log_total))
            slope = softmax_factor * e - factor * q
            if with_plain:
                if t != 1.0:
                    x = (z - highest) * LOG2_E
                    e = tl.exp2(x)
                slope += hard_factor * (e / plain_total - (c == label).to(T))
                if with_stats:
                    dot_of_place += safe_product(e, x)
                    earlier_of_place |= ((z == highest) & (c < label)).to(tl.int32)
                if similarity is not None:
                    line = similarity + candidate * similarity_stride_p + label.to(tl.int64) * similarity_stride_y
                    to = line + c.to(tl.int64) * similarity_stride_c
                    tl.atomic_add(to, (e / plain_total).to(tl.float32), mask=(c < classes) & in_range, sem="relaxed")
            store_gradient(out.gradient + row + c, slope, c < classes)

        value = soft_loss(soft, t, tl.sum(divergence_of_place, 0))
        if with_plain:
            own_logit = tl.load(logits + row + label).to(T)
            own = (own_logit - highest) * LOG2_E
            plain_log_total = tl.log2(plain_total)
            value += hard_loss(hard, plain_log_total, own)
            if with_stats:
                first_best = (own_logit == highest) & (tl.max(earlier_of_place, 0) == 0) & (plain_total > 0.0)
                probability = tl.where(in_range, tl.exp2(own) / plain_total, float("nan"))
                uncertainty = (plain_log_total - tl.sum(dot_of_place, 0) / plain_total) * LN_2
                sums = Sums(
                    sums.loss,
                    sums.correct + (first_best & in_range).to(tl.float64),
                    sums.true_probability + probability.to(tl.float64),
                    sums.entropy + uncertainty.to(tl.float64),
                )
        loss = store_loss(out, candidate, sample, batch, tl.where(in_range, value, float("nan")))
        sums = Sums(sums.loss + loss, sums.correct, sums.true_probability, sums.entropy)

    write_sums(out, sums, candidate, block, blocks, batch, MEAN)


def soft_target_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    temperature: Tensor | None,
    hard_weight: Tensor | None,
    class_rows: bool,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Compute loss and gradient of `tfkd_fast.ops.soft_target_loss`."""
    out = _run(logits, labels, targets, None, temperature, hard_weight, class_rows, reduction, False)
    return out.loss, out.gradient


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
    """Compute loss, gradient and statistics of `tfkd_fast.ops.soft_target_loss_with_stats`."""
    out = _run(logits, labels, targets, similarity, temperature, hard_weight, class_rows, reduction, True)
    return out.loss, out.gradient, *out.statistics


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
) -> Results:
    logits, labels, targets = logits.contiguous(), labels.contiguous(), targets.contiguous()
    shape = shape_of(logits, TILE if with_stats or hard_weight is not None else LARGE_TILE)
    blocks = shape.blocks(logits)
    out = new_results(logits, shape, blocks, reduction, with_stats)
    similarity_strides: tuple[int, ...] = (0, 0, 0)
    if similarity is not None:
        similarity_strides = (stride_of_candidates(similarity, 2), *similarity.stride()[-2:])
    kernel = _rows_in_registers if shape.in_registers else _rows_in_blocks
    with on_device(logits):
        kernel[(shape.candidates * blocks,)](
            logits, labels, targets, temperature, hard_weight, similarity, out,
            shape.batch, shape.classes, blocks,
            stride_of_candidates(labels, 1), stride_of_candidates(targets, 2),
            stride_of_candidates(temperature, 0), stride_of_candidates(hard_weight, 0), *similarity_strides,
            CLASS_ROWS=class_rows, MEAN=reduction == "mean", ALIGNMENT=shape.alignment, T=loss_dtypes(logits)[1],
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=WARPS, maxnreg=registers(logits),
        )  # fmt: skip
        add_partial_sums(out, shape, blocks, reduction)
    return out

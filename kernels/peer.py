"""Triton kernels of `tfkd_fast.ops.peer`: the losses of candidates that learn from each other, and their gradients.

Moves P*B*C logits in and P*B*C gradients out. A program visits its samples for all candidates twice: for the sum of
their predictions, and for losses and gradients. The second visit reads the caches. Only the sum exists, in registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import (
    LN_2,
    LOG2_E,
    WARPS,
    Shape,
    divisible,
    load_labels,
    loss_dtypes,
    on_device,
    pick,
    programs_at_once,
    registers,
    shape_of,
    stride_of_candidates,
)
from tfkd_fast.kernels.losses import (
    Results,
    add_cross_entropy,
    add_partial_sums,
    gradient_scale,
    hard_loss,
    load_classes,
    load_tile,
    new_results,
    online_softmax,
    safe_product,
    setting,
    soft_loss,
    softmax_of,
    store_gradient,
    store_tile,
    tile_of,
    write_loss,
)

NOT_SPECIALIZED = ["candidates", "batch", "blocks", "labels_stride", "alpha_stride"]


@triton.jit
def _mean_prediction(
    prediction: tl.tensor, prediction_sum: tl.tensor, candidates: tl.tensor, INCLUDE_SELF: tl.constexpr
) -> tl.tensor:
    """Return the target of a candidate from the sum over all candidates and its own prediction."""
    if INCLUDE_SELF:
        mean = prediction_sum / candidates.to(prediction.dtype)
    else:  # what rounding leaves of a sum without its parts may be negative
        others = prediction_sum - prediction
        mean = tl.where(others < 0.0, 0.0, others) / (candidates - 1).to(prediction.dtype)
    return mean


@triton.jit
def _write_losses(
    out: Results, losses: tl.tensor, index: tl.tensor, candidates: tl.tensor, block: tl.tensor, blocks: tl.tensor,
    batch: tl.tensor, MEAN: tl.constexpr,
) -> None:  # fmt: skip
    """Write the sums of all candidates over the batch, or over a program's part of it."""
    if out.partial is not None:
        tl.store(out.partial + index.to(tl.int64) * blocks + block, losses, mask=index < candidates)
    elif out.total_loss is not None:
        for p in range(candidates):
            write_loss(out.total_loss, p, pick(losses, index, p), batch, MEAN)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _rows_in_registers(
    logits: tl.tensor, labels: tl.tensor, temperature: tl.tensor, alpha: tl.tensor, out: Results,
    candidates: tl.tensor, batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, labels_stride: tl.tensor,
    alpha_stride: tl.tensor,
    INCLUDE_SELF: tl.constexpr, MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    CANDIDATES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute every `blocks`-th tile of ROWS samples. CANDIDATES is a power of 2, at least `candidates`."""
    block = tl.program_id(0)
    classes = divisible(classes, ALIGNMENT)
    index = tl.arange(0, CANDIDATES)
    t = tl.load(temperature)
    losses = tl.zeros((CANDIDATES,), tl.float64)

    for first in range(block * ROWS, batch, blocks * ROWS):
        prediction_sum = tl.zeros((ROWS, COLUMNS), T)
        for p in range(candidates):
            tile = tile_of(tl.cast(p, tl.int64), first, batch, classes, ROWS, COLUMNS)
            z = load_tile(logits, tile.row, tile, T)
            softmax = softmax_of(z, tl.max(z, 1), t)
            prediction_sum += softmax.power / softmax.total[:, None]

        for p in range(candidates):
            tile = tile_of(tl.cast(p, tl.int64), first, batch, classes, ROWS, COLUMNS)
            soft = setting(alpha, tile.candidate, alpha_stride, 1.0, T)
            label, in_range = load_labels(labels, tile.candidate, labels_stride, tile.sample, tile.present, classes)
            scale = gradient_scale(batch, in_range, MEAN, T)
            z = load_tile(logits, tile.row, tile, T)
            softmax = softmax_of(z, tl.max(z, 1), t)
            own = softmax.power / softmax.total[:, None]
            q = _mean_prediction(own, prediction_sum, candidates, INCLUDE_SELF)
            surprise = tl.log2(q) - (softmax.exponent - softmax.log_total[:, None])
            value = soft_loss(soft, t, tl.sum(safe_product(q, surprise), 1))
            slope = (soft * t * scale)[:, None] * (own - q)
            own_logit = tl.load(logits + tile.row + label, mask=tile.present, other=0.0).to(T)
            value, slope, _, _ = add_cross_entropy(
                value, slope, softmax, z, own_logit, label, tile, 1.0 - soft, scale, t, False
            )
            loss = store_tile(out, tile, batch, tl.where(in_range, value, float("nan")), slope)
            losses += tl.where(index == p, loss, 0.0)

    _write_losses(out, losses, index, candidates, block, blocks, batch, MEAN)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _rows_in_blocks(
    logits: tl.tensor, labels: tl.tensor, temperature: tl.tensor, alpha: tl.tensor, out: Results,
    candidates: tl.tensor, batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, labels_stride: tl.tensor,
    alpha_stride: tl.tensor,
    INCLUDE_SELF: tl.constexpr, MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    CANDIDATES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute every `blocks`-th sample, COLUMNS classes at a time, after reading its rows once for their normalisers.

    Values of the candidates' rows are held in vectors of CANDIDATES.
    """
    block = tl.program_id(0)
    classes = divisible(classes, ALIGNMENT)
    index = tl.arange(0, CANDIDATES)
    t = tl.load(temperature)
    rate = 1.0 / (t * LN_2)
    soft = tl.load(alpha + index.to(tl.int64) * alpha_stride, mask=index < candidates, other=0.0)
    hard = 1.0 - soft
    losses = tl.zeros((CANDIDATES,), tl.float64)

    for sample in range(block, batch, blocks):
        highest_of = tl.zeros((CANDIDATES,), T)
        total_of = tl.full((CANDIDATES,), 1.0, T)
        plain_total_of = tl.full((CANDIDATES,), 1.0, T)
        for p in range(candidates):
            row = (tl.cast(p, tl.int64) * batch + sample) * classes
            highest, total, plain_total = online_softmax(logits + row, classes, rate, True, T, COLUMNS)
            highest_of = tl.where(index == p, highest, highest_of)
            total_of = tl.where(index == p, total, total_of)
            plain_total_of = tl.where(index == p, plain_total, plain_total_of)

        present = index < candidates
        row_of = (index.to(tl.int64) * batch + sample) * classes
        label_of, in_range_of = load_labels(
            labels, index.to(tl.int64), labels_stride, index * 0 + sample, present, classes
        )
        scale_of = gradient_scale(batch, in_range_of, MEAN, T)
        divergence_of = tl.zeros((CANDIDATES,), T)
        for start in range(0, classes, COLUMNS):
            c = start + tl.arange(0, COLUMNS)
            prediction_sum = tl.zeros((COLUMNS,), T)
            for p in range(candidates):
                row = (tl.cast(p, tl.int64) * batch + sample) * classes
                x = (load_classes(logits + row, c, classes, T) - pick(highest_of, index, p)) * rate
                prediction_sum += tl.exp2(x) / pick(total_of, index, p)
            for p in range(candidates):
                row = (tl.cast(p, tl.int64) * batch + sample) * classes
                z = load_classes(logits + row, c, classes, T)
                highest, total = pick(highest_of, index, p), pick(total_of, index, p)
                x = (z - highest) * rate
                own = tl.exp2(x) / total
                q = _mean_prediction(own, prediction_sum, candidates, INCLUDE_SELF)
                divergence = tl.sum(safe_product(q, tl.log2(q) - (x - tl.log2(total))), 0)
                divergence_of += tl.where(index == p, divergence, 0.0)
                plain = tl.exp2((z - highest) * LOG2_E) / pick(plain_total_of, index, p)
                is_own = c == tl.sum(tl.where(index == p, label_of, 0), 0)
                scale = pick(scale_of, index, p)
                slope = pick(soft, index, p) * t * scale * (own - q)
                slope += pick(hard, index, p) * scale * (plain - is_own.to(T))
                store_gradient(out.gradient + row + c, slope, c < classes)

        own_logit = tl.load(logits + row_of + label_of, mask=present, other=0.0).to(T)
        values = soft_loss(soft, t, divergence_of)
        values += hard_loss(hard, tl.log2(plain_total_of), (own_logit - highest_of) * LOG2_E)
        values = tl.where(in_range_of, values, float("nan"))
        if out.sample_loss is not None:
            tl.store(out.sample_loss + index.to(tl.int64) * batch + sample, values, mask=present)
        losses += values.to(tl.float64)

    _write_losses(out, losses, index, candidates, block, blocks, batch, MEAN)


def peer_loss(
    logits: Tensor, labels: Tensor, temperature: Tensor, alpha: Tensor, include_self: bool, reduction: str
) -> tuple[Tensor, Tensor]:
    """Compute losses and gradients of `tfkd_fast.ops.peer_loss`."""
    logits, labels = logits.contiguous(), labels.contiguous()
    shape = _more_programs(shape_of(logits), logits)
    blocks = shape.blocks(logits, all_candidates=True)
    out = new_results(logits, shape, blocks, reduction)
    kernel = _rows_in_registers if shape.in_registers else _rows_in_blocks
    with on_device(logits):
        kernel[(blocks,)](
            logits, labels, temperature, alpha, out,
            shape.candidates, shape.batch, shape.classes, blocks,
            stride_of_candidates(labels, 1), stride_of_candidates(alpha, 0),
            INCLUDE_SELF=include_self, MEAN=reduction == "mean", ALIGNMENT=shape.alignment, T=loss_dtypes(logits)[1],
            CANDIDATES=triton.next_power_of_2(shape.candidates),
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=WARPS, maxnreg=registers(logits),
        )  # fmt: skip
        add_partial_sums(out, shape, blocks, reduction)
    return out.loss, out.gradient


def _more_programs(shape: Shape, logits: Tensor) -> Shape:
    """Reduce the rows of a tile, down to one number for each thread, until the samples occupy the device.

    There are no programs for other candidates that would occupy it, and fewer rows are more likely to be cached when
    they are read again.
    """
    rows = shape.rows
    while rows > 1 and rows * shape.columns > 32 * WARPS and shape.batch < rows * programs_at_once(logits):
        rows //= 2
    return shape._replace(rows=rows)

"""The losses of a population whose candidates teach each other, and their gradients; see `tfkd_fast.ops.peer`.

Moves P*B*C logits in and P*B*C gradients out. A program visits its samples for all candidates twice: for the sum of
their predictions, and for losses and gradients. The second visit reads the caches. Only the sum exists, in registers.

The mean of the others is not taken from the sum of all: next to a certain candidate nothing would be left of their
small probabilities. Of each class the highest prediction is kept apart, with its owner. What the owner's peers say is
then a sum without it, and any other candidate takes away no more than the highest that is added back.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import (
    LN_2,
    LOG2_E,
    LOWEST,
    WARPS,
    Shape,
    add_partial_sums,
    add_to_softmax,
    computed,
    gradient_scale,
    load_labels,
    new_loss,
    on_device,
    pick,
    programs_at_once,
    registers,
    setting,
    shape_of,
    softmax_terms,
    stride_of_candidates,
    sum_of_present,
    total_softmax,
    weighted,
    write_loss,
)


@triton.jit
def _add_prediction(
    prediction: tl.tensor, candidate: tl.tensor, rest: tl.tensor, highest: tl.tensor, owner: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """`rest` is the sum of all predictions but the highest."""
    above = prediction > highest
    rest += tl.where(above, highest, prediction)
    return rest, tl.where(above, prediction, highest), tl.where(above, candidate, owner)


@triton.jit
def _mean_prediction(
    prediction: tl.tensor, candidate: tl.tensor, candidates: tl.tensor, rest: tl.tensor, highest: tl.tensor,
    owner: tl.tensor, INCLUDE_SELF: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """What teaches a candidate, from the sums over all and its own prediction."""
    if INCLUDE_SELF:
        mean = (rest + highest) / candidates.to(rest.dtype)
    else:
        mean = tl.where(owner == candidate, rest, rest - prediction + highest) / (candidates - 1).to(rest.dtype)
    return mean


@triton.jit
def _write_losses(
    loss: tl.tensor, partial: tl.tensor, losses: tl.tensor, index: tl.tensor, candidates: tl.tensor, block: tl.tensor,
    blocks: tl.tensor, batch: tl.tensor, MEAN: tl.constexpr,
) -> None:  # fmt: skip
    """Sums over the batch, or over a program's part of it, of all candidates."""
    present = index < candidates
    if partial is not None:
        tl.store(partial + index * blocks + block, losses, mask=present)
    elif loss is not None:
        for p in range(candidates):
            write_loss(loss, p, pick(losses, index, p), batch, MEAN)


@triton.jit(do_not_specialize=["candidates", "batch", "blocks", "labels_stride", "alpha_stride"])
def _rows_in_registers(
    logits: tl.tensor, labels: tl.tensor, temperature: tl.tensor, alpha: tl.tensor, gradient: tl.tensor,
    sample_loss: tl.tensor, loss: tl.tensor, partial: tl.tensor,
    candidates: tl.tensor, batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, labels_stride: tl.tensor,
    alpha_stride: tl.tensor,
    INCLUDE_SELF: tl.constexpr, MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    CANDIDATES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Each program takes every `blocks`-th tile of ROWS samples. CANDIDATES is a power of 2, at least `candidates`."""
    block = tl.program_id(0)
    classes = classes // ALIGNMENT * ALIGNMENT  # the same number, which the compiler now knows to be divisible
    column = tl.arange(0, COLUMNS)
    index = tl.arange(0, CANDIDATES)
    t = tl.load(temperature)
    losses = tl.zeros((CANDIDATES,), tl.float64)

    for first in range(block * ROWS, batch, blocks * ROWS):
        sample = first + tl.arange(0, ROWS)
        present = sample < batch
        inside = present[:, None] & (column < classes)[None, :]

        rest = tl.zeros((ROWS, COLUMNS), T)
        highest_prediction = tl.zeros((ROWS, COLUMNS), T)
        owner = tl.full((ROWS, COLUMNS), -1, tl.int32)
        for p in range(candidates):
            row = (tl.cast(p, tl.int64) * batch + sample) * classes
            z = tl.load(logits + row[:, None] + column[None, :], mask=inside, other=float("-inf")).to(T)
            _, e, total = softmax_terms(z, tl.max(z, 1), t)
            rest, highest_prediction, owner = _add_prediction(e / total[:, None], p, rest, highest_prediction, owner)

        for p in range(candidates):
            candidate = tl.cast(p, tl.int64)
            soft = setting(alpha, candidate, alpha_stride, 1.0, T)
            hard = 1.0 - soft
            row = (candidate * batch + sample) * classes
            label, in_range = load_labels(labels, candidate, labels_stride, sample, present, classes)
            scale = gradient_scale(batch, in_range, MEAN, T)
            z = tl.load(logits + row[:, None] + column[None, :], mask=inside, other=float("-inf")).to(T)
            highest = tl.max(z, 1)
            x, e, total = softmax_terms(z, highest, t)
            log_total = tl.log2(total)
            own = e / total[:, None]
            q = _mean_prediction(own, p, candidates, rest, highest_prediction, owner, INCLUDE_SELF)
            divergence = tl.sum(weighted(q, tl.log2(q) - (x - log_total[:, None])), 1)
            value = weighted(soft, t * t * LN_2 * divergence)
            slope = (soft * t * scale)[:, None] * (own - q)

            if (t != 1.0) & (hard != 0.0):  # the softmax at temperature 1
                x, e, total = softmax_terms(z, highest, tl.full((), 1.0, T))
                log_total = tl.log2(total)
            own_logit = tl.load(logits + row + label, mask=present, other=0.0).to(T)
            value += weighted(hard, (log_total - (own_logit - highest) * LOG2_E) * LN_2)
            value = tl.where(in_range, value, float("nan"))
            is_own = column[None, :] == label[:, None]
            slope += (hard * scale)[:, None] * (e / total[:, None] - is_own.to(T))
            tl.store(gradient + row[:, None] + column[None, :], slope.to(gradient.dtype.element_ty), mask=inside)
            if sample_loss is not None:
                tl.store(sample_loss + candidate * batch + sample, value, mask=present)
            losses += tl.where(index == p, sum_of_present(value, present), 0.0)

    _write_losses(loss, partial, losses, index, candidates, block, blocks, batch, MEAN)


@triton.jit(do_not_specialize=["candidates", "batch", "blocks", "labels_stride", "alpha_stride"])
def _rows_in_blocks(
    logits: tl.tensor, labels: tl.tensor, temperature: tl.tensor, alpha: tl.tensor, gradient: tl.tensor,
    sample_loss: tl.tensor, loss: tl.tensor, partial: tl.tensor,
    candidates: tl.tensor, batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, labels_stride: tl.tensor,
    alpha_stride: tl.tensor,
    INCLUDE_SELF: tl.constexpr, MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    CANDIDATES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Each program takes every `blocks`-th sample, COLUMNS classes at a time; before that it reads the rows once more.

    What is known of each candidate's row is in vectors of CANDIDATES.
    """
    block = tl.program_id(0)
    classes = classes // ALIGNMENT * ALIGNMENT
    column = tl.arange(0, COLUMNS)
    index = tl.arange(0, CANDIDATES)
    t = tl.load(temperature)
    rate = 1.0 / (t * LN_2)
    soft = tl.load(alpha + index * alpha_stride, mask=index < candidates, other=0.0)
    hard = 1.0 - soft
    losses = tl.zeros((CANDIDATES,), tl.float64)

    for sample in range(block, batch, blocks):
        highest_of = tl.zeros((CANDIDATES,), T)
        total_of = tl.full((CANDIDATES,), 1.0, T)
        plain_total_of = tl.full((CANDIDATES,), 1.0, T)
        for p in range(candidates):
            row = (tl.cast(p, tl.int64) * batch + sample) * classes
            highest_of_place = tl.full((COLUMNS,), LOWEST, T)
            total_of_place = tl.zeros((COLUMNS,), T)
            plain_total_of_place = tl.zeros((COLUMNS,), T)
            for start in range(0, classes, COLUMNS):
                c = start + column
                z = tl.load(logits + row + c, mask=c < classes, other=float("-inf")).to(T)
                total_of_place = add_to_softmax(z, highest_of_place, total_of_place, rate)
                plain_total_of_place = add_to_softmax(z, highest_of_place, plain_total_of_place, LOG2_E)
                highest_of_place = tl.where(z > highest_of_place, z, highest_of_place)
            here = index == p
            highest_of = tl.where(here, tl.max(highest_of_place, 0), highest_of)
            total_of = tl.where(here, total_softmax(highest_of_place, total_of_place, rate), total_of)
            plain_total = total_softmax(highest_of_place, plain_total_of_place, LOG2_E)
            plain_total_of = tl.where(here, plain_total, plain_total_of)

        present = index < candidates
        row_of = (index.to(tl.int64) * batch + sample) * classes
        label_of, in_range_of = load_labels(
            labels, index.to(tl.int64), labels_stride, index * 0 + sample, present, classes
        )
        scale_of = gradient_scale(batch, in_range_of, MEAN, T)
        divergence_of = tl.zeros((CANDIDATES,), T)
        for start in range(0, classes, COLUMNS):
            c = start + column
            rest = tl.zeros((COLUMNS,), T)
            highest_prediction = tl.zeros((COLUMNS,), T)
            owner = tl.full((COLUMNS,), -1, tl.int32)
            for p in range(candidates):
                row = (tl.cast(p, tl.int64) * batch + sample) * classes
                z = tl.load(logits + row + c, mask=c < classes, other=float("-inf")).to(T)
                prediction = tl.exp2((z - pick(highest_of, index, p)) * rate) / pick(total_of, index, p)
                rest, highest_prediction, owner = _add_prediction(prediction, p, rest, highest_prediction, owner)
            for p in range(candidates):
                row = (tl.cast(p, tl.int64) * batch + sample) * classes
                z = tl.load(logits + row + c, mask=c < classes, other=float("-inf")).to(T)
                highest, total = pick(highest_of, index, p), pick(total_of, index, p)
                x = (z - highest) * rate
                own = tl.exp2(x) / total
                q = _mean_prediction(own, p, candidates, rest, highest_prediction, owner, INCLUDE_SELF)
                divergence = tl.sum(weighted(q, tl.log2(q) - (x - tl.log2(total))), 0)
                divergence_of += tl.where(index == p, divergence, 0.0)
                plain = tl.exp2((z - highest) * LOG2_E) / pick(plain_total_of, index, p)
                is_own = c == tl.sum(tl.where(index == p, label_of, 0), 0)
                scale = pick(scale_of, index, p)
                slope = pick(soft, index, p) * t * scale * (own - q)
                slope += pick(hard, index, p) * scale * (plain - is_own.to(T))
                tl.store(gradient + row + c, slope.to(gradient.dtype.element_ty), mask=c < classes)

        own_logit = tl.load(logits + row_of + label_of, mask=present, other=0.0).to(T)
        values = weighted(soft, t * t * LN_2 * divergence_of)
        values += weighted(hard, (tl.log2(plain_total_of) - (own_logit - highest_of) * LOG2_E) * LN_2)
        values = tl.where(in_range_of, values, float("nan"))
        if sample_loss is not None:
            tl.store(sample_loss + index.to(tl.int64) * batch + sample, values, mask=present)
        losses += values.to(tl.float64)

    _write_losses(loss, partial, losses, index, candidates, block, blocks, batch, MEAN)


def peer_loss(
    logits: Tensor, labels: Tensor, temperature: Tensor, alpha: Tensor, include_self: bool, reduction: str
) -> tuple[Tensor, Tensor]:
    """Losses and gradients; see `tfkd_fast.ops.peer_loss`."""
    logits, labels = logits.contiguous(), labels.contiguous()
    shape = _more_programs(shape_of(logits), logits)
    blocks = shape.blocks(logits, together=True)
    mean, each = reduction == "mean", reduction == "none"
    gradient, loss = torch.empty_like(logits), new_loss(logits, reduction)
    total = None if each else loss
    partial = None
    if blocks > 1 and not each:
        partial = logits.new_empty((shape.candidates, blocks, 1), dtype=torch.float64)
    kernel = _rows_in_registers if shape.in_registers else _rows_in_blocks
    with on_device(logits):
        kernel[(blocks,)](
            logits, labels, temperature, alpha, gradient, loss if each else None, total, partial,
            shape.candidates, shape.batch, shape.classes, blocks,
            stride_of_candidates(labels, 1), stride_of_candidates(alpha, 0),
            INCLUDE_SELF=include_self, MEAN=mean, ALIGNMENT=shape.alignment, T=computed(logits)[1],
            CANDIDATES=triton.next_power_of_2(shape.candidates),
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=WARPS, maxnreg=registers(logits),
        )  # fmt: skip
        add_partial_sums(partial, (total, None, None, None), shape.candidates, blocks, shape.batch, mean)
    return loss, gradient


def _more_programs(shape: Shape, logits: Tensor) -> Shape:
    """Fewer rows a tile, down to a number a thread, while the samples would not occupy the device.

    There are no programs for other candidates that would, and fewer rows are more likely still cached at the second
    visit.
    """
    rows = shape.rows
    while rows > 1 and rows * shape.columns > 32 * WARPS and shape.batch < rows * programs_at_once(logits):
        rows //= 2
    return shape._replace(rows=rows)

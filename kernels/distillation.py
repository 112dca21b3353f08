"""The distillation loss of one or several teachers, and its gradient. The definition is `tfkd_fast.ops.distillation`.

Moves (M+1)*B*C logits in and B*C gradients out. Up to 1,024 classes a program holds several rows in registers: the
students' and those of one teacher at a time, so each logit is read once, and of the teachers only their mean is left
for the gradient. A longer row is read twice, the second time from the L2 cache, because its gradient needs the sums of
all the softmaxes first.
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
    add_partial_sums,
    add_to_softmax,
    computed,
    gradient_scale,
    load_labels,
    new_loss,
    on_device,
    pick,
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


@triton.jit
def _load_weight(
    weights: tl.tensor, candidate: tl.tensor, sample: tl.tensor, teacher: tl.tensor, teachers: tl.tensor,
    stride_p: tl.tensor, stride_b: tl.tensor, stride_m: tl.tensor, present: tl.tensor, T: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A teacher's weight for samples; 1/M where no weights are given."""
    if weights is None:
        weight = tl.where(present, 1.0 / teachers.to(T), 0.0)
    else:
        at = candidate * stride_p + sample.to(tl.int64) * stride_b + teacher * stride_m
        weight = tl.load(weights + at, mask=present, other=0.0)
    return weight


@triton.jit(
    do_not_specialize=[
        "batch", "blocks", "teachers", "labels_stride", "teachers_stride", "temperature_stride", "alpha_stride",
        "weights_stride_p", "weights_stride_b", "weights_stride_m",
    ]
)  # fmt: skip
def _rows_in_registers(
    logits: tl.tensor, teacher_logits: tl.tensor, labels: tl.tensor, weights: tl.tensor, temperature: tl.tensor,
    alpha: tl.tensor, gradient: tl.tensor, sample_loss: tl.tensor, loss: tl.tensor, partial: tl.tensor,
    batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, teachers: tl.tensor, labels_stride: tl.tensor,
    teachers_stride: tl.tensor, temperature_stride: tl.tensor, alpha_stride: tl.tensor,
    weights_stride_p: tl.tensor, weights_stride_b: tl.tensor, weights_stride_m: tl.tensor,
    MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    TEACHERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """`blocks` programs a candidate; each takes every `blocks`-th tile of ROWS samples."""
    candidate, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    classes = classes // ALIGNMENT * ALIGNMENT  # the same number, which the compiler now knows to be divisible
    column = tl.arange(0, COLUMNS)
    t = setting(temperature, candidate, temperature_stride, 1.0, T)
    soft = setting(alpha, candidate, alpha_stride, 1.0, T)
    hard = 1.0 - soft
    loss_sum = tl.zeros((), tl.float64)

    for first in range(block * ROWS, batch, blocks * ROWS):
        sample = first + tl.arange(0, ROWS)
        present = sample < batch
        inside = present[:, None] & (column < classes)[None, :]
        row = (candidate * batch + sample) * classes
        z = tl.load(logits + row[:, None] + column[None, :], mask=inside, other=float("-inf")).to(T)
        highest = tl.max(z, 1)
        x, e, total = softmax_terms(z, highest, t)
        log_total = tl.log2(total)

        divergence = tl.zeros((ROWS,), T)
        mass = tl.zeros((ROWS,), T)
        q = tl.zeros((ROWS, COLUMNS), T)  # the teachers' mean
        for m in range(teachers):
            weight = _load_weight(
                weights, candidate, sample, m, teachers, weights_stride_p, weights_stride_b, weights_stride_m,
                present, T,
            )  # fmt: skip
            teacher_row = candidate * teachers_stride + (tl.cast(m, tl.int64) * batch + sample) * classes
            at = teacher_logits + teacher_row[:, None] + column[None, :]
            taught = tl.load(at, mask=inside, other=float("-inf")).to(T)
            teacher_x, teacher_e, teacher_total = softmax_terms(taught, tl.max(taught, 1), t)
            p = teacher_e / teacher_total[:, None]
            shift = log_total - tl.log2(teacher_total)
            of_teacher = tl.sum(weighted(p, teacher_x - x + shift[:, None]), 1)
            divergence += weighted(weight, of_teacher)
            mass += weight
            q += weighted(weight[:, None], p)
        value = weighted(soft, t * t * LN_2 * divergence)

        if labels is None:
            scale = gradient_scale(batch, present, MEAN, T)
            factor = soft * t * scale
            slope = (factor * mass / total)[:, None] * e - factor[:, None] * q
        else:
            label, in_range = load_labels(labels, candidate, labels_stride, sample, present, classes)
            scale = gradient_scale(batch, in_range, MEAN, T)
            factor = soft * t * scale
            slope = (factor * mass / total)[:, None] * e - factor[:, None] * q
            if (t != 1.0) & (hard != 0.0):  # the softmax at temperature 1
                x, e, total = softmax_terms(z, highest, tl.full((), 1.0, T))
                log_total = tl.log2(total)
            own_logit = tl.load(logits + row + label, mask=present, other=0.0).to(T)
            value += weighted(hard, (log_total - (own_logit - highest) * LOG2_E) * LN_2)
            is_own = column[None, :] == label[:, None]
            slope += (hard * scale)[:, None] * (e / total[:, None] - is_own.to(T))
            value = tl.where(in_range, value, float("nan"))

        tl.store(gradient + row[:, None] + column[None, :], slope.to(gradient.dtype.element_ty), mask=inside)
        if sample_loss is not None:
            tl.store(sample_loss + candidate * batch + sample, value, mask=present)
        loss_sum += sum_of_present(value, present)

    write_sums(candidate, block, blocks, batch, loss_sum, 0.0, 0.0, 0.0, loss, None, None, None, partial, MEAN)


@triton.jit(
    do_not_specialize=[
        "batch", "blocks", "teachers", "labels_stride", "teachers_stride", "temperature_stride", "alpha_stride",
        "weights_stride_p", "weights_stride_b", "weights_stride_m",
    ]
)  # fmt: skip
def _rows_in_blocks(
    logits: tl.tensor, teacher_logits: tl.tensor, labels: tl.tensor, weights: tl.tensor, temperature: tl.tensor,
    alpha: tl.tensor, gradient: tl.tensor, sample_loss: tl.tensor, loss: tl.tensor, partial: tl.tensor,
    batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, teachers: tl.tensor, labels_stride: tl.tensor,
    teachers_stride: tl.tensor, temperature_stride: tl.tensor, alpha_stride: tl.tensor,
    weights_stride_p: tl.tensor, weights_stride_b: tl.tensor, weights_stride_m: tl.tensor,
    MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    TEACHERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """`blocks` programs a candidate; each takes every `blocks`-th sample, COLUMNS classes at a time.

    What is known of each teacher's row is in vectors of TEACHERS, a power of 2.
    """
    candidate, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    classes = classes // ALIGNMENT * ALIGNMENT
    column = tl.arange(0, COLUMNS)
    index = tl.arange(0, TEACHERS)
    t = setting(temperature, candidate, temperature_stride, 1.0, T)
    soft = setting(alpha, candidate, alpha_stride, 1.0, T)
    hard = 1.0 - soft
    rate = 1.0 / (t * LN_2)
    loss_sum = tl.zeros((), tl.float64)

    for sample in range(block, batch, blocks):
        row = (candidate * batch + sample) * classes
        highest_of_place = tl.full((COLUMNS,), LOWEST, T)
        total_of_place = tl.zeros((COLUMNS,), T)
        plain_total_of_place = tl.zeros((COLUMNS,), T)
        for start in range(0, classes, COLUMNS):
            c = start + column
            z = tl.load(logits + row + c, mask=c < classes, other=float("-inf")).to(T)
            total_of_place = add_to_softmax(z, highest_of_place, total_of_place, rate)
            if labels is not None:
                plain_total_of_place = add_to_softmax(z, highest_of_place, plain_total_of_place, LOG2_E)
            highest_of_place = tl.where(z > highest_of_place, z, highest_of_place)
        highest = tl.max(highest_of_place, 0)
        total = total_softmax(highest_of_place, total_of_place, rate)
        plain_total = total_softmax(highest_of_place, plain_total_of_place, LOG2_E)
        log_total = tl.log2(total)

        teacher_base = teacher_logits + candidate * teachers_stride + tl.cast(sample, tl.int64) * classes
        weight_of = _load_weight(
            weights, candidate, sample + index * 0, index, teachers, weights_stride_p, weights_stride_b,
            weights_stride_m, index < teachers, T,
        )  # fmt: skip
        highest_of = tl.zeros((TEACHERS,), T)
        total_of = tl.full((TEACHERS,), 1.0, T)
        for m in range(teachers):
            teacher_row = teacher_base + tl.cast(m, tl.int64) * batch * classes
            highest_of_place = tl.full((COLUMNS,), LOWEST, T)
            total_of_place = tl.zeros((COLUMNS,), T)
            for start in range(0, classes, COLUMNS):
                c = start + column
                taught = tl.load(teacher_row + c, mask=c < classes, other=float("-inf")).to(T)
                total_of_place = add_to_softmax(taught, highest_of_place, total_of_place, rate)
                highest_of_place = tl.where(taught > highest_of_place, taught, highest_of_place)
            highest_of = tl.where(index == m, tl.max(highest_of_place, 0), highest_of)
            total_of = tl.where(index == m, total_softmax(highest_of_place, total_of_place, rate), total_of)

        label = tl.zeros((), tl.int32)
        in_range = tl.full((), True, tl.int1)
        if labels is not None:
            labels_, in_ranges = load_labels(labels, candidate, labels_stride, sample + tl.arange(0, 1), True, classes)
            label, in_range = tl.sum(labels_, 0), tl.sum(in_ranges.to(tl.int32), 0) == 1
        scale = gradient_scale(batch, in_range, MEAN, T)
        factor = soft * t * scale
        softmax_factor = factor * tl.sum(weight_of, 0) / total
        hard_factor = hard * scale

        divergence_of_place = tl.zeros((COLUMNS,), T)
        for start in range(0, classes, COLUMNS):
            c = start + column
            z = tl.load(logits + row + c, mask=c < classes, other=float("-inf")).to(T)
            x = (z - highest) * rate
            slope = softmax_factor * tl.exp2(x)
            for m in range(teachers):
                weight = pick(weight_of, index, m)
                teacher_total = pick(total_of, index, m)
                teacher_row = teacher_base + tl.cast(m, tl.int64) * batch * classes
                taught = tl.load(teacher_row + c, mask=c < classes, other=float("-inf")).to(T)
                teacher_x = (taught - pick(highest_of, index, m)) * rate
                p = tl.exp2(teacher_x) / teacher_total
                difference = teacher_x - x + (log_total - tl.log2(teacher_total))
                divergence_of_place += weighted(weight, weighted(p, difference))
                slope -= factor * weighted(weight, p)
            if labels is not None:
                plain_e = tl.exp2((z - highest) * LOG2_E)
                slope += hard_factor * (plain_e / plain_total - (c == label).to(T))
            tl.store(gradient + row + c, slope.to(gradient.dtype.element_ty), mask=c < classes)

        value = weighted(soft, t * t * LN_2 * tl.sum(divergence_of_place, 0))
        if labels is not None:
            own = (tl.load(logits + row + label).to(T) - highest) * LOG2_E
            value += weighted(hard, (tl.log2(plain_total) - own) * LN_2)
            value = tl.where(in_range, value, float("nan"))
        if sample_loss is not None:
            tl.store(sample_loss + candidate * batch + sample, value)
        loss_sum += value.to(tl.float64)

    write_sums(candidate, block, blocks, batch, loss_sum, 0.0, 0.0, 0.0, loss, None, None, None, partial, MEAN)


def distillation_loss(
    logits: Tensor,
    teachers: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
    temperature: Tensor,
    alpha: Tensor,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient; see `tfkd_fast.ops.distillation_loss`. Teachers (M,B,C) or (P,M,B,C), weights (B,M)."""
    logits, teachers = logits.contiguous(), teachers.contiguous()
    labels = None if labels is None else labels.contiguous()
    shape = shape_of(logits)
    blocks, count = shape.blocks(logits), teachers.shape[-3]
    mean, each = reduction == "mean", reduction == "none"
    gradient, loss = torch.empty_like(logits), new_loss(logits, reduction)
    total = None if each else loss
    partial = None
    if blocks > 1 and not each:
        partial = logits.new_empty((shape.candidates, blocks, 1), dtype=torch.float64)
    weight_strides = (0, 0, 0) if weights is None else (stride_of_candidates(weights, 2), *weights.stride()[-2:])
    kernel = _rows_in_registers if shape.in_registers else _rows_in_blocks
    with on_device(logits):
        kernel[(shape.candidates * blocks,)](
            logits, teachers, labels, weights, temperature, alpha, gradient, loss if each else None, total, partial,
            shape.batch, shape.classes, blocks, count,
            stride_of_candidates(labels, 1), stride_of_candidates(teachers, 3),
            stride_of_candidates(temperature, 0), stride_of_candidates(alpha, 0), *weight_strides,
            MEAN=mean, ALIGNMENT=shape.alignment, T=computed(logits)[1],
            TEACHERS=1 if shape.in_registers else triton.next_power_of_2(count),
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=WARPS, maxnreg=registers(logits),
        )  # fmt: skip
        add_partial_sums(partial, (total, None, None, None), shape.candidates, blocks, shape.batch, mean)
    return loss, gradient

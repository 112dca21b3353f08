"""Triton kernels of `tfkd_fast.ops.distillation`: the loss of one or several teachers, and its gradient.

Moves (M+1)*B*C logits in and B*C gradients out. Up to 1,024 classes a program holds several rows in registers: the
students' and those of one teacher at a time, so each logit is read once, and of the teachers only their mean is left
for the gradient. A longer row is read twice, the second time from the L2 cache, because its gradient needs the sums of
all the softmaxes first.
"""

import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import (
    LN_2,
    LOG2_E,
    WARPS,
    candidate_and_block,
    divisible,
    load_labels,
    loss_dtypes,
    on_device,
    pick,
    registers,
    shape_of,
    stride_of_candidates,
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
    "batch", "blocks", "teachers", "labels_stride", "teachers_stride", "temperature_stride", "alpha_stride",
    "weights_stride_p", "weights_stride_b", "weights_stride_m",
]  # fmt: skip


@triton.jit
def _load_weight(
    weights: tl.tensor, candidate: tl.tensor, sample: tl.tensor, teacher: tl.tensor, teachers: tl.tensor,
    stride_p: tl.tensor, stride_b: tl.tensor, stride_m: tl.tensor, present: tl.tensor, T: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load a teacher's weights for samples; they are 1/M if no weights are given."""
    if weights is None:
        weight = tl.where(present, 1.0 / teachers.to(T), 0.0)
    else:
        at = candidate * stride_p + sample.to(tl.int64) * stride_b + tl.cast(teacher, tl.int64) * stride_m
        weight = tl.load(weights + at, mask=present, other=0.0)
    return weight


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _rows_in_registers(
    logits: tl.tensor, teacher_logits: tl.tensor, labels: tl.tensor, weights: tl.tensor, temperature: tl.tensor,
    alpha: tl.tensor, out: Results,
    batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, teachers: tl.tensor, labels_stride: tl.tensor,
    teachers_stride: tl.tensor, temperature_stride: tl.tensor, alpha_stride: tl.tensor,
    weights_stride_p: tl.tensor, weights_stride_b: tl.tensor, weights_stride_m: tl.tensor,
    MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    TEACHERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute every `blocks`-th tile of ROWS samples of a candidate, which has `blocks` programs."""
    candidate, block = candidate_and_block(blocks)
    classes = divisible(classes, ALIGNMENT)
    t = setting(temperature, candidate, temperature_stride, 1.0, T)
    soft = setting(alpha, candidate, alpha_stride, 1.0, T)
    hard = 1.0 - soft
    sums = no_sums()

    for first in range(block * ROWS, batch, blocks * ROWS):
        tile = tile_of(candidate, first, batch, classes, ROWS, COLUMNS)
        z = load_tile(logits, tile.row, tile, T)
        softmax = softmax_of(z, tl.max(z, 1), t)

        divergence = tl.zeros((ROWS,), T)
        mass = tl.zeros((ROWS,), T)
        q = tl.zeros((ROWS, COLUMNS), T)  # the teachers' mean
        for m in range(teachers):
            weight = _load_weight(
                weights, candidate, tile.sample, m, teachers, weights_stride_p, weights_stride_b, weights_stride_m,
                tile.present, T,
            )  # fmt: skip
            teacher_row = candidate * teachers_stride + (tl.cast(m, tl.int64) * batch + tile.sample) * classes
            teacher_z = load_tile(teacher_logits, teacher_row, tile, T)
            teacher = softmax_of(teacher_z, tl.max(teacher_z, 1), t)
            p = teacher.power / teacher.total[:, None]
            shift = softmax.log_total - teacher.log_total
            of_teacher = tl.sum(safe_product(p, teacher.exponent - softmax.exponent + shift[:, None]), 1)
            divergence += safe_product(weight, of_teacher)
            mass += weight
            q += safe_product(weight[:, None], p)
        value = soft_loss(soft, t, divergence)

        if labels is None:
            factor = soft * t * gradient_scale(batch, tile.present, MEAN, T)
            slope = (factor * mass / softmax.total)[:, None] * softmax.power - factor[:, None] * q
        else:
            label, in_range = load_labels(labels, candidate, labels_stride, tile.sample, tile.present, classes)
            scale = gradient_scale(batch, in_range, MEAN, T)
            factor = soft * t * scale
            slope = (factor * mass / softmax.total)[:, None] * softmax.power - factor[:, None] * q
            own_logit = tl.load(logits + tile.row + label, mask=tile.present, other=0.0).to(T)
            value, slope, _, _ = add_cross_entropy(
                value, slope, softmax, z, own_logit, label, tile, hard, scale, t, False
            )
            value = tl.where(in_range, value, float("nan"))

        loss = store_tile(out, tile, batch, value, slope)
        sums = Sums(sums.loss + loss, sums.correct, sums.true_probability, sums.entropy)

    write_sums(out, sums, candidate, block, blocks, batch, MEAN)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _rows_in_blocks(
    logits: tl.tensor, teacher_logits: tl.tensor, labels: tl.tensor, weights: tl.tensor, temperature: tl.tensor,
    alpha: tl.tensor, out: Results,
    batch: tl.tensor, classes: tl.tensor, blocks: tl.tensor, teachers: tl.tensor, labels_stride: tl.tensor,
    teachers_stride: tl.tensor, temperature_stride: tl.tensor, alpha_stride: tl.tensor,
    weights_stride_p: tl.tensor, weights_stride_b: tl.tensor, weights_stride_m: tl.tensor,
    MEAN: tl.constexpr, ALIGNMENT: tl.constexpr, T: tl.constexpr,
    TEACHERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute every `blocks`-th sample of a candidate, which has `blocks` programs, COLUMNS classes at a time.

    Values of the teachers' rows are held in vectors of TEACHERS, a power of 2.
    """
    candidate, block = candidate_and_block(blocks)
    classes = divisible(classes, ALIGNMENT)
    index = tl.arange(0, TEACHERS)
    t = setting(temperature, candidate, temperature_stride, 1.0, T)
    soft = setting(alpha, candidate, alpha_stride, 1.0, T)
    hard = 1.0 - soft
    rate = 1.0 / (t * LN_2)
    with_labels: tl.constexpr = labels is not None
    sums = no_sums()

    for sample in range(block, batch, blocks):
        row = (candidate * batch + sample) * classes
        highest, total, plain_total = online_softmax(logits + row, classes, rate, with_labels, T, COLUMNS)
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
            teacher_highest, teacher_total, _ = online_softmax(teacher_row, classes, rate, False, T, COLUMNS)
            highest_of = tl.where(index == m, teacher_highest, highest_of)
            total_of = tl.where(index == m, teacher_total, total_of)

        label = tl.zeros((), tl.int32)
        in_range = tl.full((), True, tl.int1)
        if with_labels:
            label, in_range = load_label(labels, candidate, labels_stride, sample, classes)
        scale = gradient_scale(batch, in_range, MEAN, T)
        factor = soft * t * scale
        softmax_factor = factor * tl.sum(weight_of, 0) / total
        hard_factor = hard * scale

        divergence_of_place = tl.zeros((COLUMNS,), T)
        for start in range(0, classes, COLUMNS):
            c = start + tl.arange(0, COLUMNS)
            z = load_classes(logits + row, c, classes, T)
            x = (z - highest) * rate
            slope = softmax_factor * tl.exp2(x)
            for m in range(teachers):
                weight = pick(weight_of, index, m)
                teacher_total = pick(total_of, index, m)
                teacher_row = teacher_base + tl.cast(m, tl.int64) * batch * classes
                teacher_x = (load_classes(teacher_row, c, classes, T) - pick(highest_of, index, m)) * rate
                p = tl.exp2(teacher_x) / teacher_total
                difference = teacher_x - x + (log_total - tl.log2(teacher_total))
                divergence_of_place += safe_product(weight, safe_product(p, difference))
                slope -= factor * safe_product(weight, p)
            if with_labels:
                plain_e = tl.exp2((z - highest) * LOG2_E)
                slope += hard_factor * (plain_e / plain_total - (c == label).to(T))
            store_gradient(out.gradient + row + c, slope, c < classes)

        value = soft_loss(soft, t, tl.sum(divergence_of_place, 0))
        if with_labels:
            own = (tl.load(logits + row + label).to(T) - highest) * LOG2_E
            value = tl.where(in_range, value + hard_loss(hard, tl.log2(plain_total), own), float("nan"))
        loss = store_loss(out, candidate, sample, batch, value)
        sums = Sums(sums.loss + loss, sums.correct, sums.true_probability, sums.entropy)

    write_sums(out, sums, candidate, block, blocks, batch, MEAN)


def distillation_loss(
    logits: Tensor,
    teachers: Tensor,
    labels: Tensor | None,
    weights: Tensor | None,
    temperature: Tensor,
    alpha: Tensor,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Compute loss and gradient of `tfkd_fast.ops.distillation_loss`; teachers have the axis M, weights are (B,M)."""
    logits, teachers = logits.contiguous(), teachers.contiguous()
    labels = None if labels is None else labels.contiguous()
    shape = shape_of(logits)
    blocks, count = shape.blocks(logits), teachers.shape[-3]
    out = new_results(logits, shape, blocks, reduction)
    weight_strides = (0, 0, 0) if weights is None else (stride_of_candidates(weights, 2), *weights.stride()[-2:])
    kernel = _rows_in_registers if shape.in_registers else _rows_in_blocks
    with on_device(logits):
        kernel[(shape.candidates * blocks,)](
            logits, teachers, labels, weights, temperature, alpha, out,
            shape.batch, shape.classes, blocks, count,
            stride_of_candidates(labels, 1), stride_of_candidates(teachers, 3),
            stride_of_candidates(temperature, 0), stride_of_candidates(alpha, 0), *weight_strides,
            MEAN=reduction == "mean", ALIGNMENT=shape.alignment, T=loss_dtypes(logits)[1],
            TEACHERS=1 if shape.in_registers else triton.next_power_of_2(count),
            ROWS=shape.rows, COLUMNS=shape.columns, num_warps=WARPS, maxnreg=registers(logits),
        )  # fmt: skip
        add_partial_sums(out, shape, blocks, reduction)
    return out.loss, out.gradient

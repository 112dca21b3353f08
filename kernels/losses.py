"""Shared parts of the Triton kernels of the losses: softmaxes, the hard term, and results with sums over the batch.

Exponents and logarithms are to the base 2, for which the hardware has instructions. Numbers are float32, or float64 for
float64 logits; sums over samples are float64, in a fixed order.

Up to 1,024 classes a program holds a tile of several rows in registers. A longer row is processed some classes at
a time.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import LN_2, LOG2_E, Shape, loss_dtypes, sum_of_present

# The lowest float32: its difference from a logit of -infinity is not NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def safe_product(weight: tl.tensor, value: tl.tensor) -> tl.tensor:
    """Return weight * value, and 0 for a weight of 0 even if the value is infinite or NaN."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def setting(
    values: tl.tensor, candidate: tl.tensor, stride: tl.tensor, default: tl.constexpr, T: tl.constexpr
) -> tl.tensor:
    """Load a candidate's value of a setting; None stands for the default."""
    if values is None:
        value = tl.full((), default, T)
    else:
        value = tl.load(values + candidate * stride)
    return value


@triton.jit
def gradient_scale(batch: tl.tensor, in_range: tl.tensor, MEAN: tl.constexpr, T: tl.constexpr) -> tl.tensor:
    """Return 1, or 1/B for the mean over the batch, and NaN for labels out of range."""
    scale = tl.full((), 1.0, T)
    if MEAN:
        scale = scale / batch.to(T)
    return tl.where(in_range, scale, float("nan"))


# What a kernel writes.


class Results(NamedTuple):
    """The results of a loss, which are one argument of a kernel; None for a result that is not wanted."""

    gradient: Tensor
    """Gradients in the shape (P,B,C) and dtype of the logits."""
    sample_loss: Tensor | None
    """Losses (P,B) of the samples, for reduction "none"."""
    total_loss: Tensor | None
    """Sums or means (P,) of the losses over the batch."""
    correct: Tensor | None
    """Numbers (P,) float32 of correct samples."""
    true_probability: Tensor | None
    """Sums (P,) float32 of the probabilities of the labels."""
    entropy: Tensor | None
    """Sums (P,) float32 of the entropies, nats."""
    partial: Tensor | None
    """Partial sums (P,blocks,1), or (P,blocks,4) with statistics, float64, of programs that share a batch."""

    @property
    def loss(self) -> Tensor:
        """The loss in the wanted reduction."""
        loss = self.total_loss if self.sample_loss is None else self.sample_loss
        assert loss is not None  # one of the two is always present
        return loss

    @property
    def statistics(self) -> tuple[Tensor, ...]:
        """The training statistics; empty if they are not wanted."""
        return tuple(one for one in (self.correct, self.true_probability, self.entropy) if one is not None)


def new_results(logits: Tensor, shape: Shape, blocks: int, reduction: str, with_stats: bool = False) -> Results:
    """Allocate the results of a loss, without initialisation, for `blocks` programs that share a batch."""
    each = reduction == "none"
    loss = logits.new_empty(logits.shape[:-1] if each else logits.shape[:-2], dtype=loss_dtypes(logits)[0])
    correct, true_probability, entropy = (
        logits.new_empty(logits.shape[:-2], dtype=torch.float32) if with_stats else None for _ in range(3)
    )
    partial = None
    if blocks > 1 and (with_stats or not each):
        partial = logits.new_empty((shape.candidates, blocks, 4 if with_stats else 1), dtype=torch.float64)
    return Results(
        gradient=torch.empty_like(logits),
        sample_loss=loss if each else None,
        total_loss=None if each else loss,
        correct=correct,
        true_probability=true_probability,
        entropy=entropy,
        partial=partial,
    )


class Sums(NamedTuple):
    """The sums of a program over its samples, in float64."""

    loss: tl.tensor
    """Sum of the losses of all samples."""
    correct: tl.tensor
    """Number of correct samples."""
    true_probability: tl.tensor
    """Sum of the probabilities of the labels."""
    entropy: tl.tensor
    """Sum of the entropies."""


@triton.jit
def no_sums() -> Sums:
    """Return sums of zero."""
    zero = tl.zeros((), tl.float64)
    return Sums(zero, zero, zero, zero)


@triton.jit
def write_loss(loss: tl.tensor, candidate: tl.tensor, total: tl.tensor, batch: tl.tensor, MEAN: tl.constexpr) -> None:
    """Write the sum, or the MEAN, of the losses of a candidate; the mean of no samples is NaN."""
    if loss is not None:
        if MEAN:
            total = tl.where(batch == 0, float("nan"), total / tl.maximum(batch, 1).to(tl.float64))
        tl.store(loss + candidate, total.to(loss.dtype.element_ty))


@triton.jit
def write_sums(
    out: Results, sums: Sums, candidate: tl.tensor, block: tl.tensor, blocks: tl.tensor, batch: tl.tensor,
    MEAN: tl.constexpr,
) -> None:  # fmt: skip
    """Write the results if one program has the whole batch, else the partial sums of this program."""
    with_stats: tl.constexpr = out.correct is not None
    if out.partial is None:
        write_loss(out.total_loss, candidate, sums.loss, batch, MEAN)
        if with_stats:
            tl.store(out.correct + candidate, sums.correct.to(tl.float32))
            tl.store(out.true_probability + candidate, sums.true_probability.to(tl.float32))
            tl.store(out.entropy + candidate, sums.entropy.to(tl.float32))
    else:
        count: tl.constexpr = 4 if with_stats else 1
        part = out.partial + (candidate * blocks + block) * count
        tl.store(part, sums.loss)
        if with_stats:
            tl.store(part + 1, sums.correct)
            tl.store(part + 2, sums.true_probability)
            tl.store(part + 3, sums.entropy)


@triton.jit
def sum_of_blocks(partial: tl.tensor, blocks: tl.tensor, stride: tl.constexpr, BLOCKS: tl.constexpr) -> tl.tensor:
    """Return the sum of one number of each block; `stride` is the distance between blocks."""
    index = tl.arange(0, BLOCKS)
    total = tl.zeros((BLOCKS,), tl.float64)
    for first in range(0, blocks, BLOCKS):
        block = first + index
        total += tl.load(partial + block * stride, mask=block < blocks, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["blocks", "batch"])
def _add_partial_sums(
    partial: tl.tensor, loss: tl.tensor, correct: tl.tensor, true_probability: tl.tensor, entropy: tl.tensor,
    blocks: tl.tensor, batch: tl.tensor, MEAN: tl.constexpr, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    """Add the partial sums of one candidate. With `Results` it would be compiled for each dtype of a gradient."""
    candidate = tl.program_id(0).to(tl.int64)
    count: tl.constexpr = 1 if correct is None else 4
    part = partial + candidate * blocks * count
    write_loss(loss, candidate, sum_of_blocks(part, blocks, count, BLOCKS), batch, MEAN)
    if correct is not None:
        tl.store(correct + candidate, sum_of_blocks(part + 1, blocks, count, BLOCKS).to(tl.float32))
        tl.store(true_probability + candidate, sum_of_blocks(part + 2, blocks, count, BLOCKS).to(tl.float32))
        tl.store(entropy + candidate, sum_of_blocks(part + 3, blocks, count, BLOCKS).to(tl.float32))


def add_partial_sums(results: Results, shape: Shape, blocks: int, reduction: str) -> None:
    """Add the partial sums of programs to results; there are none if each program had a whole batch."""
    if results.partial is None:
        return
    _add_partial_sums[(shape.candidates,)](
        results.partial, results.total_loss, results.correct, results.true_probability, results.entropy,
        blocks, shape.batch, MEAN=reduction == "mean", BLOCKS=128, num_warps=4,
    )  # fmt: skip


@triton.jit
def store_gradient(to: tl.tensor, slope: tl.tensor, mask: tl.tensor) -> None:
    """Write gradients in the dtype of the logits."""
    tl.store(to, slope.to(to.dtype.element_ty), mask=mask)


# Rows in registers.


class Tile(NamedTuple):
    """Several whole rows of a candidate."""

    candidate: tl.tensor
    """Number of the candidate."""
    sample: tl.tensor
    """Numbers (ROWS,) of the samples."""
    present: tl.tensor
    """Whether each sample (ROWS,) is in the batch."""
    row: tl.tensor
    """Offsets (ROWS,) of the rows."""
    column: tl.tensor
    """Numbers (COLUMNS,) of the classes."""
    inside: tl.tensor
    """Whether each entry (ROWS,COLUMNS) is a logit."""


@triton.jit
def tile_of(
    candidate: tl.tensor, first: tl.tensor, batch: tl.tensor, classes: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> Tile:  # fmt: skip
    """Return the tile of the ROWS samples from `first` on, of which those in the batch are present."""
    sample = first + tl.arange(0, ROWS)
    present = sample < batch
    column = tl.arange(0, COLUMNS)
    inside = present[:, None] & (column < classes)[None, :]
    return Tile(candidate, sample, present, (candidate * batch + sample) * classes, column, inside)


@triton.jit
def load_tile(logits: tl.tensor, row: tl.tensor, tile: Tile, T: tl.constexpr) -> tl.tensor:
    """Load the logits of a tile whose rows begin at `row`; they are -infinity beyond the last class."""
    return tl.load(logits + row[:, None] + tile.column[None, :], mask=tile.inside, other=float("-inf")).to(T)


class Softmax(NamedTuple):
    """The softmax of a tile of rows."""

    highest: tl.tensor
    """Highest logit of each row."""
    exponent: tl.tensor
    """Binary logarithm of the softmax without its normaliser."""
    power: tl.tensor
    """Softmax without its normaliser, 2 to the power of `exponent`."""
    total: tl.tensor
    """Normaliser of each row."""
    log_total: tl.tensor
    """Binary logarithm of the normaliser."""


@triton.jit
def softmax_of(logits: tl.tensor, highest: tl.tensor, temperature: tl.tensor) -> Softmax:
    """Compute the softmax of rows; `highest` is the highest logit of each row.

    Columns beyond the last class have the logit -infinity. The normaliser is NaN for a row without a softmax, which has
    a NaN, an infinity or no finite logit.
    """
    exponent = (logits - highest[:, None]) * (1.0 / (temperature * LN_2))
    power = tl.exp2(exponent)
    total = tl.sum(power, 1)
    return Softmax(highest, exponent, power, total, tl.log2(total))


@triton.jit
def soft_loss(soft: tl.tensor, temperature: tl.tensor, divergence: tl.tensor) -> tl.tensor:
    """Return the soft term of the loss from a divergence in bits."""
    return safe_product(soft, temperature * temperature * LN_2 * divergence)


@triton.jit
def hard_loss(hard: tl.tensor, log_total: tl.tensor, own: tl.tensor) -> tl.tensor:
    """Return the hard term of the loss; `own` is the exponent of the label's logit at temperature 1."""
    return safe_product(hard, (log_total - own) * LN_2)


@triton.jit
def add_cross_entropy(
    value: tl.tensor, slope: tl.tensor, softmax: Softmax, z: tl.tensor, own_logit: tl.tensor, label: tl.tensor,
    tile: Tile, hard: tl.tensor, scale: tl.tensor, temperature: tl.tensor, WITH_STATS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, Softmax, tl.tensor]:  # fmt: skip
    """Add the hard term to losses and gradients.

    It also returns the softmax at temperature 1 and the exponent of the label's logit. Without statistics, the softmax
    is at temperature 1 only if the hard term has a weight.
    """
    plain = softmax
    if (temperature != 1.0) & (WITH_STATS | (hard != 0.0)):
        plain = softmax_of(z, softmax.highest, tl.full((), 1.0, z.dtype))
    own = (own_logit - plain.highest) * LOG2_E
    is_own = tile.column[None, :] == label[:, None]
    slope += (hard * scale)[:, None] * (plain.power / plain.total[:, None] - is_own.to(z.dtype))
    return value + hard_loss(hard, plain.log_total, own), slope, plain, own


@triton.jit
def store_tile(out: Results, tile: Tile, batch: tl.tensor, value: tl.tensor, slope: tl.tensor) -> tl.tensor:
    """Write the gradients of a tile, and its losses if they are wanted; return the sum of its losses."""
    store_gradient(out.gradient + tile.row[:, None] + tile.column[None, :], slope, tile.inside)
    if out.sample_loss is not None:
        tl.store(out.sample_loss + tile.candidate * batch + tile.sample, value, mask=tile.present)
    return sum_of_present(value, tile.present)


# Long rows.


@triton.jit
def load_classes(row: tl.tensor, c: tl.tensor, classes: tl.tensor, T: tl.constexpr) -> tl.tensor:
    """Load the logits of some classes of the row at a pointer; they are -infinity beyond the last class."""
    return tl.load(row + c, mask=c < classes, other=float("-inf")).to(T)


@triton.jit
def _with_logits(logits: tl.tensor, highest: tl.tensor, total: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Add one logit in each place to an online softmax, with one exponential.

    `total` is the sum of exp2((logit - highest) * scale); it begins as 0 with highest = LOWEST.
    """
    power = tl.exp2(-tl.abs(logits - highest) * scale)
    return tl.where(logits > highest, total * power + 1.0, total + power)


@triton.jit
def _total_of_places(highest: tl.tensor, total: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Return the sum over all places of an online softmax; 0 or NaN for a row without a softmax."""
    return tl.sum(total * tl.exp2((highest - tl.max(highest, 0)) * scale), 0)


@triton.jit
def online_softmax(
    row: tl.tensor, classes: tl.tensor, rate: tl.tensor,
    WITH_PLAIN: tl.constexpr, T: tl.constexpr, COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return the highest logit of a row and the normalisers of its softmax at `rate` and, WITH_PLAIN, at temperature 1.

    `rate` is log2(e) / temperature.
    """
    highest = tl.full((COLUMNS,), LOWEST, T)
    total = tl.zeros((COLUMNS,), T)
    plain_total = tl.zeros((COLUMNS,), T)
    for start in range(0, classes, COLUMNS):
        z = load_classes(row, start + tl.arange(0, COLUMNS), classes, T)
        total = _with_logits(z, highest, total, rate)
        if WITH_PLAIN:
            plain_total = _with_logits(z, highest, plain_total, LOG2_E)
        highest = tl.where(z > highest, z, highest)
    return tl.max(highest, 0), _total_of_places(highest, total, rate), _total_of_places(highest, plain_total, LOG2_E)


@triton.jit
def load_label(
    labels: tl.tensor, candidate: tl.tensor, stride: tl.tensor, sample: tl.tensor, classes: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Load the label of one sample, or 0 if it is out of range; return it and whether it is in range."""
    label = tl.load(labels + candidate * stride + sample)
    in_range = (label >= 0) & (label < classes)
    return tl.where(in_range, label, 0).to(tl.int32), in_range


@triton.jit
def store_loss(out: Results, candidate: tl.tensor, sample: tl.tensor, batch: tl.tensor, value: tl.tensor) -> tl.tensor:
    """Write the loss of one sample if it is wanted, and return it in float64."""
    if out.sample_loss is not None:
        tl.store(out.sample_loss + candidate * batch + sample, value)
    return value.to(tl.float64)

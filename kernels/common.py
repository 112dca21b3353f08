"""What the Triton kernels share: softmax statistics, terms of weight zero, sums over a batch, and how work is divided.

Exponents and logarithms are to the base 2, for which the hardware has instructions. Numbers are float32, or float64 for
float64 logits; sums over samples are float64, in a fixed order.

A label out of range is not noticed by a kernel in Triton's normal mode: no memory is read or written for it, and what
is computed from it is NaN.

Every value of a kernel is annotated as `tl.tensor`: pointers, numbers, tiles, and what may be None. The compiler reads
no annotation but `tl.constexpr`. A dtype such as `tl.int32` must not stand there: it would fix the type of an argument.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# The lowest number of float32: a difference from it is a number even for a logit of -infinity.
LOWEST = tl.constexpr(-3.4028234663852886e38)

# Rows.


@triton.jit
def weighted(weight: tl.tensor, value: tl.tensor) -> tl.tensor:
    """weight * value, and 0 for a weight of 0 even where the value is infinite or NaN."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def softmax_terms(
    logits: tl.tensor, highest: tl.tensor, temperature: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Of a tile of rows: log2 of the softmax without its normaliser, the same as a power of 2, and the normaliser.

    Classes beyond the last have the logit -infinity. A row without a softmax, because it has a NaN, an infinity or no
    finite logit, gets a normaliser of NaN.
    """
    exponent = (logits - highest[:, None]) * (1.0 / (temperature * LN_2))
    power = tl.exp2(exponent)
    return exponent, power, tl.sum(power, 1)


@triton.jit
def add_to_softmax(logits: tl.tensor, highest: tl.tensor, total: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Online softmax: what `total` is with another logit in each place, and one exponential for it.

    `total` is a sum of exp2((logit - highest) * scale). It begins with highest = LOWEST and total = 0.
    """
    power = tl.exp2(-tl.abs(logits - highest) * scale)
    return tl.where(logits > highest, total * power + 1.0, total + power)


@triton.jit
def total_softmax(highest: tl.tensor, total: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """The online sums of all places together; 0 or NaN for a row without a softmax."""
    return tl.sum(total * tl.exp2((highest - tl.max(highest, 0)) * scale), 0)


@triton.jit
def pick(values: tl.tensor, index: tl.tensor, at: tl.tensor) -> tl.tensor:
    """The entry `at` of a small vector, where `index` counts its entries."""
    return tl.sum(tl.where(index == at, values, 0.0), 0)


@triton.jit
def setting(
    values: tl.tensor, candidate: tl.tensor, stride: tl.tensor, default: tl.constexpr, T: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """A candidate's value of a setting; None has the default."""
    if values is None:
        value = tl.full((), default, T)
    else:
        value = tl.load(values + candidate * stride)
    return value


@triton.jit
def load_labels(
    labels: tl.tensor, candidate: tl.tensor, stride: tl.tensor, samples: tl.tensor, present: tl.tensor,
    classes: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Labels of samples, 0 for those that are out of range, and which are in range."""
    label = tl.load(labels + candidate * stride + samples, mask=present, other=0)
    in_range = (label >= 0) & (label < classes)
    return tl.where(in_range, label, 0).to(tl.int32), in_range


@triton.jit
def sum_of_present(values: tl.tensor, present: tl.tensor) -> tl.tensor:
    """In float64, over the samples of a tile."""
    return tl.sum(tl.where(present, values.to(tl.float64), 0.0), 0)


@triton.jit
def gradient_scale(batch: tl.tensor, in_range: tl.tensor, MEAN: tl.constexpr, T: tl.constexpr) -> tl.tensor:
    """1, or 1/B for the mean over the batch; NaN where the label is out of range."""
    scale = tl.full((), 1.0, T)
    if MEAN:
        scale = scale / batch.to(T)
    return tl.where(in_range, scale, float("nan"))


# Sums over a batch.


@triton.jit
def write_loss(loss: tl.tensor, candidate: tl.tensor, total: tl.tensor, batch: tl.tensor, MEAN: tl.constexpr) -> None:
    """The mean of no samples is NaN."""
    if loss is not None:
        if MEAN:
            total = tl.where(batch == 0, float("nan"), total / tl.maximum(batch, 1).to(tl.float64))
        tl.store(loss + candidate, total.to(loss.dtype.element_ty))


@triton.jit
def write_sums(
    candidate: tl.tensor, block: tl.tensor, blocks: tl.tensor, batch: tl.tensor, loss_sum: tl.tensor,
    correct_sum: tl.tensor, true_probability_sum: tl.tensor, entropy_sum: tl.tensor,
    loss: tl.tensor, correct: tl.tensor, true_probability: tl.tensor, entropy: tl.tensor, partial: tl.tensor,
    MEAN: tl.constexpr,
) -> None:  # fmt: skip
    """The results, where one program has the whole batch; or else one program's part of them."""
    with_stats: tl.constexpr = correct is not None
    if partial is None:
        write_loss(loss, candidate, loss_sum, batch, MEAN)
        if with_stats:
            tl.store(correct + candidate, correct_sum.to(tl.float32))
            tl.store(true_probability + candidate, true_probability_sum.to(tl.float32))
            tl.store(entropy + candidate, entropy_sum.to(tl.float32))
    else:
        sums: tl.constexpr = 4 if with_stats else 1
        part = partial + (candidate * blocks + block) * sums
        tl.store(part, loss_sum)
        if with_stats:
            tl.store(part + 1, correct_sum)
            tl.store(part + 2, true_probability_sum)
            tl.store(part + 3, entropy_sum)


@triton.jit
def sum_of_blocks(partial: tl.tensor, blocks: tl.tensor, stride: tl.tensor, BLOCKS: tl.constexpr) -> tl.tensor:
    """The sum of one number of each block; `stride` is from a block to the next."""
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
    """One program a candidate."""
    candidate = tl.program_id(0).to(tl.int64)
    sums: tl.constexpr = 1 if correct is None else 4
    part = partial + candidate * blocks * sums
    write_loss(loss, candidate, sum_of_blocks(part, blocks, sums, BLOCKS), batch, MEAN)
    if correct is not None:
        tl.store(correct + candidate, sum_of_blocks(part + 1, blocks, sums, BLOCKS).to(tl.float32))
        tl.store(true_probability + candidate, sum_of_blocks(part + 2, blocks, sums, BLOCKS).to(tl.float32))
        tl.store(entropy + candidate, sum_of_blocks(part + 3, blocks, sums, BLOCKS).to(tl.float32))


# The host's side.

WARPS = 8
# Of a thread, so that two programs are on a multiprocessor. A tile of 2,048 numbers, 8 a thread, leaves room for the
# tiles that a loss with all its terms holds; a loss with few terms has room for twice that.
REGISTERS = 128
TILE, LARGE_TILE = 2048, 4096
MOST_ROWS_OF_TILE = 64  # what is known of a row takes registers, too
MOST_CLASSES_IN_REGISTERS = 1024
# Longer rows are visited in blocks of this many classes: 16 bytes of a thread's half-precision logits at a time.
CLASSES_OF_BLOCK = 2048
# One program serves a candidate where it takes no more than a few rounds: a second launch takes longer than those.
FEW_ROUNDS = 8
PROGRAMS_OF_MULTIPROCESSOR = 4
PROGRAMS_OF_INTERPRETER = 8


class Shape(NamedTuple):
    """How a kernel divides (P,B,C) logits."""

    candidates: int
    batch: int
    classes: int
    columns: int
    """Of a tile: a power of 2, at least `classes` when the rows are in registers."""
    rows: int
    """Of a tile: 1 when a row takes several tiles."""
    alignment: int
    """A power of 2 that divides the classes, up to 8: so many logits may be loaded at once."""

    @property
    def in_registers(self) -> bool:
        return self.columns >= self.classes

    def blocks(self, tensor: Tensor, *, together: bool = False) -> int:
        """Programs that share a batch, each for one candidate, or with `together` for all candidates."""
        rounds = -(-self.batch // self.rows)
        visits, programs = (rounds * self.candidates, 1) if together else (rounds, self.candidates)
        return 1 if visits <= FEW_ROUNDS else max(1, min(rounds, programs_at_once(tensor) // programs))


def programs_at_once(tensor: Tensor) -> int:
    """Programs that fill the device, and no more: fewer parts of sums are left to add."""
    if not tensor.is_cuda:
        return PROGRAMS_OF_INTERPRETER
    return PROGRAMS_OF_MULTIPROCESSOR * torch.cuda.get_device_properties(tensor.device).multi_processor_count


def shape_of(logits: Tensor, tile: int = TILE) -> Shape:
    """The shape for logits (B,C) or (P,B,C), in tiles of so many numbers."""
    batch, classes = logits.shape[-2:]
    candidates = logits.shape[0] if logits.dim() == 3 else 1
    alignment = min(classes & -classes, 8)
    if classes > MOST_CLASSES_IN_REGISTERS:
        return Shape(candidates, batch, classes, CLASSES_OF_BLOCK, 1, alignment)
    columns = triton.next_power_of_2(max(classes, 16))
    if logits.dtype == torch.float64:
        tile //= 4  # a number takes two registers, and its logarithm many more
    if alignment < 4:
        tile = min(tile, 512 * alignment)  # what is not loaded together has an address each, which takes two registers
    rows = max(1, min(tile // columns, MOST_ROWS_OF_TILE))
    return Shape(candidates, batch, classes, columns, rows, alignment)


def computed(logits: Tensor) -> tuple[torch.dtype, tl.dtype]:
    """The dtype of the loss, for torch and for Triton."""
    return (torch.float64, tl.float64) if logits.dtype == torch.float64 else (torch.float32, tl.float32)


def registers(logits: Tensor) -> int:
    """Of a thread; all that it can have for float64, where a number takes two."""
    return 255 if logits.dtype == torch.float64 else REGISTERS


def on_device(tensor: Tensor) -> torch.cuda.device_of:
    """A context in which kernels run where the tensor is; on the CPU, Triton's interpreter, it does nothing."""
    return torch.cuda.device_of(tensor)


def stride_of_candidates(tensor: Tensor | None, own_axes: int) -> int:
    """From a candidate to the next; 0 where all have the same."""
    return tensor.stride(0) if tensor is not None and tensor.dim() > own_axes else 0


def new_loss(logits: Tensor, reduction: str) -> Tensor:
    shape = logits.shape[:-1] if reduction == "none" else logits.shape[:-2]
    return logits.new_empty(shape, dtype=computed(logits)[0])


def add_partial_sums(
    partial: Tensor | None,
    results: Sequence[Tensor | None],
    candidates: int,
    blocks: int,
    batch: int,
    mean: bool,
) -> None:
    """Results from the parts (P, blocks, sums) that programs have left; nothing to do where each had a whole batch."""
    if partial is None:
        return
    _add_partial_sums[(candidates,)](partial, *results, blocks, batch, MEAN=mean, BLOCKS=128, num_warps=4)


def device_values(values: Sequence[float], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Host numbers on the device of a tensor. They travel with a launch: no wait, and a captured graph has them."""
    on_device_ = torch.zeros(len(values), dtype=dtype, device=like.device)
    torch._foreach_add_(on_device_.unbind(), list(values))
    return on_device_

"""Shared parts of the Triton kernels: labels, sums over samples, and the division of work by the host.

Numbers are float32, or float64 for float64 logits; sums over samples are float64, in a fixed order.

A kernel does not report a label that is out of range: no memory is read or written for it, and results that depend on
it are NaN.

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


@triton.jit
def divisible(classes: tl.tensor, ALIGNMENT: tl.constexpr) -> tl.tensor:
    """Return the number of classes in a form that tells the compiler that ALIGNMENT divides it."""
    return classes // ALIGNMENT * ALIGNMENT


@triton.jit
def candidate_and_block(blocks: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the candidate that a program serves, and its number among the `blocks` programs of that candidate."""
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks


@triton.jit
def pick(values: tl.tensor, index: tl.tensor, at: tl.tensor) -> tl.tensor:
    """Return the entry `at` of a small vector, whose entries are numbered by `index`."""
    return tl.sum(tl.where(index == at, values, 0.0), 0)


@triton.jit
def load_labels(
    labels: tl.tensor, candidate: tl.tensor, stride: tl.tensor, samples: tl.tensor, present: tl.tensor,
    classes: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Load the labels of samples, with 0 for labels out of range; return them and whether each is in range."""
    label = tl.load(labels + candidate * stride + samples, mask=present, other=0)
    in_range = (label >= 0) & (label < classes)
    return tl.where(in_range, label, 0).to(tl.int32), in_range


@triton.jit
def sum_of_present(values: tl.tensor, present: tl.tensor) -> tl.tensor:
    """Sum values in float64 over the present samples of a tile."""
    return tl.sum(tl.where(present, values.to(tl.float64), 0.0), 0)


# The host's side.

WARPS = 8
# Registers of a thread, such that two programs fit on a multiprocessor. A tile of 2,048 numbers, 8 for each thread,
# leaves room for the tiles that a loss with all its terms holds; a loss with few terms has room for twice that.
REGISTERS = 128
TILE, LARGE_TILE = 2048, 4096
MOST_ROWS_OF_TILE = 64  # values of a row take registers, too
MOST_CLASSES_IN_REGISTERS = 1024
# Longer rows are visited in blocks of this many classes: 16 bytes of a thread's half-precision logits at a time.
CLASSES_OF_BLOCK = 2048
# One program serves a candidate if it takes no more than a few rounds: a second launch would take longer.
FEW_ROUNDS = 8
PROGRAMS_OF_MULTIPROCESSOR = 4
PROGRAMS_OF_INTERPRETER = 8


class Shape(NamedTuple):
    """The division of logits (P,B,C) into tiles."""

    candidates: int
    """Number of candidates P."""
    batch: int
    """Number of samples B."""
    classes: int
    """Number of classes C."""
    columns: int
    """Columns of a tile: a power of 2, at least `classes` if rows are held in registers."""
    rows: int
    """Rows of a tile: 1 if a row takes several tiles."""
    alignment: int
    """A power of 2 up to 8 that divides the classes: the number of logits that may be loaded at once."""

    @property
    def in_registers(self) -> bool:
        """Whether a program holds whole rows in registers."""
        return self.columns >= self.classes

    def blocks(self, tensor: Tensor, *, all_candidates: bool = False) -> int:
        """Return the number of programs that share a batch, each for one candidate or for `all_candidates`."""
        rounds = -(-self.batch // self.rows)
        visits, programs = (rounds * self.candidates, 1) if all_candidates else (rounds, self.candidates)
        return 1 if visits <= FEW_ROUNDS else max(1, min(rounds, programs_at_once(tensor) // programs))


def programs_at_once(tensor: Tensor) -> int:
    """Return the number of programs that fill the device; more would only leave more partial sums to add."""
    if not tensor.is_cuda:
        return PROGRAMS_OF_INTERPRETER
    return PROGRAMS_OF_MULTIPROCESSOR * torch.cuda.get_device_properties(tensor.device).multi_processor_count


def shape_of(logits: Tensor, tile: int = TILE) -> Shape:
    """Return the division of logits (B,C) or (P,B,C) into tiles of at most `tile` numbers."""
    batch, classes = logits.shape[-2:]
    candidates = logits.shape[0] if logits.dim() == 3 else 1
    alignment = min(classes & -classes, 8)
    if classes > MOST_CLASSES_IN_REGISTERS:
        return Shape(candidates, batch, classes, CLASSES_OF_BLOCK, 1, alignment)
    columns = triton.next_power_of_2(max(classes, 16))
    if logits.dtype == torch.float64:
        tile //= 4  # a number takes two registers, and its logarithm many more
    if alignment < 4:
        tile = min(tile, 512 * alignment)  # numbers that are loaded one by one need an address of two registers each
    rows = max(1, min(tile // columns, MOST_ROWS_OF_TILE))
    return Shape(candidates, batch, classes, columns, rows, alignment)


def loss_dtypes(logits: Tensor) -> tuple[torch.dtype, tl.dtype]:
    """Return the dtype of the loss, for torch and for Triton."""
    return (torch.float64, tl.float64) if logits.dtype == torch.float64 else (torch.float32, tl.float32)


def registers(logits: Tensor) -> int:
    """Return the limit of registers of a thread: the maximum for float64, where a number takes two."""
    return 255 if logits.dtype == torch.float64 else REGISTERS


def on_device(tensor: Tensor) -> torch.cuda.device_of:
    """Return a context in which kernels run on the device of a tensor; it does nothing on the CPU."""
    return torch.cuda.device_of(tensor)


def stride_of_candidates(tensor: Tensor | None, own_axes: int) -> int:
    """Return the stride from one candidate to the next; 0 if all candidates share the tensor."""
    return tensor.stride(0) if tensor is not None and tensor.dim() > own_axes else 0


def device_values(values: Sequence[float], like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return host numbers on the device of a tensor. They are launch arguments, so the host does not wait."""
    on_device_ = torch.zeros(len(values), dtype=dtype, device=like.device)
    torch._foreach_add_(on_device_.unbind(), list(values))
    return on_device_

"""Triton kernel of `tfkd_fast.ops.rank_binned_targets`: class tables from the ranks of similarities.

The rank of a class is the number of classes before it, which a program counts for some classes of one row: C^2
comparisons a row, all from the caches, and C numbers written. That is faster than a sort up to a few thousand classes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import device_values, loss_dtypes, on_device, stride_of_candidates

# 128 classes of a program are compared with 32 at a time: 32 comparisons a thread in 4 warps.
CLASSES, OTHERS = 128, 32


@triton.jit
def _share(true_mass: tl.tensor, bin_mass: tl.tensor, size: tl.tensor, S: tl.constexpr, T: tl.constexpr) -> tl.tensor:
    """Return the mass of a class in a bin; every step is rounded to the dtype S of the table."""
    rest = (1.0 - true_mass.to(T)).to(S)
    in_bin = (rest.to(T) * bin_mass.to(T)).to(S)
    if tl.float64 == T:
        share = in_bin / size.to(T)
    else:
        share = tl.div_rn(in_bin.to(T), size.to(T))
    return share.to(S)


@triton.jit(do_not_specialize=["bins", "tables_of_similarity", "true_mass_stride", "bin_masses_stride"])
def _fill_tables(
    similarity: tl.tensor, true_mass: tl.tensor, bin_masses: tl.tensor, starts: tl.tensor, table: tl.tensor,
    classes: tl.tensor, bins: tl.tensor, tables_of_similarity: tl.tensor, true_mass_stride: tl.tensor,
    bin_masses_stride: tl.tensor,
    T: tl.constexpr, CLASSES: tl.constexpr, OTHERS: tl.constexpr,
) -> None:  # fmt: skip
    """Rank CLASSES classes of a row of similarities, and write their masses in all tables made from it."""
    S: tl.constexpr = table.dtype.element_ty
    parts = tl.cdiv(classes, CLASSES)
    row = tl.program_id(0) // parts
    label = row % classes
    of_row = similarity + row.to(tl.int64) * classes
    c = tl.program_id(0) % parts * CLASSES + tl.arange(0, CLASSES)
    own = tl.load(of_row + c, mask=c < classes, other=0.0).to(T)[:, None]

    before = tl.zeros((CLASSES,), tl.int32)
    for start in range(0, classes, OTHERS):
        d = start + tl.arange(0, OTHERS)
        other = tl.load(of_row + d, mask=d < classes, other=0.0).to(T)[None, :]
        higher = (other > own) | ((own != own) & (other == other))
        equal = (other == own) | ((own != own) & (other != other))
        first = higher | (equal & (d[None, :] < c[:, None]))
        before += tl.sum((first & (d < classes)[None, :] & (d != label)[None, :]).to(tl.int32), 1)
    rank = tl.where(c == label, 0, before + 1)

    bin_ = tl.full((CLASSES,), -1, tl.int32)
    for start in range(0, bins, OTHERS):
        j = start + tl.arange(0, OTHERS)
        start_of = tl.load(starts + j, mask=j < bins, other=0)
        bin_ += tl.sum(((start_of[None, :] <= rank[:, None]) & (j < bins)[None, :]).to(tl.int32), 1)
    in_bin = (bin_ >= 0) & (c < classes)
    size = tl.load(starts + bin_ + 1, mask=in_bin, other=1) - tl.load(starts + bin_, mask=in_bin, other=0)

    first_table = (row // classes).to(tl.int64) * tables_of_similarity
    for p in range(tables_of_similarity):
        at = first_table + p
        mass_of_true = tl.load(true_mass + at * true_mass_stride)
        mass_of_bin = tl.load(bin_masses + at * bin_masses_stride + bin_, mask=in_bin, other=0.0)
        mass = tl.where(rank == 0, mass_of_true, _share(mass_of_true, mass_of_bin, size, S, T))
        tl.store(table + (at * classes + label) * classes + c, mass, mask=c < classes)


def rank_binned_targets(similarity: Tensor, true_mass: Tensor, bin_masses: Tensor, bin_starts: list[int]) -> Tensor:
    """Compute `tfkd_fast.ops.rank_binned_targets` for tensors that have the dtype of `similarity`."""
    similarity, true_mass, bin_masses = similarity.contiguous(), true_mass.contiguous(), bin_masses.contiguous()
    classes = similarity.shape[-1]
    lead = similarity.shape[:-2] or true_mass.shape or bin_masses.shape[:-1]
    table = similarity.new_empty((*lead, classes, classes))
    if table.numel() == 0:
        return table
    similarities = similarity.shape[0] if similarity.dim() == 3 else 1
    columns = min(triton.next_power_of_2(classes), CLASSES)
    programs = similarities * classes * triton.cdiv(classes, columns)
    with on_device(similarity):
        starts = device_values([*bin_starts, classes], similarity, torch.int32)
        _fill_tables[(programs,)](
            similarity, true_mass, bin_masses, starts, table,
            classes, len(bin_starts), (lead[0] if lead else 1) // similarities,
            stride_of_candidates(true_mass, 0), stride_of_candidates(bin_masses, 1),
            T=loss_dtypes(similarity)[1], CLASSES=columns, OTHERS=OTHERS, num_warps=4,
        )  # fmt: skip
    return table

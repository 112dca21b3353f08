"""Triton kernels of `tfkd_fast.ops.candidate_metrics`: accuracy, likelihood and calibration of candidates.

`_survey` reads the logits once, for all metrics but the calibrated ones. With b = 1/T the NLL of a sample is
log sum_c exp(b z_c) - b z_y, convex in b as is the prior, so that the derivative of their sum passes zero once; for a
sample it is E[z] - z_y. `_narrow` takes it at 7 inner points of a bracket of log b; each of 6 passes leaves an eighth
of the bracket, together 2e-5 of log T. `_calibrate` takes the NLL there.

A program serves one candidate, and a share of the samples that depends on N and C alone: a candidate gets the same in
any company. Parts of sums are added in a fixed order by the kernel that needs them. Within a tile the logits are read
again for each point, from the first-level cache; the exponentials take longer than that.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import (
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
    sum_of_present,
)

METRICS = 9
MOST_BLOCKS = 64  # a candidate: each program adds up the parts of all
BINS = tl.constexpr(15)
SECTIONS = tl.constexpr(8)  # of a bracket, a pass
PASSES = 6
HIGHEST = tl.constexpr(math.log(20.0))  # of log b, and -HIGHEST is the lowest
FAR = tl.constexpr(-1e30)  # logits further below the highest have no probability, and 0 * FAR is 0

# Rows of the sums over the samples: of `_survey` these and, from GAPS, a row a bin; of `_narrow` SECTIONS.
SUMS = tl.constexpr(32)
NOT_FINITE, TOP1, TOP5, NLL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
BRIER, ENTROPY, CONFIDENCE, GAPS = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6), tl.constexpr(16)


@triton.jit
def _load_tile(
    logits: tl.tensor, row: tl.tensor, first: tl.tensor, classes: tl.tensor, present: tl.tensor, T: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Load the logits of some classes of some rows, -infinity beyond the last class; return them and the classes."""
    c = first + tl.arange(0, COLUMNS)
    inside = present[:, None] & (c < classes)[None, :]
    return tl.load(logits + row[:, None] + c[None, :], mask=inside, other=float("-inf")).to(T), c[None, :]


@triton.jit
def _subtract_highest(logits: tl.tensor, highest: tl.tensor) -> tl.tensor:
    return tl.maximum(logits - highest[:, None], FAR)


@triton.jit
def _sums_over_blocks(parts: tl.tensor, blocks: tl.tensor, LENGTH: tl.constexpr, BLOCKS: tl.constexpr) -> tl.tensor:
    """Add the partial sums (LENGTH,blocks) of all blocks to sums (LENGTH,)."""
    block = tl.arange(0, BLOCKS)[None, :]
    at = tl.arange(0, LENGTH)[:, None].to(tl.int64) * blocks + block
    return tl.sum(tl.load(parts + at, mask=block < blocks, other=0.0), 1)


@triton.jit
def _log_of_sum(others: tl.tensor, own: tl.tensor) -> tl.tensor:
    """Return log(others + exp(own)) in float64, also where `others` are small beside the 1 of an `own` of 0."""
    others = others.to(tl.float64)
    total = others + tl.exp(own)
    rounding = (total - tl.exp(own)) - others
    return tl.log(total) - rounding / total


@triton.jit
def _bracket(
    lows: tl.tensor, slopes: tl.tensor, candidate: tl.tensor, candidates: tl.tensor, pass_: tl.tensor, block: tl.tensor,
    blocks: tl.tensor, BLOCKS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the lower end of the bracket of log b in this pass, and its width, from the slopes of the last pass."""
    width = tl.exp2((pass_ * -3).to(tl.float64)) * (2.0 * HIGHEST)
    low = tl.full((), -HIGHEST, tl.float64)
    if pass_ > 0:
        before = tl.cast(pass_ - 1, tl.int64) * candidates + candidate
        section = tl.arange(0, SECTIONS)
        low = tl.load(lows + before)
        prior = 1.0 - tl.exp(-(low + width * (section + 1)))  # the derivative of b - 1 - log b
        slope = prior + _sums_over_blocks(slopes + before * SECTIONS * blocks, blocks, SECTIONS, BLOCKS)
        falling = tl.sum(((slope < 0.0) & (section < SECTIONS - 1)).to(tl.int32), 0)
        low += width * falling.to(tl.float64)
    if block == 0:
        tl.store(lows + tl.cast(pass_, tl.int64) * candidates + candidate, low)
    return low, width


@triton.jit
def _slope(
    logits: tl.tensor, row: tl.tensor, classes: tl.tensor, highest: tl.tensor, own: tl.tensor, b: tl.tensor,
    present: tl.tensor, T: tl.constexpr, COLUMNS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the derivative of the NLL in b for a tile of rows."""
    scale = b * LOG2_E
    total = tl.zeros_like(highest)
    first = tl.zeros_like(highest)
    for start in range(0, classes, COLUMNS):
        z, _ = _load_tile(logits, row, start, classes, present, T, COLUMNS)
        x = _subtract_highest(z, highest)
        e = tl.exp2(x * scale)
        total += tl.sum(e, 1)
        first += tl.sum(e * x, 1)
    return first / total - own


@triton.jit(do_not_specialize=["samples", "blocks"])
def _survey(
    logits: tl.tensor, labels: tl.tensor, highest_of: tl.tensor, parts: tl.tensor, samples: tl.tensor,
    classes: tl.tensor, blocks: tl.tensor,
    ALIGNMENT: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    candidate, block = candidate_and_block(blocks)
    classes = divisible(classes, ALIGNMENT)
    index = tl.arange(0, SUMS)
    sums = tl.zeros((SUMS,), tl.float64)
    for begin in range(block * ROWS, samples, blocks * ROWS):
        sample = begin + tl.arange(0, ROWS)
        present = sample < samples
        label, in_range = load_labels(labels, 0, 0, sample, present, classes)
        row = (candidate * samples + sample) * classes
        own_logit = tl.load(logits + row + label, mask=present, other=0.0).to(T)

        highest_of_place = tl.full((ROWS, COLUMNS), float("-inf"), T)
        ahead = tl.zeros((ROWS,), tl.int32)
        not_finite = (~in_range).to(tl.int32)
        for start in range(0, classes, COLUMNS):
            z, c = _load_tile(logits, row, start, classes, present, T, COLUMNS)
            highest_of_place = tl.maximum(highest_of_place, z)
            is_ahead = (z > own_logit[:, None]) | ((z == own_logit[:, None]) & (c < label[:, None]))
            ahead += tl.sum(is_ahead.to(tl.int32), 1)
            is_finite = tl.abs(z) < float("inf")
            not_finite += tl.sum(((c < classes) & (is_finite == 0)).to(tl.int32), 1)
        highest = tl.max(highest_of_place, 1)
        tl.store(highest_of + candidate * samples + sample, highest, mask=present)

        others = tl.zeros((ROWS,), T)  # without the label, where 1 - p would lose the digits of a small difference
        squares = tl.zeros((ROWS,), T)
        first = tl.zeros((ROWS,), T)
        for start in range(0, classes, COLUMNS):
            z, c = _load_tile(logits, row, start, classes, present, T, COLUMNS)
            x = _subtract_highest(z, highest)
            e = tl.exp(x)
            other = tl.where(c == label[:, None], 0.0, e)
            others += tl.sum(other, 1)
            squares += tl.sum(other * other, 1)
            first += tl.sum(e * x, 1)
        own = (own_logit - highest).to(tl.float64)
        log_total = _log_of_sum(others, own)
        confidence = 1.0 / (others.to(tl.float64) + tl.exp(own))
        wrong = others.to(tl.float64) * confidence
        correct = (ahead < 1).to(tl.float64)

        bin_ = tl.zeros((ROWS,), tl.int32)
        for j in tl.static_range(1, BINS):
            bin_ += (confidence.to(T) > j / BINS).to(tl.int32)
        gap = tl.where(present, correct - confidence, 0.0)
        sums += tl.sum(tl.where((bin_ + GAPS)[:, None] == index[None, :], gap[:, None], 0.0), 0)
        sums += tl.where(index == NOT_FINITE, sum_of_present(not_finite, present), 0.0)
        sums += tl.where(index == TOP1, sum_of_present(correct, present), 0.0)
        sums += tl.where(index == TOP5, sum_of_present(ahead < 5, present), 0.0)
        sums += tl.where(index == NLL, sum_of_present(log_total - own, present), 0.0)
        brier = wrong * wrong + squares.to(tl.float64) * confidence * confidence
        sums += tl.where(index == BRIER, sum_of_present(brier, present), 0.0)
        sums += tl.where(index == ENTROPY, sum_of_present(log_total - first * confidence, present), 0.0)
        sums += tl.where(index == CONFIDENCE, sum_of_present(confidence, present), 0.0)
    tl.store(parts + (candidate * SUMS + index) * blocks + block, sums)


@triton.jit(do_not_specialize=["pass_", "candidates", "samples", "blocks"])
def _narrow(
    logits: tl.tensor, labels: tl.tensor, highest_of: tl.tensor, lows: tl.tensor, slopes: tl.tensor, pass_: tl.tensor,
    candidates: tl.tensor, samples: tl.tensor, classes: tl.tensor, blocks: tl.tensor,
    ALIGNMENT: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    candidate, block = candidate_and_block(blocks)
    classes = divisible(classes, ALIGNMENT)
    section = tl.arange(0, SECTIONS)
    low, width = _bracket(lows, slopes, candidate, candidates, pass_, block, blocks, BLOCKS)
    sums = tl.zeros((SECTIONS,), tl.float64)
    for begin in range(block * ROWS, samples, blocks * ROWS):
        sample = begin + tl.arange(0, ROWS)
        present = sample < samples
        label, _ = load_labels(labels, 0, 0, sample, present, classes)
        row = (candidate * samples + sample) * classes
        highest = tl.load(highest_of + candidate * samples + sample, mask=present, other=0.0)
        own = tl.load(logits + row + label, mask=present, other=0.0).to(T) - highest
        for j in range(SECTIONS - 1):
            b = tl.exp(low + width * (j + 1) / SECTIONS).to(T)
            slope = _slope(logits, row, classes, highest, own, b, present, T, COLUMNS)
            sums += tl.where(section == j, sum_of_present(slope, present), 0.0)
    tl.store(slopes + ((tl.cast(pass_, tl.int64) * candidates + candidate) * SECTIONS + section) * blocks + block, sums)


@triton.jit(do_not_specialize=["pass_", "candidates", "samples", "blocks"])
def _calibrate(
    logits: tl.tensor, labels: tl.tensor, highest_of: tl.tensor, lows: tl.tensor, slopes: tl.tensor,
    calibrated: tl.tensor, pass_: tl.tensor, candidates: tl.tensor, samples: tl.tensor, classes: tl.tensor,
    blocks: tl.tensor,
    ALIGNMENT: tl.constexpr, T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    candidate, block = candidate_and_block(blocks)
    classes = divisible(classes, ALIGNMENT)
    low, width = _bracket(lows, slopes, candidate, candidates, pass_, block, blocks, BLOCKS)
    b = tl.exp(low + 0.5 * width)
    scale = b.to(T) * LOG2_E
    nll = tl.zeros((), tl.float64)
    for begin in range(block * ROWS, samples, blocks * ROWS):
        sample = begin + tl.arange(0, ROWS)
        present = sample < samples
        label, _ = load_labels(labels, 0, 0, sample, present, classes)
        row = (candidate * samples + sample) * classes
        highest = tl.load(highest_of + candidate * samples + sample, mask=present, other=0.0)
        own = tl.load(logits + row + label, mask=present, other=0.0).to(T) - highest
        others = tl.zeros((ROWS,), T)
        for start in range(0, classes, COLUMNS):
            z, c = _load_tile(logits, row, start, classes, present, T, COLUMNS)
            e = tl.exp2(_subtract_highest(z, highest) * scale)
            others += tl.sum(tl.where(c == label[:, None], 0.0, e), 1)
        own_scaled = own * b
        nll += sum_of_present(_log_of_sum(others, own_scaled) - own_scaled, present)
    tl.store(calibrated + candidate * blocks + block, nll)


@triton.jit
def _write(metrics: tl.tensor, at: tl.tensor, candidates: tl.tensor, value: tl.tensor, broken: tl.tensor) -> None:
    tl.store(metrics + at * candidates, tl.where(broken, float("nan"), value).to(metrics.dtype.element_ty))


@triton.jit(do_not_specialize=["pass_", "candidates", "samples", "blocks"])
def _finish(
    parts: tl.tensor, lows: tl.tensor, calibrated: tl.tensor, metrics: tl.tensor, pass_: tl.tensor,
    candidates: tl.tensor, samples: tl.tensor, blocks: tl.tensor, BLOCKS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the metrics (9,K) of one candidate."""
    candidate = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, SUMS)
    block = tl.arange(0, BLOCKS)
    sums = _sums_over_blocks(parts + candidate * SUMS * blocks, blocks, SUMS, BLOCKS)
    broken = pick(sums, index, NOT_FINITE) > 0.0
    means = sums / samples.to(tl.float64)
    low = tl.load(lows + tl.cast(pass_, tl.int64) * candidates + candidate)
    width = tl.exp2((pass_ * -3).to(tl.float64)) * (2.0 * HIGHEST)
    of_calibrated = tl.sum(tl.load(calibrated + candidate * blocks + block, mask=block < blocks, other=0.0), 0)
    to = metrics + candidate
    _write(to, 0, candidates, pick(means, index, TOP1), broken)
    _write(to, 1, candidates, pick(means, index, TOP5), broken)
    nll = pick(means, index, NLL)
    _write(to, 2, candidates, nll, broken)
    _write(to, 3, candidates, tl.minimum(nll, of_calibrated / samples.to(tl.float64)), broken)
    _write(to, 4, candidates, tl.exp(-(low + 0.5 * width)), broken)
    _write(to, 5, candidates, pick(means, index, BRIER), broken)
    _write(to, 6, candidates, tl.sum(tl.where(index >= GAPS, tl.abs(means), 0.0), 0), broken)
    _write(to, 7, candidates, pick(means, index, ENTROPY), broken)
    _write(to, 8, candidates, pick(means, index, CONFIDENCE), broken)


def candidate_metrics(logits: Tensor, labels: Tensor) -> Tensor:
    """Return metrics (9,K) in the order of `tfkd_fast.ops.CandidateMetrics`; they are NaN for a label out of range."""
    logits, labels = logits.contiguous(), labels.contiguous()
    shape = shape_of(logits)
    candidates, samples = shape.candidates, shape.batch
    blocks = min(triton.cdiv(samples, shape.rows), MOST_BLOCKS)
    new = logits.new_empty
    metrics = new((METRICS, candidates), dtype=loss_dtypes(logits)[0])
    highest = new((candidates, samples), dtype=loss_dtypes(logits)[0])
    parts = new((candidates, SUMS.value, blocks), dtype=torch.float64)
    slopes = new((PASSES, candidates, SECTIONS.value, blocks), dtype=torch.float64)
    lows = new((PASSES + 1, candidates), dtype=torch.float64)
    calibrated = new((candidates, blocks), dtype=torch.float64)
    tile = {
        "ALIGNMENT": shape.alignment,
        "T": loss_dtypes(logits)[1],
        "ROWS": shape.rows,
        "COLUMNS": shape.columns,
        "maxnreg": registers(logits),
    }
    programs = (candidates * blocks,)
    with on_device(logits):
        _survey[programs](logits, labels, highest, parts, samples, shape.classes, blocks, **tile, num_warps=WARPS)
        for pass_ in range(PASSES):
            _narrow[programs](
                logits, labels, highest, lows, slopes, pass_, candidates, samples, shape.classes, blocks,
                **tile, BLOCKS=MOST_BLOCKS, num_warps=WARPS,
            )  # fmt: skip
        _calibrate[programs](
            logits, labels, highest, lows, slopes, calibrated, PASSES, candidates, samples, shape.classes, blocks,
            **tile, BLOCKS=MOST_BLOCKS, num_warps=WARPS,
        )  # fmt: skip
        _finish[(candidates,)](
            parts, lows, calibrated, metrics, PASSES, candidates, samples, blocks, BLOCKS=MOST_BLOCKS, num_warps=WARPS
        )
    return metrics

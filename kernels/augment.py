"""Triton kernel of `tfkd_fast.ops.augment`: random windows of padded images, mirrored and normalised.

A program writes a part of one image. It draws the window by Philox for one sample, and processes values in the order in
which they are written; they are read in the same order, or within a row in the opposite one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import on_device, stride_of_candidates
from tfkd_fast.randomness import Purpose

AUGMENT = tl.constexpr(int(Purpose.AUGMENT))
VALUES = 1024  # at a time: 8 a thread, the 16 bytes of half-precision numbers that are stored together
ROUNDS = 8  # of a program at most


@triton.jit
def _bounded_integer(word: tl.tensor, bound: tl.tensor) -> tl.tensor:
    return (word.to(tl.uint64) * bound >> 32).to(tl.int32)


@triton.jit(do_not_specialize=["count", "batch", "indices_stride", "draw_stride", "pad"])
def _show(
    images: tl.tensor, indices: tl.tensor, draw: tl.tensor, mean: tl.tensor, std: tl.tensor, out: tl.tensor,
    count: tl.tensor, batch: tl.tensor, height: tl.tensor, width: tl.tensor, indices_stride: tl.tensor,
    draw_stride: tl.tensor, pad: tl.tensor,
    FLIP: tl.constexpr, CHANNELS: tl.constexpr, VALUES: tl.constexpr, ROUNDS: tl.constexpr,
) -> None:  # fmt: skip
    """Write up to ROUNDS * VALUES values of an image; they are NaN for an index out of range."""
    values = height * width * CHANNELS
    parts = tl.cdiv(values, VALUES * ROUNDS)
    place = (tl.program_id(0) // parts).to(tl.int64)
    candidate, sample = place // batch, place % batch
    index = tl.load(indices + candidate * indices_stride + sample)
    in_range = (index >= 0) & (index < count)

    seed = tl.load(draw + candidate * draw_stride)
    epoch = tl.load(draw + candidate * draw_stride + 1).to(tl.uint32)
    stream = tl.load(draw + candidate * draw_stride + 2).to(tl.uint32)
    purpose = tl.full((), AUGMENT, tl.uint32)
    vertical, horizontal, mirror, _ = tl.philox(seed, index.to(tl.uint32), epoch, purpose, stream)
    top, left = _bounded_integer(vertical, 2 * pad + 1) - pad, _bounded_integer(horizontal, 2 * pad + 1) - pad

    first = tl.program_id(0) % parts * (VALUES * ROUNDS)
    image = images + tl.where(in_range, index, 0) * values
    readable = tl.where(in_range, values, 0)
    for start in range(first, min(first + VALUES * ROUNDS, values), VALUES):
        value = start + tl.arange(0, VALUES)
        pixel, channel = value // CHANNELS, value % CHANNELS
        y, x = pixel // width, pixel % width
        if FLIP:
            x = tl.where(_bounded_integer(mirror, 2) == 1, width - 1 - x, x)
        y += top
        x += left
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        byte = tl.load(image + (y * width + x) * CHANNELS + channel, mask=inside & (value < readable), other=0)
        normalised = tl.div_rn(byte.to(tl.float32) - tl.load(mean + channel), tl.load(std + channel))
        normalised = tl.where(in_range, normalised, float("nan"))
        tl.store(out + place * values + value, normalised.to(out.dtype.element_ty), mask=value < values)


def augment(
    images: Tensor, indices: Tensor, draw: Tensor, pad: int, flip: bool, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute `tfkd_fast.ops.augment`; the images are returned as (B,H,W,C) or (P,B,H,W,C)."""
    images, indices, draw = images.contiguous(), indices.contiguous(), draw.contiguous()
    count, height, width, channels = images.shape
    lead = indices.shape[:-1] or draw.shape[:-1]
    out = images.new_empty((*lead, indices.shape[-1], height, width, channels), dtype=dtype)
    if out.numel() == 0:
        return out
    image_count = out.numel() // (height * width * channels)
    parts = triton.cdiv(height * width * channels, VALUES * ROUNDS)
    with on_device(images):
        _show[(image_count * parts,)](
            images, indices, draw, mean.contiguous(), std.contiguous(), out,
            count, indices.shape[-1], height, width,
            stride_of_candidates(indices, 1), stride_of_candidates(draw, 1), pad,
            FLIP=flip, CHANNELS=channels, VALUES=VALUES, ROUNDS=ROUNDS, num_warps=4,
        )  # fmt: skip
    return out

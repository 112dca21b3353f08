"""Triton kernels of `tfkd_fast.ops.norm_relu_pool`: batch norm in training, ReLU and max-pooling, forward and backward.

Both passes read the images twice, and a small kernel between the two puts together what the programs of the first one
found, in a fixed order: means and squares around them, or sums over the gradient. Images are channels-last: an item, a
position or a window of positions, is a row of channels, and a program has a tile of items and channels.

Where a window has its maximum is stored as csrc/norm_relu_pool/cuda.cu stores it: a word for VECTOR channels, with 4
bits each, or 1 bit each where a window is one position.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import on_device, programs_at_once

NOWHERE = tl.constexpr(4)
"""The place of a maximum that the ReLU has made 0."""
TILE = 2048
MOST_CHANNELS, CHANNELS_OF_SUM = 64, 16
WARPS = 8


@triton.jit
def _channels_of(channels: tl.tensor, CHANNELS: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the block of items that a program serves, its channels, and which of them there are."""
    tiles = tl.cdiv(channels, CHANNELS)
    channel = tl.program_id(0) % tiles * CHANNELS + tl.arange(0, CHANNELS)
    return (tl.program_id(0) // tiles).to(tl.int64), channel, channel < channels


@triton.jit
def _measure(
    x: tl.tensor, moments: tl.tensor, items: tl.tensor, channels: tl.tensor, blocks: tl.tensor,
    ITEMS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the count, the mean, and the squares around it, of a block's values of each channel."""
    block, channel, inside = _channels_of(channels, CHANNELS)
    count = tl.zeros((), tl.float32)
    mean = tl.zeros((CHANNELS,), tl.float32)
    squares = tl.zeros((CHANNELS,), tl.float32)
    for first in range(block * ITEMS, items, blocks * ITEMS):
        item = tl.cast(first, tl.int64) + tl.arange(0, ITEMS)
        present = (item < items)[:, None] & inside[None, :]
        values = tl.load(x + item[:, None] * channels + channel[None, :], mask=present, other=0.0).to(tl.float32)
        own_count = tl.minimum(items - first, ITEMS).to(tl.float32)
        own_mean = tl.sum(values, 0) / own_count
        around = tl.where(present, values - own_mean[None, :], 0.0)
        away, total = own_mean - mean, count + own_count
        squares += tl.sum(around * around, 0) + away * away * (count * own_count / total)
        mean += away * (own_count / total)
        count = total
    to = moments + (block * channels + channel) * 3
    tl.store(to, count.to(tl.float64) + tl.zeros((CHANNELS,), tl.float64), mask=inside)
    tl.store(to + 1, mean.to(tl.float64), mask=inside)
    tl.store(to + 2, squares.to(tl.float64), mask=inside)


@triton.jit
def _parts_of(
    parts: tl.tensor, part: tl.tensor, channel: tl.tensor, channels: tl.tensor, present: tl.tensor,
    number: tl.constexpr, count: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load one of the `count` numbers that blocks have written of channels."""
    return tl.load(parts + (part[:, None] * channels + channel[None, :]) * count + number, mask=present, other=0.0)


@triton.jit
def _finish_statistics(
    moments: tl.tensor, running_mean: tl.tensor, running_var: tl.tensor, means: tl.tensor, invstds: tl.tensor,
    parts: tl.tensor, channels: tl.tensor, mean_stride: tl.tensor, var_stride: tl.tensor, momentum: tl.tensor,
    eps: tl.tensor,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Put the moments of all blocks together, and update the running statistics."""
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    part = tl.arange(0, PARTS).to(tl.int64)
    present = (part < parts)[:, None] & inside[None, :]
    counts = _parts_of(moments, part, channel, channels, present, 0, 3)
    of_parts = _parts_of(moments, part, channel, channels, present, 1, 3)
    count = tl.sum(counts, 0)
    divisor = tl.maximum(count, 1.0)  # of no images mean and variance are 0
    mean = tl.sum(of_parts * counts, 0) / divisor
    away = of_parts - mean[None, :]
    squares = tl.sum(_parts_of(moments, part, channel, channels, present, 2, 3) + away * away * counts, 0)
    tl.store(means + channel, mean.to(tl.float32), mask=inside)
    tl.store(invstds + channel, (1.0 / tl.sqrt(squares / divisor + eps)).to(tl.float32), mask=inside)

    there = inside & (count > 0.0)
    old_mean, old_var = running_mean + channel * mean_stride, running_var + channel * var_stride
    new_mean = momentum * mean.to(tl.float32) + (1.0 - momentum) * tl.load(old_mean, mask=there, other=0.0)
    var = (squares / tl.maximum(count - 1.0, 1.0)).to(tl.float32)
    tl.store(old_mean, new_mean, mask=there)
    tl.store(old_var, momentum * var + (1.0 - momentum) * tl.load(old_var, mask=there, other=0.0), mask=there)


class Windows(NamedTuple):
    """The first positions of windows, an item each."""

    image: tl.tensor
    """Numbers (ITEMS,) int64 of the images."""
    row: tl.tensor
    """Rows (ITEMS,) int64 within them."""
    column: tl.tensor
    """Columns (ITEMS,) int64 within them."""


@triton.jit
def _windows(item: tl.tensor, rows: tl.tensor, columns: tl.tensor, SIDE: tl.constexpr) -> Windows:
    """Return windows by their numbers; an image has `rows` times `columns` of them."""
    line = item // columns
    return Windows(line // rows, line % rows * SIDE, item % columns * SIDE)


@triton.jit
def _load_position(
    x: tl.tensor, windows: Windows, height: tl.tensor, width: tl.tensor, channel: tl.tensor, channels: tl.tensor,
    inside: tl.tensor, K: tl.constexpr, SIDE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return offsets of position K of windows, which of them there are, and the values, as float32."""
    row, column = windows.row + K // SIDE, windows.column + K % SIDE
    there = inside & ((row < height) & (column < width))[:, None]
    at = ((windows.image * height + row) * width + column)[:, None] * channels + channel[None, :]
    return at, there, tl.load(x + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _rounded(values: tl.tensor, like: tl.tensor) -> tl.tensor:
    """Return numbers as they are after they were stored, as float32."""
    return values.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _write_maxima(
    x: tl.tensor, residual: tl.tensor, mean: tl.tensor, invstd: tl.tensor, weight: tl.tensor, bias: tl.tensor,
    y: tl.tensor, places: tl.tensor, items: tl.tensor, channels: tl.tensor, blocks: tl.tensor, height: tl.tensor,
    width: tl.tensor, rows: tl.tensor, columns: tl.tensor, weight_stride: tl.tensor, bias_stride: tl.tensor,
    SIDE: tl.constexpr, VECTOR: tl.constexpr, ITEMS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the largest number of each window after the ReLU, and where it is."""
    block, channel, of_image = _channels_of(channels, CHANNELS)
    alpha = tl.load(invstd + channel, mask=of_image, other=0.0)
    alpha *= tl.load(weight + channel.to(tl.int64) * weight_stride, mask=of_image, other=0.0)
    beta = tl.load(bias + channel.to(tl.int64) * bias_stride, mask=of_image, other=0.0)
    beta -= tl.load(mean + channel, mask=of_image, other=0.0) * alpha
    BITS: tl.constexpr = 1 if SIDE == 1 else 4
    for first in range(block * ITEMS, items, blocks * ITEMS):
        item = tl.cast(first, tl.int64) + tl.arange(0, ITEMS)
        inside = (item < items)[:, None] & of_image[None, :]
        windows = _windows(item, rows, columns, SIDE)
        at_out = item[:, None] * channels + channel[None, :]
        highest = tl.zeros((ITEMS, CHANNELS), tl.float32)
        place = tl.zeros((ITEMS, CHANNELS), tl.int32)
        for k in tl.static_range(SIDE * SIDE):
            _, _, values = _load_position(x, windows, height, width, channel, channels, inside, k, SIDE)
            values = _rounded(values * alpha[None, :] + beta[None, :], x)
            if residual is not None:
                added = tl.load(residual + at_out, mask=inside, other=0.0).to(tl.float32)
                values = _rounded(values + added, x)
            if k == 0:
                highest = values
            else:
                above = (values > highest) | (values != values)  # of equal numbers the first has the gradient
                highest = tl.where(above, values, highest)
                place = tl.where(above, k, place)
        flows = (highest > 0.0) | (highest != highest)
        tl.store(y + at_out, tl.where(flows, highest, 0.0).to(y.dtype.element_ty), mask=inside)
        code = flows.to(tl.int32) if SIDE == 1 else tl.where(flows, place, NOWHERE)
        if VECTOR > 1:
            code = code << ((channel % VECTOR) * BITS)[None, :]
            code = tl.sum(tl.reshape(code, (ITEMS, CHANNELS // VECTOR, VECTOR)), 2)
        word, there = _words_of(item, items, channels, VECTOR, CHANNELS)
        tl.store(places + word, code.to(places.dtype.element_ty), mask=there)


@triton.jit
def _words_of(
    item: tl.tensor, items: tl.tensor, channels: tl.tensor, VECTOR: tl.constexpr, CHANNELS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Return the offsets of the words of a tile, and which of them there are."""
    tiles, words = tl.cdiv(channels, CHANNELS), channels // VECTOR
    word = tl.program_id(0) % tiles * (CHANNELS // VECTOR) + tl.arange(0, CHANNELS // VECTOR)
    return item[:, None] * words + word[None, :], (item < items)[:, None] & (word < words)[None, :]


@triton.jit
def _load_places(
    places: tl.tensor, item: tl.tensor, items: tl.tensor, channel: tl.tensor, channels: tl.tensor,
    SIDE: tl.constexpr, VECTOR: tl.constexpr, ITEMS: tl.constexpr, CHANNELS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load the places of the maxima of windows, as numbers of positions or NOWHERE."""
    BITS: tl.constexpr = 1 if SIDE == 1 else 4
    word, there = _words_of(item, items, channels, VECTOR, CHANNELS)
    code = tl.load(places + word, mask=there, other=0).to(tl.int32)
    if VECTOR > 1:
        code = tl.broadcast_to(code[:, :, None], (ITEMS, CHANNELS // VECTOR, VECTOR))
        code = tl.reshape(code, (ITEMS, CHANNELS)) >> ((channel % VECTOR) * BITS)[None, :]
    if SIDE == 1:
        place = tl.where((code & 1) == 1, 0, NOWHERE)
    else:
        place = code & 7
    return place


@triton.jit
def _add_gradient(
    x: tl.tensor, gradient: tl.tensor, places: tl.tensor, means: tl.tensor, parts: tl.tensor, items: tl.tensor,
    channels: tl.tensor, blocks: tl.tensor, height: tl.tensor, width: tl.tensor, rows: tl.tensor, columns: tl.tensor,
    SIDE: tl.constexpr, VECTOR: tl.constexpr, ITEMS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Write a block's sums of the gradient, and of it times what the value is above its mean."""
    block, channel, of_image = _channels_of(channels, CHANNELS)
    mean = tl.load(means + channel, mask=of_image, other=0.0)
    total = tl.zeros((CHANNELS,), tl.float32)
    product = tl.zeros((CHANNELS,), tl.float32)
    for first in range(block * ITEMS, items, blocks * ITEMS):
        item = tl.cast(first, tl.int64) + tl.arange(0, ITEMS)
        inside = (item < items)[:, None] & of_image[None, :]
        windows = _windows(item, rows, columns, SIDE)
        at_gradient = item[:, None] * channels + channel[None, :]
        upstream = tl.load(gradient + at_gradient, mask=inside, other=0.0).to(tl.float32)
        place = _load_places(places, item, items, channel, channels, SIDE, VECTOR, ITEMS, CHANNELS)
        value = tl.zeros((ITEMS, CHANNELS), tl.float32)
        for k in tl.static_range(SIDE * SIDE):
            _, _, values = _load_position(x, windows, height, width, channel, channels, inside, k, SIDE)
            value = tl.where(place == k, values, value)
        flowing = tl.where((place == NOWHERE) | (inside == 0), 0.0, upstream)
        total += tl.sum(flowing, 0)
        product += tl.sum(flowing * (value - mean[None, :]), 0)
    to = parts + (block * channels + channel) * 2
    tl.store(to, total.to(tl.float64), mask=of_image)
    tl.store(to + 1, product.to(tl.float64), mask=of_image)


@triton.jit
def _finish_gradient(
    sums: tl.tensor, invstds: tl.tensor, weight: tl.tensor, of_weight: tl.tensor, of_bias: tl.tensor,
    linear: tl.tensor, parts: tl.tensor, channels: tl.tensor, positions: tl.tensor, weight_stride: tl.tensor,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Put the sums of all blocks together. The gradient of a value is gradient * scale + shift - (value - mean) *
    slope: the three of each channel are written to `linear`."""
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    part = tl.arange(0, PARTS).to(tl.int64)
    present = (part < parts)[:, None] & inside[None, :]
    total = tl.sum(_parts_of(sums, part, channel, channels, present, 0, 2), 0)
    product = tl.sum(_parts_of(sums, part, channel, channels, present, 1, 2), 0)
    invstd = tl.load(invstds + channel, mask=inside, other=0.0).to(tl.float64)
    factor = tl.load(weight + channel * weight_stride, mask=inside, other=0.0) * invstd
    tl.store(of_weight + channel, (product * invstd).to(tl.float32), mask=inside)
    tl.store(of_bias + channel, total.to(tl.float32), mask=inside)
    tl.store(linear + channel * 3, factor.to(tl.float32), mask=inside)
    tl.store(linear + channel * 3 + 1, (-total / positions * factor).to(tl.float32), mask=inside)
    slope = product * invstd * invstd / positions * factor
    tl.store(linear + channel * 3 + 2, slope.to(tl.float32), mask=inside)


@triton.jit
def _write_gradient(
    x: tl.tensor, gradient: tl.tensor, places: tl.tensor, means: tl.tensor, linear: tl.tensor, out: tl.tensor,
    of_residual: tl.tensor, items: tl.tensor, channels: tl.tensor, blocks: tl.tensor, height: tl.tensor,
    width: tl.tensor, rows: tl.tensor, columns: tl.tensor, windows_count: tl.tensor,
    SIDE: tl.constexpr, VECTOR: tl.constexpr, ITEMS: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradients of the images, and of a residual. Items are all windows, of which some may be cut off at the
    end of an image; `windows_count` is the number of whole ones."""
    block, channel, of_image = _channels_of(channels, CHANNELS)
    mean = tl.load(means + channel, mask=of_image, other=0.0)
    scale = tl.load(linear + channel * 3, mask=of_image, other=0.0)
    shift = tl.load(linear + channel * 3 + 1, mask=of_image, other=0.0)
    slope = tl.load(linear + channel * 3 + 2, mask=of_image, other=0.0)
    for first in range(block * ITEMS, items, blocks * ITEMS):
        item = tl.cast(first, tl.int64) + tl.arange(0, ITEMS)
        inside = (item < items)[:, None] & of_image[None, :]
        windows = _windows(item, rows, columns, SIDE)
        whole = (windows.row + SIDE <= height) & (windows.column + SIDE <= width) & (item < items)
        window = (windows.image * (height // SIDE) + windows.row // SIDE) * (width // SIDE) + windows.column // SIDE
        window = tl.where(whole, window, windows_count)  # beyond them nothing is read
        at_gradient = window[:, None] * channels + channel[None, :]
        flows = inside & whole[:, None]
        upstream = tl.load(gradient + at_gradient, mask=flows, other=0.0).to(tl.float32)
        place = _load_places(places, window, windows_count, channel, channels, SIDE, VECTOR, ITEMS, CHANNELS)
        place = tl.where(flows, place, NOWHERE)
        flowing = upstream * scale[None, :] + shift[None, :]
        for k in tl.static_range(SIDE * SIDE):
            at, there, values = _load_position(x, windows, height, width, channel, channels, inside, k, SIDE)
            slopes = tl.where(place == k, flowing, shift[None, :]) - (values - mean[None, :]) * slope[None, :]
            tl.store(out + at, slopes.to(out.dtype.element_ty), mask=there)
        if of_residual is not None:
            through = tl.where(place == NOWHERE, 0.0, upstream)
            tl.store(of_residual + at_gradient, through.to(out.dtype.element_ty), mask=flows)


# The host's side.


class Division(NamedTuple):
    """The division of work: items, a tile of items and channels, and the programs that share the items."""

    items: int
    tile_items: int
    tile_channels: int
    tiles: int
    blocks: int

    @property
    def grid(self) -> tuple[int]:
        """Programs of a kernel."""
        return (self.tiles * self.blocks,)

    @property
    def constants(self) -> dict[str, int]:
        """What the kernels are compiled for."""
        return {"ITEMS": self.tile_items, "CHANNELS": self.tile_channels, "num_warps": WARPS}


def _division_of(x: Tensor, items: int) -> Division:
    channels = x.shape[1]
    tile_channels = min(triton.next_power_of_2(max(channels, 16)), MOST_CHANNELS)
    # Numbers that are loaded one by one need an address of two registers each.
    tile_items = TILE // (1 if channels % 16 == 0 else 2) // tile_channels
    tiles = triton.cdiv(channels, tile_channels)
    blocks = max(1, min(triton.cdiv(items, tile_items), programs_at_once(x) // tiles))
    return Division(items, tile_items, tile_channels, tiles, blocks)


def _windows_of(x: Tensor, side: int) -> tuple[int, int, int]:
    """Rows and columns of the whole windows of an image, and their number in all images."""
    rows, columns = x.shape[2] // side, x.shape[3] // side
    return rows, columns, x.shape[0] * rows * columns


def _words(x: Tensor, pool: bool) -> tuple[int, torch.dtype]:
    """Channels of a word of places, and its dtype."""
    full = 16 // x.element_size()
    vector = full if x.shape[1] % full == 0 else 1
    return vector, {32: torch.int32, 16: torch.int16}.get(vector * (4 if pool else 1), torch.uint8)


def _new_images(x: Tensor, height: int, width: int) -> Tensor:
    shape = x.shape[0], x.shape[1], height, width
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def norm_relu_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    pool: bool,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `tfkd_fast.ops.norm_relu_pool`; returns the result, the places of the maxima, means and 1/deviations."""
    channels, side = x.shape[1], 2 if pool else 1
    rows, columns, count = _windows_of(x, side)
    vector, word = _words(x, pool)
    y = _new_images(x, rows, columns)
    places = x.new_empty((x.shape[0], rows, columns, channels // vector * word.itemsize), dtype=torch.uint8)
    mean, invstd = (torch.empty(channels, dtype=torch.float32, device=x.device) for _ in range(2))
    division = _division_of(x, x.numel() // channels)
    moments = torch.empty((division.blocks, channels, 3), dtype=torch.float64, device=x.device)
    with on_device(x):
        _measure[division.grid](x, moments, division.items, channels, division.blocks, **division.constants)
        _finish_statistics[(triton.cdiv(channels, CHANNELS_OF_SUM),)](
            moments, running_mean, running_var, mean, invstd,
            division.blocks, channels, running_mean.stride(0), running_var.stride(0), momentum, eps,
            PARTS=triton.next_power_of_2(division.blocks), CHANNELS=CHANNELS_OF_SUM, num_warps=WARPS,
        )  # fmt: skip
        division = _division_of(x, count)
        if count:
            _write_maxima[division.grid](
                x, residual, mean, invstd, weight, bias, y, places.view(word),
                division.items, channels, division.blocks, x.shape[2], x.shape[3], rows, columns,
                weight.stride(0), bias.stride(0),
                SIDE=side, VECTOR=vector, **division.constants,
            )  # fmt: skip
    return y, places, mean, invstd


def norm_relu_pool_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    places: Tensor,
    mean: Tensor,
    invstd: Tensor,
    pool: bool,
    residual: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of x, weight, bias and residual, which is empty if there is none."""
    channels, side = x.shape[1], 2 if pool else 1
    rows, columns, count = _windows_of(x, side)
    vector, word = _words(x, pool)
    of_x = _new_images(x, *x.shape[2:])
    of_residual = _new_images(x, *x.shape[2:]) if residual else x.new_empty((0,))
    of_weight, of_bias = torch.empty_like(mean), torch.empty_like(mean)
    division = _division_of(x, count)
    sums = torch.empty((division.blocks, channels, 2), dtype=torch.float64, device=x.device)
    linear = torch.empty((channels, 3), dtype=torch.float32, device=x.device)
    words = places.view(word) if count else places
    with on_device(x):
        _add_gradient[division.grid](
            x, gradient, words, mean, sums,
            division.items, channels, division.blocks, x.shape[2], x.shape[3], rows, columns,
            SIDE=side, VECTOR=vector, **division.constants,
        )  # fmt: skip
        _finish_gradient[(triton.cdiv(channels, CHANNELS_OF_SUM),)](
            sums, invstd, weight, of_weight, of_bias, linear,
            division.blocks, channels, max(1, x.numel() // channels), weight.stride(0),
            PARTS=triton.next_power_of_2(division.blocks), CHANNELS=CHANNELS_OF_SUM, num_warps=WARPS,
        )  # fmt: skip
        all_rows, all_columns = triton.cdiv(x.shape[2], side), triton.cdiv(x.shape[3], side)
        division = _division_of(x, x.shape[0] * all_rows * all_columns)
        if division.items:
            _write_gradient[division.grid](
                x, gradient, words, mean, linear, of_x, of_residual if residual else None,
                division.items, channels, division.blocks, x.shape[2], x.shape[3], all_rows, all_columns, count,
                SIDE=side, VECTOR=vector, **division.constants,
            )  # fmt: skip
    return of_x, of_weight, of_bias, of_residual

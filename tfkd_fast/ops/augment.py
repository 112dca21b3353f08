"""Augmentation of resident images: random windows of padded images, mirrored and normalised, in one pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, checks, fused
from tfkd_fast.randomness import Purpose, bounded_integers, random_words

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def augment(
    images: Tensor,
    indices: Tensor,
    draw: Tensor,
    *,
    pad: int,
    flip: bool,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """A batch of images for a network: a random window of each, mirrored or not, normalised.

    An image gets `pad` black pixels on each side, of which a window of its own size is shown, mirrored left to right
    half of the time with `flip`. What is shown is a function of the draw and the image's index; see `random_windows`.
    Without padding and mirroring the images are only normalised: `((pixel.float() - mean) / std).to(dtype)`, the same
    bits from every backend. No gradient.

    Args:
        images: (N,H,W,C) uint8, contiguous, C from 1 to 4.
        indices: (B,) or (P,B) int64, which images to show.
        draw: (3,) or (P,3) int64: seed, 0 .. 2**63 - 1, epoch and stream, 0 .. 2**32 - 1. A tensor, so that a captured
            graph follows the epoch.
        pad: pixels on each side, below 2**30.
        flip: whether half of the images are mirrored.
        mean, std: (C,) float32, of a channel, in units of pixels, 0 .. 255.
        dtype: of the result, float32, bfloat16, float16 or float64.
        backend: an operator backend; None picks the fastest that serves the tensors.

    Returns:
        (B,C,H,W), or (P,B,C,H,W) where indices or draw have the P axis, channels-last in memory.

    Raises:
        ValueError: for shapes or a pad that do not fit; TypeError for dtypes; IndexError from the C++ backend for an
            index that is out of range. The other backends do with it what they do with a label.
    """
    checks.check_flags(flip=flip)
    _check(images, indices, draw, pad, mean, std, dtype)
    mean, std = mean.detach(), std.detach()  # from tangents of forward-mode differentiation, too
    function = backends.select("augment", backend, images)
    batch: Tensor = function(images, indices, draw, pad, flip, mean, std, dtype)
    return batch.movedim(-1, -3)


def random_windows(
    indices: Tensor, *, pad: int, flip: bool, seed: int | Tensor, epoch: int | Tensor, stream: int | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the window of each padded image.

    Args:
        indices: int64 of any shape, the images.
        pad: pixels on each side.
        flip: whether half of the windows are mirrored.
        seed, epoch, stream: integers or tensors, see `tfkd_fast.randomness.random_words`.

    Returns:
        The first row and the first column of each window, int64, and whether it is mirrored, bool.
    """
    vertical, horizontal, mirror, _ = random_words(indices, Purpose.AUGMENT, seed=seed, epoch=epoch, stream=stream)
    places = 2 * pad + 1
    mirrored = bounded_integers(mirror, 2).bool() if flip else torch.zeros_like(mirror, dtype=torch.bool)
    return bounded_integers(vertical, places), bounded_integers(horizontal, places), mirrored


def _check(
    images: Tensor, indices: Tensor, draw: Tensor, pad: int, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> None:
    checks.check_tensors(images=images, indices=indices, draw=draw, mean=mean, std=std)
    for name, tensor in (("indices", indices), ("draw", draw), ("mean", mean), ("std", std)):
        checks.check_device(name, tensor, "images", images)
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    if images.dim() != 4 or 0 in images.shape[1:] or images.shape[3] > 4:
        raise ValueError(f"images must be (N,H,W,C) with C from 1 to 4, got {tuple(images.shape)}")
    if images.shape[1] * images.shape[2] >= 2**29:
        raise ValueError(f"an image must have fewer than 2**29 pixels, got {images.shape[1]} x {images.shape[2]}")
    if not images.is_contiguous():
        raise ValueError("images must be contiguous: a copy of all of them a batch would be slow")
    for name, tensor in (("indices", indices), ("draw", draw)):
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
    if indices.dim() not in (1, 2):
        raise ValueError(f"indices must be (B,) or (P,B), got {tuple(indices.shape)}")
    if draw.dim() not in (1, 2) or draw.shape[-1] != 3:
        raise ValueError(f"draw must be (3,) or (P,3), got {tuple(draw.shape)}")
    if indices.dim() == draw.dim() == 2 and len(indices) != len(draw):
        raise ValueError(f"indices {tuple(indices.shape)} and draw {tuple(draw.shape)} must have the same P")
    if not isinstance(pad, int):
        raise TypeError(f"pad must be an integer, got {type(pad).__name__}")
    if not 0 <= pad < 2**30:
        raise ValueError(f"pad must be in 0 .. 2**30 - 1, got {pad}")
    for name, tensor in (("mean", mean), ("std", std)):
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {tensor.dtype}")
        if tensor.shape != images.shape[3:]:
            raise ValueError(f"{name} must be (C,) with C = {images.shape[3]}, got {tuple(tensor.shape)}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")


# The definition. Backends return the images as they lie in memory, (B,H,W,C) or (P,B,H,W,C).


@torch.no_grad()
def _reference(
    images: Tensor, indices: Tensor, draw: Tensor, pad: int, flip: bool, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    _, height, width, channels = images.shape
    seed, epoch, stream = draw.unsqueeze(-1).unbind(-2)  # (...,1)
    indices = indices.expand(torch.broadcast_shapes(indices.shape, seed.shape))
    shape = (*indices.shape, height, width, channels)
    if indices.numel() == 0:
        return mean.new_empty(shape, dtype=dtype)
    windows = random_windows(indices, pad=pad, flip=flip, seed=seed, epoch=epoch, stream=stream)
    top, left, mirrored = (column.reshape(-1, 1) for column in windows)
    padded = F.pad(images.index_select(0, indices.flatten()), (0, 0, pad, pad, pad, pad))

    # Every run of `width` pixels is a row of a view that takes no memory: copying such rows is several times faster
    # than copying pixels by their places.
    runs = padded.flatten().unfold(0, width * channels, channels)
    image, row = (torch.arange(size, device=images.device) for size in (len(padded), height))
    first_row = image[:, None] * padded.shape[1] + top
    run = (first_row + row) * padded.shape[2] + left
    pixels = runs.index_select(0, run.flatten()).view(-1, height, width, channels)
    pixels = torch.where(mirrored[..., None, None], pixels.flip(2), pixels)

    # (H,W,C): broadcasting (C,) is far slower
    mean, std = (value.expand(height, width, channels).contiguous() for value in (mean, std))
    return ((pixels.float() - mean) / std).to(dtype).view(shape)


# The fused backends.


def _fused(
    operator: OpOverload,
    images: Tensor,
    indices: Tensor,
    draw: Tensor,
    pad: int,
    flip: bool,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    batch: Tensor = operator(images, indices, draw, pad, flip, mean, std, dtype)
    return batch


def _fake(
    images: Tensor, indices: Tensor, draw: Tensor, pad: int, flip: bool, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    lead = indices.shape[:-1] or draw.shape[:-1]
    return images.new_empty(*lead, indices.shape[-1], *images.shape[1:], dtype=dtype)


def _vmap(operator: OpOverload, info: Any, in_dims: Any, *args: Any) -> tuple[Any, Any]:
    """The mapped axis joins the P axis, but for mapped images, means or deviations: those calls share nothing."""
    if any(in_dims[position] is not None for position in (0, 5, 6)):
        calls = (
            [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)]
            for i in range(info.batch_size)
        )
        return torch.stack([operator(*call) for call in calls]), 0
    images, indices, draw, *rest = args
    folded, lead = fused.fold_any_candidates(info, in_dims[1:3], (indices, draw), (1, 1))
    return fused.unfold_candidates(operator(images, *folded, *rest), lead)


fused.define(
    "augment",
    "augment",
    "(Tensor images, Tensor indices, Tensor draw, int pad, bool flip, Tensor mean, Tensor std, ScalarType dtype)"
    " -> Tensor",
    _fake,
    _vmap,
)
backends.register("augment", "reference", _reference)
fused.register("augment", _fused)

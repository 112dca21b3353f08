"""Triton kernel of `tfkd_fast.ops.scale_gradient`: a gradient times what comes from above, in place.

Reads one number a piece of the gradient and, where that is 1, nothing else; otherwise the piece is read and written.
"""

import triton
import triton.language as tl
from torch import Tensor

from tfkd_fast.kernels.common import on_device

ELEMENTS = 4096
"""Number of elements of a piece that one program scales."""


@triton.jit(do_not_specialize=["inner", "outer_stride", "inner_stride", "length", "parts"])
def _scale(
    gradient: tl.tensor, upstream: tl.tensor, inner: tl.tensor, outer_stride: tl.tensor, inner_stride: tl.tensor,
    length: tl.tensor, parts: tl.tensor,
    ELEMENTS: tl.constexpr,
) -> None:  # fmt: skip
    """Scale one part of a piece."""
    piece = (tl.program_id(0) // parts).to(tl.int64)
    factor = tl.load(upstream + piece // inner * outer_stride + piece % inner * inner_stride)
    if factor != 1.0:
        at = (tl.program_id(0) % parts).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
        here = gradient + piece * length + at
        scaled = tl.load(here, mask=at < length, other=0.0).to(factor.dtype) * factor
        tl.store(here, scaled.to(gradient.dtype.element_ty), mask=at < length)


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Compute `tfkd_fast.ops.scale_gradient`."""
    if gradient.numel() == 0:
        return
    while upstream.dim() < 2:
        upstream = upstream.unsqueeze(-1)
    length = gradient.numel() // upstream.numel()
    parts = triton.cdiv(length, ELEMENTS)
    with on_device(gradient):
        _scale[(upstream.numel() * parts,)](
            gradient, upstream, upstream.shape[1], *upstream.stride(), length, parts,
            ELEMENTS=ELEMENTS, num_warps=8,
        )  # fmt: skip

"""Feature maps of a student and its teacher: which go together, at which size, and where they are active."""

import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.methods.base import Context
from tfkd_fast.models import FeatureShapes
from tfkd_fast.models.layers import average_pool_to


def stage_pairs(context: Context, *, from_last: bool = False) -> list[tuple[int, int]]:
    """The numbers of the stages of student and teacher whose maps are matched, in their order.

    These are the stages past the first map of a network: all where it has a stem, and all but the first in a VGG. They
    go together by their order; where one network has more, its last ones are left out, or its first ones if stages are
    paired `from_last`.

    Source: RepDistiller, `feat_s[1:-1]` and `feat_t[1:-1]` in helper/loops.py; from the last, `_align_list` of OFD in
    mdistiller. Our choice: a network that activates before it convolves is matched after that activation.
    """
    student, teacher = _matched_stages(context.need_shapes()), _matched_stages(context.teachers[0].shapes)
    count = min(len(student), len(teacher))
    if from_last:
        return list(zip(student[-count:], teacher[-count:], strict=True))
    return list(zip(student[:count], teacher[:count], strict=True))


def _matched_stages(shapes: FeatureShapes) -> range:
    first = 0 if shapes.stem is not None else min(1, len(shapes.maps) - 1)
    return range(first, len(shapes.maps))


def pool_to_smaller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B,C,H,W) and (B,D,h,w), the larger averaged to the size of the smaller."""
    size = (min(first.shape[-2], second.shape[-2]), min(first.shape[-1], second.shape[-1]))
    return pool_to(first, size), pool_to(second, size)


def pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B,C,H,W) averaged to (B,C,*size), unless they have that size."""
    return maps if maps.shape[-2:] == size else average_pool_to(maps, size)


def inner_products(maps: Tensor) -> Tensor:
    """The inner products (n,B,B) of the maps (n,B,...) of each two images of a batch."""
    rows = maps.flatten(2)
    return rows @ rows.transpose(1, 2)


def attention_map(maps: Tensor) -> Tensor:
    """Where maps (B,C,H,W) are active: the mean of their squares over the channels, (B,H*W) of length 1.

    Source: Zagoruyko and Komodakis, ICLR 2017, section 3.1, F_sum^2 normalised.
    """
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)

"""Layers that compute otherwise than torch's, with torch's numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.models.layers import GroupedConv, StridedGroupedConv, replace_strided


def of_others(bias: bool) -> nn.Conv2d:
    (conv,) = replace_strided(nn.Sequential(nn.Conv2d(16, 16, 3, 2, padding=2, dilation=2, groups=16, bias=bias)))
    assert isinstance(conv, StridedGroupedConv)
    return conv


def gradients(conv: nn.Conv2d, x: Tensor, weight: Tensor, *, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What torch's own function makes of numbers rounded to bfloat16, and its gradients, in a dtype."""
    leaves = [each.detach().bfloat16().to(dtype).requires_grad_() for each in (x, weight)]
    bias = None if conv.bias is None else conv.bias.detach().bfloat16().to(dtype)
    y = F.conv2d(*leaves, bias, conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
    of_x, of_weight = torch.autograd.grad(y, leaves, torch.ones_like(y))
    return y, of_x, of_weight


@pytest.mark.parametrize(
    "make", [lambda: GroupedConv(16, 16, 3, 2, groups=16), lambda: of_others(True), lambda: of_others(False)]
)
def test_strided_convolutions_in_groups_are_those_of_the_rounded_numbers(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    conv = make()
    x = torch.randn(4, 16, 9, 9, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    of_x, of_weight = torch.autograd.grad(y, (x, conv.weight), torch.ones_like(y))
    exact = gradients(conv, x, conv.weight, dtype=torch.float64)
    for found, wanted in zip((y, of_x, of_weight), exact, strict=True):
        # float32 sums of 9 and of 4 * 25 products, then one rounding to 8 bits
        torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv(x), y)


def test_other_convolutions_of_others_stay_as_they_are() -> None:
    layers = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 3, 2), nn.Conv2d(64, 64, 1, 2)
    assert all(type(layer) is nn.Conv2d for layer in replace_strided(nn.Sequential(*layers)))

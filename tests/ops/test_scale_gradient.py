"""scale_gradient against float64, and what it must not touch."""

from typing import Any

import pytest
import torch

from tfkd_fast.ops.scale_gradient import scale_gradient

FACTORS = torch.tensor([1.0, 0.3, -2.0, 0.0])


@pytest.fixture(scope="module")
def name(backend: Any) -> Any:
    if backend.name == "cpp":
        pytest.skip("it serves CUDA tensors")
    return backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("shape", "axes"), [((7, 33), 0), ((5, 2049), 1), ((4, 3, 700), 1), ((2, 6, 5), 2)])
def test_a_product_is_rounded_once(name: Any, shape: tuple[int, ...], axes: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(shape).to(name.device, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    count = torch.Size(shape[:axes]).numel()
    upstream = FACTORS.to(name.device, wide).repeat(count)[1 : count + 1].reshape(shape[:axes])
    scale = upstream.reshape(upstream.shape + (1,) * (len(shape) - axes))
    expected = (gradient.to(wide) * scale).to(dtype)
    scale_gradient(gradient, upstream, backend=name.name)
    assert torch.equal(gradient, expected)


def test_an_expanded_number(name: Any) -> None:
    gradient = torch.ones(3, 4, 5, device=name.device)
    scale_gradient(gradient, torch.tensor(2.0, device=name.device).expand(3, 4), backend=name.name)
    assert torch.equal(gradient, torch.full((3, 4, 5), 2.0, device=name.device))


def test_a_one_leaves_what_is_not_finite(name: Any) -> None:
    gradient = torch.tensor([[float("nan"), float("inf"), 1.0], [2.0, float("inf"), 0.0]], device=name.device)
    scale_gradient(gradient, torch.tensor([1.0, 0.0], device=name.device), backend=name.name)
    expected = torch.tensor([[float("nan"), float("inf"), 1.0], [0.0, float("nan"), 0.0]])
    torch.testing.assert_close(gradient.cpu(), expected, rtol=0, atol=0, equal_nan=True)

"""Large gradients and maps of the C++ operators: their memory serves the next one, and never two at a time."""

import mmap
import sys

import pytest
import torch
from torch import Tensor

from tfkd_fast.ops import backends, norm_relu_pool, soft_target_loss

pytestmark = [
    pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing)),
    pytest.mark.skipif(sys.platform != "linux", reason="gradients lie in ordinary memory"),
]


def gradient_of(batch: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of logits (batch, 2048); from 4,097 samples on it is a large one."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 2048, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(2048, (batch,), generator=generator)
    targets = torch.full((2048, 2048), 1 / 2048)
    (gradient,) = torch.autograd.grad(soft_target_loss(logits, labels, targets, backend="cpp"), logits)
    expected = (logits.detach().float().softmax(-1) - 1 / 2048) / batch
    largest = expected.abs().max().item()
    assert (gradient.float() - expected).abs().max().item() < largest * (1e-5 if dtype == torch.float32 else 4e-3)
    return gradient


def test_the_next_gradient_of_the_size_gets_the_memory() -> None:
    first = gradient_of(4100, seed=0)
    place = first.data_ptr()
    second = gradient_of(4100, seed=1)
    assert second.data_ptr() != place  # the first is still in use
    before = second.clone()
    del first
    third = gradient_of(4100, seed=2)
    assert third.data_ptr() == place
    assert torch.equal(second, before)


def test_another_size_gets_memory_of_its_own() -> None:
    del_me = gradient_of(8200, seed=0)
    del del_me
    smaller, half = gradient_of(4100, seed=1), gradient_of(8300, seed=2, dtype=torch.bfloat16)
    first, second = (tensor.data_ptr() for tensor in (smaller, half))
    assert first + smaller.nbytes <= second or second + half.nbytes <= first


def test_tensors_of_several_sizes_take_turns() -> None:
    """As the gradients of a network's layers do: each step finds the memory of the step before."""
    places = []
    for step in range(3):
        tensors = [gradient_of(batch, seed=step) for batch in (4100, 6200, 8300)]
        places.append({tensor.data_ptr() for tensor in tensors})
        assert len(places[-1]) == 3
        del tensors
    assert places[1] == places[2]


def test_the_maps_of_a_deep_network_find_the_memory_of_the_step_before() -> None:
    x = torch.randn(64, 32, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last)  # 4 MB
    one = torch.ones(32)
    places = []
    for _ in range(2):
        numbers = [(one, 0 * one, 0 * one, one.clone()) for _ in range(12)]
        maps = [norm_relu_pool(x, *own, momentum=0.1, pool=False, backend="cpp") for own in numbers]
        places.append({each.data_ptr() for each in maps})
        assert len(places[-1]) == 12
        del maps
        others = [mmap.mmap(-1, 4 << 20) for _ in range(48)]  # take the places that were given back to the system
    assert len(others) == 48
    assert places[0] == places[1]


def test_a_view_keeps_the_memory() -> None:
    view = gradient_of(4100, seed=0)[-1]
    values = view.clone()
    gradient_of(4100, seed=1)
    assert torch.equal(view, values)

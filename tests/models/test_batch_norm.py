"""Batch norm of parts of a batch is that of the whole batch, as torch has it; here the processes are threads."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from tfkd_fast.models import SynchronisedNorms

SIZES = (3, 1)
"""Images of each part."""


class Threads:
    """What the parts tell each other: each thread has its own object, and a list that they share."""

    def __init__(self, number: int, given: list[Tensor], barrier: Barrier) -> None:
        self._number, self._given, self._barrier = number, given, barrier

    def stack(self, tensor: Tensor) -> Tensor:
        self._given[self._number] = tensor.clone()
        self._barrier.wait()
        stacked = torch.stack(self._given)
        self._barrier.wait()
        return stacked

    def add(self, tensor: Tensor) -> None:
        tensor.copy_(self.stack(tensor).sum(0))


class Network(nn.Module):
    """A batch norm as a layer, and one without weights and statistics of its own that is only called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(5, momentum=0.3)
        nn.init.normal_(self.norm.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        means = self.norm(x).square().mean((2, 3))
        return nn.functional.batch_norm(means, None, None, training=True)


def network(dtype: torch.dtype) -> Network:
    torch.manual_seed(0)
    return Network().to(dtype)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_parts_have_the_statistics_and_gradients_of_the_whole_batch(dtype: torch.dtype, close: float) -> None:
    """bfloat16 images have norms in float32, and come close to what float64 gives for the same images."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    images = torch.randn(sum(SIZES), 5, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    factors = torch.randn(sum(SIZES), 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole, x = network(torch.float64), images.double().requires_grad_()
    expected = whole(x)
    wanted = torch.autograd.grad((expected * factors).sum(), [x, *whole.parameters()])
    given, barrier = [torch.empty(0)] * len(SIZES), Barrier(len(SIZES), timeout=60)
    networks = [network(wide) for _ in SIZES]

    def run(number: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        own, part = networks[number], images.split(SIZES)[number].clone().requires_grad_()
        with SynchronisedNorms(Threads(number, given, barrier)):
            found = own(part)
            loss = (found.double() * factors.split(SIZES)[number]).sum()
            return found.detach(), torch.autograd.grad(loss, [part, *own.parameters()])

    with ThreadPoolExecutor(len(SIZES)) as pool:
        outputs, gradients = zip(*pool.map(run, range(len(SIZES))), strict=True)

    def assert_close(found: Tensor, wanted: Tensor) -> None:
        torch.testing.assert_close(found.double(), wanted, rtol=close, atol=close * float(wanted.abs().max()))

    assert outputs[0].dtype == dtype
    assert_close(torch.cat(outputs), expected.detach())
    assert_close(torch.cat([of_part[0] for of_part in gradients]), wanted[0])
    for number in (1, 2):
        assert_close(sum(of_part[number] for of_part in gradients), wanted[number])
    for own in networks:
        assert_close(own.norm.running_mean, whole.norm.running_mean)
        assert_close(own.norm.running_var, whole.norm.running_var)
        assert own.norm.num_batches_tracked == 1


def test_evaluation_is_as_it_is() -> None:
    norm, x = nn.BatchNorm1d(3).eval(), torch.randn(2, 3)
    with SynchronisedNorms(Threads(0, [], Barrier(2, timeout=1))):
        assert torch.equal(norm(x), norm(x))
    assert not SynchronisedNorms.are_active

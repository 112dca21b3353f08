"""The update and the step, against torch's optimiser and a loop written by hand."""

import itertools

import pytest
import torch

from tfkd_fast.runs.optimizer import SGDSettings
from tfkd_fast.training.sgd import sgd_step

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("momentum", "nesterov", "decay"),
    [(m, n, d) for m, n, d in itertools.product((0.0, 0.9), (False, True), (0.0, 5e-4)) if m or not n],
)
def test_the_update_is_that_of_torch(device: str, momentum: float, nesterov: bool, decay: float) -> None:
    torch.manual_seed(0)
    start = [torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last), torch.randn(5), torch.randn(())]
    theirs = [tensor.to(device).clone().requires_grad_() for tensor in start]
    ours = [tensor.to(device).clone() for tensor in start]
    momenta = [torch.zeros_like(tensor) for tensor in ours]
    settings = SGDSettings(momentum=momentum, nesterov=nesterov, weight_decay=decay)
    optimizer = torch.optim.SGD(
        theirs, lr=1.0, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=device == "cuda"
    )
    for step in range(4):
        gradients = [torch.randn(tensor.shape, device=device) for tensor in start]  # not channels-last, as it may come
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone().contiguous(memory_format=torch.preserve_format)
        optimizer.param_groups[0]["lr"] = rate = 0.1 / (step + 1)
        optimizer.step()
        sgd_step(ours, tuple(gradients), momenta, torch.tensor([rate], device=device), settings)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-7)  # a rate of float32, eight roundings


@pytest.mark.gpu
def test_there_may_be_nothing_to_update() -> None:
    """Adapters that take no part in a phase of training; on the CPU a loop over nothing."""
    sgd_step([], (), [], torch.tensor([0.1], device="cuda"), SGDSettings())

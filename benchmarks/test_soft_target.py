"""soft_target_loss: forward and backward, every backend that serves here, beside plain cross-entropy.

The loss reads the logits and writes their gradient, the backward pass reads and writes the gradient: 16 bytes a logit
in float32, the floor for large batches. `extra_info` has the rate that this would be.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.ops import backends, soft_target_loss, soft_target_loss_with_stats

SHAPES = [(128, 100), (4096, 1000)]
BYTES_PER_LOGIT = 16
needs_cpp = pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
every_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_cpp)])


def problem(batch: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, classes, generator=generator).requires_grad_()
    labels = torch.randint(classes, (batch,), generator=generator)
    return logits, labels, torch.randn(classes, classes, generator=generator).softmax(-1)


def measure(benchmark: Any, step: Any, logits: Tensor) -> None:
    benchmark.group = f"soft-target loss and gradient, B={logits.shape[0]} C={logits.shape[1]}"
    benchmark(step)
    gigabytes = logits.numel() * BYTES_PER_LOGIT / 1e9
    benchmark.extra_info["GB/s"] = round(gigabytes / benchmark.stats.stats.median, 2)


@pytest.mark.parametrize(("batch", "classes"), SHAPES)
@every_backend
def test_soft_target_loss(benchmark: Any, backend: str, batch: int, classes: int) -> None:
    logits, labels, targets = problem(batch, classes)

    def step() -> None:
        logits.grad = None
        soft_target_loss(logits, labels, targets, backend=backend).backward()

    measure(benchmark, step, logits)


@pytest.mark.parametrize(("batch", "classes"), SHAPES)
@every_backend
def test_soft_target_loss_with_stats(benchmark: Any, backend: str, batch: int, classes: int) -> None:
    logits, labels, targets = problem(batch, classes)
    similarity = torch.zeros(classes, classes)

    def step() -> None:
        logits.grad = None
        soft_target_loss_with_stats(logits, labels, targets, similarity, backend=backend)[0].backward()

    measure(benchmark, step, logits)


@pytest.mark.parametrize(("batch", "classes"), SHAPES)
def test_cross_entropy(benchmark: Any, batch: int, classes: int) -> None:
    logits, labels, _ = problem(batch, classes)

    def step() -> None:
        logits.grad = None
        F.cross_entropy(logits, labels).backward()

    measure(benchmark, step, logits)

"""Inputs that all suites draw, the same in every run."""

import torch
from torch import Tensor

BOTH = (torch.float32, torch.bfloat16)
# (P, B, C); P is None for a single student. Small ones first: those of the students of this package.
SMALL = [(None, 128, 10), (None, 128, 100), (8, 128, 100)]
LARGE = [(None, 65_536, 1_000)]
ON_GPU = [(256, 512, 100)]
MANY_CLASSES = [(None, 4_096, 32_768), (None, 1_024, 128_256)]


def describe(candidates: int | None, batch: int, classes: int) -> str:
    return f"{'' if candidates is None else f'P={candidates} '}B={batch} C={classes}"


def lead(candidates: int | None) -> tuple[int, ...]:
    """The axis of the population, if there is one."""
    return () if candidates is None else (candidates,)


def draw_logits(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int, scale: float = 3.0
) -> Tensor:
    """Leaf tensors that require a gradient."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(shape, generator=generator, device=device).mul_(scale)
    return values.to(dtype).requires_grad_()


def draw_labels(batch: int, classes: int, device: torch.device, seed: int) -> Tensor:
    return torch.randint(classes, (batch,), generator=torch.Generator(device).manual_seed(seed), device=device)

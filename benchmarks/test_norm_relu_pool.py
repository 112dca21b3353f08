"""norm_relu_pool: result and all gradients, at the layers of VGG-8, ResNet-20 and VGG-8 at an eighth of its width; on a
GPU at those of VGG-8 and of ResNet-18 in batches of 512."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, Call, Case, compiled, our_backends
from benchmarks.problems import BOTH
from benchmarks.recorded import each, show
from tfkd_fast.ops import norm_relu_pool

Images = tuple[int, int, int, int]


def case_of(shape: Images, pool: bool, residual: bool, dtype: torch.dtype, device: str) -> Case:
    batch, channels, height, width = shape
    images, results = batch * channels * height * width, batch * channels * height * width // (4 if pool else 1)
    # x and the residual in, their gradients out; y out, its gradient in. The few numbers a channel do not count.
    moved = 2 * (images * (2 if residual else 1) + results) * dtype.itemsize
    name = f"B={batch} C={channels} S={height} window={2 if pool else 1}{' residual=1' if residual else ''}"
    variants = partial(variants_of, shape=shape, pool=pool, residual=residual)
    return Case("norm_relu_pool", name, dtype, moved, variants, (device,))


def variants_of(case: Case, device: torch.device, *, shape: Images, pool: bool, residual: bool) -> dict[str, Call]:
    sets = [draw(shape, pool, residual, case.dtype, device, i) for i in range(case.sets)]

    def operator(*arguments: Tensor, backend: str) -> Tensor:
        added = arguments[5] if residual else None
        return norm_relu_pool(*arguments[:5], momentum=0.1, pool=pool, residual=added, backend=backend)

    reference = partial(operator, backend="reference")
    return {
        **{name: gradients_of(partial(operator, backend=name), sets) for name in our_backends(case.operator, device)},
        EAGER: gradients_of(reference, sets),
        COMPILED: gradients_of(compiled(reference), sets),
    }


def draw(
    shape: Images, pool: bool, residual: bool, dtype: torch.dtype, device: torch.device, seed: int
) -> list[Tensor]:
    """x, weight and bias, which require a gradient, the running statistics, the residual, which requires one, too, if
    there is one, and the upstream gradient; channels-last."""
    batch, channels, height, width = shape
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        values = torch.randn(sizes, generator=generator, device=device)
        return values.to(dtype, memory_format=torch.channels_last) if len(sizes) == 4 else values

    leaves = [normal(*shape), normal(channels), normal(channels)]
    statistics = [torch.zeros(channels, device=device), torch.ones(channels, device=device)]
    upstream = normal(batch, channels, height // 2, width // 2) if pool else normal(*shape)
    added = [normal(*shape).requires_grad_()] if residual else []
    return [*(leaf.requires_grad_() for leaf in leaves), *statistics, *added, upstream]


def gradients_of(function: Any, sets: list[list[Tensor]]) -> Call:
    """Result and gradients for each set."""

    def call(i: int) -> Any:
        *arguments, upstream = sets[i]
        leaves = [argument for argument in arguments if argument.requires_grad]
        return torch.autograd.grad(function(*arguments), leaves, upstream)

    return call


LAYERS = [  # shape, pooling, residual
    ((128, 64, 32, 32), True, False),
    ((128, 128, 16, 16), True, False),
    ((128, 256, 8, 8), True, False),
    ((128, 512, 4, 4), False, False),
    ((64, 16, 32, 32), False, False),
    ((64, 16, 32, 32), False, True),
    ((64, 32, 16, 16), False, True),
    ((64, 64, 8, 8), False, True),
    ((64, 8, 32, 32), True, False),
    ((64, 24, 16, 16), False, False),
]
ON_GPU = [
    ((512, 64, 32, 32), True, False),
    ((512, 256, 8, 8), True, False),
    ((512, 512, 4, 4), False, False),
    ((512, 64, 32, 32), False, True),
]
CASES = [
    case_of(*layer, dtype, device)
    for device, layers in (("cpu", LAYERS), ("cuda", ON_GPU))
    for layer in layers
    for dtype in BOTH
]


@each(CASES)
def test_norm_relu_pool(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

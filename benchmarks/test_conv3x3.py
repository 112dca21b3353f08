"""conv3x3: the last convolutions of VGG-8, result and all gradients, with the float32 parameters of autocast.

The work is in products: the floor of the bytes is far below, and the share of a copy says little here.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, Call, Case, compiled, our_backends
from benchmarks.recorded import each, show
from tfkd_fast.ops import conv3x3


def case_of(batch: int, inputs: int, outputs: int, size: int) -> Case:
    maps = 2 * batch * size * size * (inputs + outputs)  # x and the upstream gradient in, y and the gradient of x out
    parameters = 2 * outputs * (9 * inputs + 1)  # with their gradients
    moved = torch.bfloat16.itemsize * maps + torch.float32.itemsize * parameters
    variants = partial(variants_of, shape=(batch, inputs, outputs, size))
    return Case("conv3x3", f"B={batch} C={inputs} K={outputs} S={size}", torch.bfloat16, moved, variants, ("cpu",))


def variants_of(case: Case, device: torch.device, *, shape: tuple[int, int, int, int]) -> dict[str, Call]:
    sets = [draw(shape, case.dtype, device, i) for i in range(case.sets)]
    reference = partial(conv3x3, backend="reference")
    return {
        **{
            name: gradients_of(partial(conv3x3, backend=name), sets)
            for name in our_backends(case.operator, device, case.dtype)
        },
        EAGER: gradients_of(reference, sets),
        COMPILED: gradients_of(compiled(reference), sets),
    }


def draw(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, seed: int) -> list[Tensor]:
    """x, weight and bias, which require a gradient, and the upstream gradient; channels-last."""
    batch, inputs, outputs, size = shape
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        values = torch.randn(sizes, generator=generator, device=device)
        return values.contiguous(memory_format=torch.channels_last) if len(sizes) == 4 else values

    leaves = [normal(batch, inputs, size, size).to(dtype), normal(outputs, inputs, 3, 3), normal(outputs)]
    return [*(leaf.requires_grad_() for leaf in leaves), normal(batch, outputs, size, size).to(dtype)]


def gradients_of(function: Any, sets: list[list[Tensor]]) -> Call:
    """Result and gradients for each set."""

    def call(i: int) -> Any:
        *leaves, upstream = sets[i]
        return torch.autograd.grad(function(*leaves), leaves, upstream)

    return call


CASES = [case_of(128, inputs, 512, 4) for inputs in (256, 512)]


@each(CASES)
def test_conv3x3(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

"""peer_loss: loss and gradient of every candidate of a population."""

from functools import partial
from typing import Any

import torch

from benchmarks.harness import COMPILED, EAGER, Call, Case, compiled, gradient_of, our_losses
from benchmarks.problems import BOTH, ON_GPU, describe, draw_labels, draw_logits
from benchmarks.recorded import each, show
from tfkd_fast.ops import peer_loss

TEMPERATURE, ALPHA = 3.0, 0.5


def case_of(candidates: int, batch: int, classes: int, dtype: torch.dtype, devices: tuple[str, ...]) -> Case:
    moved = 2 * candidates * batch * classes * dtype.itemsize + 8 * batch
    variants = partial(variants_of, shape=(candidates, batch, classes))
    return Case("peer_loss", describe(candidates, batch, classes), dtype, moved, variants, devices)


def variants_of(case: Case, device: torch.device, *, shape: tuple[int, int, int]) -> dict[str, Call]:
    sets = [(draw_logits(shape, case.dtype, device, i), draw_labels(*shape[1:], device, i)) for i in range(case.sets)]
    temperature, alpha = (torch.tensor(value, device=device) for value in (TEMPERATURE, ALPHA))
    loss = partial(peer_loss, temperature=temperature, alpha=alpha, include_self=False)
    reference = partial(loss, backend="reference")
    return {
        **our_losses(case, device, loss, sets),
        EAGER: gradient_of(reference, sets),
        COMPILED: gradient_of(compiled(reference), sets),
    }


GPU, ANY = ("cuda",), ("cpu", "cuda")
CASES = [
    *(case_of(*shape, dtype, ANY) for shape in [(4, 128, 100), (4, 16_384, 1_000)] for dtype in BOTH),
    *(case_of(*shape, dtype, GPU) for shape in ON_GPU for dtype in BOTH),
]


@each(CASES)
def test_peer(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

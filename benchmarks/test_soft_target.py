"""soft_target_loss: loss and gradient; with statistics, a training step's worth of it."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, Call, Case, compiled, gradient_of, our_losses
from benchmarks.problems import BOTH, LARGE, MANY_CLASSES, ON_GPU, SMALL, describe, draw_labels, draw_logits, lead
from benchmarks.recorded import each, show
from benchmarks.rivals import liger
from tfkd_fast.ops import soft_target_loss, soft_target_loss_with_stats

TEMPERATURE = 4.0
HARD_WEIGHT = 0.1


def case_of(
    candidates: int | None,
    batch: int,
    classes: int,
    dtype: torch.dtype,
    devices: tuple[str, ...],
    *,
    by_sample: bool = False,
) -> Case:
    """Loss and gradient; targets are a class table, or rows of the samples where such a table would not fit. A GPU
    reads the rows of a table of 1,000 classes from its second-level cache, which is the bound then, not the memory."""
    population, name = candidates or 1, describe(candidates, batch, classes) + " by sample" * by_sample
    by_sample = by_sample or classes > 1_000
    target = (batch if by_sample else min(batch, classes)) * classes * 4
    moved = population * (2 * batch * classes * dtype.itemsize + target) + 8 * batch
    variants = partial(loss_variants, candidates=candidates, batch=batch, classes=classes, by_sample=by_sample)
    return Case("soft_target_loss", name, dtype, moved, variants, devices)


def loss_variants(
    case: Case, device: torch.device, *, candidates: int | None, batch: int, classes: int, by_sample: bool
) -> dict[str, Call]:
    shape = (*lead(candidates), batch, classes)
    rows = "sample" if by_sample else "class"
    target_shape = shape if by_sample else (*lead(candidates), classes, classes)
    targets = draw_logits(target_shape, torch.float32, device, 0).detach().softmax(-1)
    sets = [
        (draw_logits(shape, case.dtype, device, i), draw_labels(batch, classes, device, i), targets)
        for i in range(case.sets)
    ]
    temperature = torch.tensor(TEMPERATURE, device=device)
    loss = partial(soft_target_loss, temperature=temperature, rows=rows)
    reference = partial(loss, backend="reference")

    def kl_div(z: Tensor, y: Tensor, q: Tensor, divergence: Any = F.kl_div) -> Tensor:
        q = q if by_sample else q[..., y, :]
        flat = F.log_softmax(z / TEMPERATURE, -1).flatten(0, -2)
        return divergence(flat, q.flatten(0, -2), reduction="batchmean") * TEMPERATURE**2

    def cross_entropy(z: Tensor, y: Tensor, q: Tensor, entropy: Any = F.cross_entropy) -> Tensor:
        return entropy(z.flatten(0, -2), y.expand(z.shape[:-1]).flatten())

    variants = {
        **our_losses(case, device, loss, sets),
        EAGER: gradient_of(reference, sets),
        COMPILED: gradient_of(compiled(reference), sets),
        "F.kl_div": gradient_of(kl_div, sets),
        "F.cross_entropy": gradient_of(cross_entropy, sets),
    }
    if liger is not None and device.type == "cuda":
        variants["Liger KL"] = gradient_of(partial(kl_div, divergence=liger.kl_div), sets)
        variants["Liger cross-entropy"] = gradient_of(partial(cross_entropy, entropy=liger.cross_entropy), sets)
    return variants


def case_with_stats(candidates: int | None, batch: int, classes: int, dtype: torch.dtype) -> Case:
    population = candidates or 1
    table = min(batch, classes) * classes * 4
    moved = population * (2 * batch * classes * dtype.itemsize + 3 * table) + 8 * batch  # similarity: read and written
    variants = partial(variants_with_stats, candidates=candidates, batch=batch, classes=classes)
    return Case("soft_target_loss_with_stats", describe(candidates, batch, classes), dtype, moved, variants)


def variants_with_stats(
    case: Case, device: torch.device, *, candidates: int | None, batch: int, classes: int
) -> dict[str, Call]:
    table_shape = (*lead(candidates), classes, classes)
    targets = draw_logits(table_shape, torch.float32, device, 0).detach().softmax(-1)
    similarity = torch.zeros(table_shape, device=device)
    temperature, hard_weight = (torch.tensor(value, device=device) for value in (TEMPERATURE, HARD_WEIGHT))
    sets = [
        (
            draw_logits((*lead(candidates), batch, classes), case.dtype, device, i),
            draw_labels(batch, classes, device, i),
        )
        for i in range(case.sets)
    ]

    def loss(z: Tensor, y: Tensor, backend: str) -> Tensor:
        return soft_target_loss_with_stats(
            z, y, targets, similarity, temperature=temperature, hard_weight=hard_weight, backend=backend
        )[0]

    reference = partial(loss, backend="reference")
    return {
        **our_losses(case, device, loss, sets),
        EAGER: gradient_of(reference, sets),
        COMPILED: gradient_of(compiled(reference), sets),
    }


CPU, GPU, ANY = ("cpu",), ("cuda",), ("cpu", "cuda")
CASES = [
    *(case_of(*shape, dtype, ANY) for shape in SMALL + LARGE for dtype in BOTH),
    *(case_of(*shape, dtype, GPU) for shape in ON_GPU + MANY_CLASSES for dtype in BOTH),
    *(case_of(*shape, dtype, GPU, by_sample=True) for shape in LARGE for dtype in BOTH),
    *(case_with_stats(*shape, dtype) for shape in SMALL for dtype in BOTH),
]


@each(CASES)
def test_soft_target(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

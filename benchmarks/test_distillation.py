"""distillation_loss: loss and gradient, with one teacher and with several."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, Call, Case, compiled, gradient_of, our_losses
from benchmarks.problems import BOTH, LARGE, MANY_CLASSES, ON_GPU, SMALL, describe, draw_labels, draw_logits, lead
from benchmarks.recorded import each, show
from tfkd_fast.ops import distillation_loss

TEMPERATURE, ALPHA = 4.0, 0.9


def case_of(
    candidates: int | None, batch: int, classes: int, dtype: torch.dtype, devices: tuple[str, ...], teachers: int = 1
) -> Case:
    moved = (2 * (candidates or 1) + teachers) * batch * classes * dtype.itemsize + 8 * batch
    shape = f"M={teachers} {describe(candidates, batch, classes)}"
    variants = partial(variants_of, candidates=candidates, batch=batch, classes=classes, teachers=teachers)
    return Case("distillation_loss", shape, dtype, moved, variants, devices)


def variants_of(
    case: Case, device: torch.device, *, candidates: int | None, batch: int, classes: int, teachers: int
) -> dict[str, Call]:
    def problem(i: int) -> tuple[Tensor, ...]:
        teacher_logits = draw_logits((teachers, batch, classes), case.dtype, device, 100 + i).detach()
        student = draw_logits((*lead(candidates), batch, classes), case.dtype, device, i)
        return student, teacher_logits, draw_labels(batch, classes, device, i)

    sets = [problem(i) for i in range(case.sets)]
    temperature, alpha = (torch.tensor(value, device=device) for value in (TEMPERATURE, ALPHA))
    loss = partial(distillation_loss, temperature=temperature, alpha=alpha)
    reference = partial(loss, backend="reference")

    def by_hand(z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        flat = z.flatten(0, -2)
        prediction = F.log_softmax(flat / TEMPERATURE, -1)
        divergence = sum(
            F.kl_div(
                prediction,
                F.log_softmax(teacher / TEMPERATURE, -1).expand(z.shape).flatten(0, -2),
                reduction="batchmean",
                log_target=True,
            )
            for teacher in t
        )
        entropy = F.cross_entropy(flat, y.expand(z.shape[:-1]).flatten())
        return ALPHA * TEMPERATURE**2 * divergence / teachers + (1 - ALPHA) * entropy

    return {
        **our_losses(case, device, loss, sets),
        EAGER: gradient_of(reference, sets),
        COMPILED: gradient_of(compiled(reference), sets),
        "F.kl_div": gradient_of(by_hand, sets),
    }


GPU, ANY = ("cuda",), ("cpu", "cuda")
CASES = [
    *(case_of(*shape, dtype, ANY) for shape in SMALL[1:] + LARGE for dtype in BOTH),
    *(case_of(None, 128, 100, dtype, ANY, teachers=3) for dtype in BOTH),
    *(case_of(*shape, dtype, GPU) for shape in ON_GPU + MANY_CLASSES for dtype in BOTH),
]


@each(CASES)
def test_distillation(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

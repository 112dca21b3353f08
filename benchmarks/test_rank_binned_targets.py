"""rank_binned_targets: class tables of a population."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import COMPILED, EAGER, Call, Case, compiled, our_backends, result_of
from benchmarks.problems import draw_logits
from benchmarks.recorded import each, show
from tfkd_fast.ops import rank_binned_targets


def case_of(candidates: int, classes: int) -> Case:
    moved = 2 * candidates * classes * classes * 4
    variants = partial(variants_of, candidates=candidates, classes=classes)
    return Case("rank_binned_targets", f"P={candidates} C={classes}", torch.float32, moved, variants)


def variants_of(case: Case, device: torch.device, *, candidates: int, classes: int) -> dict[str, Call]:
    starts = [start for start in (1, 3, 6, 20) if start < classes]
    true_mass = torch.full((candidates,), 0.8, device=device)
    masses = torch.full((candidates, len(starts)), 1 / len(starts), device=device)
    sets = [(draw_logits((candidates, classes, classes), torch.float32, device, i).detach(),) for i in range(case.sets)]

    def tables(similarity: Tensor, backend: str) -> Tensor:
        return rank_binned_targets(similarity, true_mass, masses, starts, backend=backend)

    reference = partial(tables, backend="reference")
    return {
        **{name: result_of(partial(tables, backend=name), sets) for name in our_backends(case.operator, device)},
        EAGER: result_of(reference, sets),
        COMPILED: result_of(compiled(reference), sets),
    }


CASES = [case_of(1, 10), case_of(1, 100), case_of(8, 100), case_of(1, 1_000)]


@each(CASES)
def test_rank_binned_targets(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

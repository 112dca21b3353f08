"""rank_candidates: ranks, scores, order and winner of a population."""

from functools import partial
from typing import Any

import torch

from benchmarks.harness import COMPILED, EAGER, Call, Case, compiled, our_backends, result_of
from benchmarks.problems import draw_logits
from benchmarks.recorded import each, show
from tfkd_fast.ops import rank_candidates


def case_of(candidates: int, criteria: int) -> Case:
    moved = candidates * (criteria * (4 + 8) + 8 + 8) + 8
    variants = partial(variants_of, candidates=candidates, criteria=criteria)
    return Case("rank_candidates", f"K={candidates} R={criteria}", torch.float32, moved, variants)


def variants_of(case: Case, device: torch.device, *, candidates: int, criteria: int) -> dict[str, Call]:
    sets = [(draw_logits((candidates, criteria), torch.float32, device, i).detach(),) for i in range(case.sets)]
    rank = partial(rank_candidates, higher_is_better=[i % 2 == 0 for i in range(criteria)])
    reference = partial(rank, backend="reference")
    return {
        **{name: result_of(partial(rank, backend=name), sets) for name in our_backends(case.operator, device)},
        EAGER: result_of(reference, sets),
        COMPILED: result_of(compiled(reference), sets),
    }


CASES = [case_of(8, 4), case_of(256, 4)]


@each(CASES)
def test_rank_candidates(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

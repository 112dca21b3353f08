"""candidate_metrics: all nine metrics of a population on a held-out split.

torch.compile is no rival here: it takes two minutes to unroll the reference's search for the temperature. (The result,
measured once: 149 ms for K=8 N=10000 C=100 in float32 on two cores of an AMD EPYC, where C++ takes 13.)
"""

from functools import partial
from typing import Any

import torch

from benchmarks.harness import EAGER, Call, Case, our_backends, result_of
from benchmarks.problems import BOTH, draw_labels, draw_logits
from benchmarks.recorded import each, show
from tfkd_fast.ops import candidate_metrics


def case_of(candidates: int, samples: int, classes: int, dtype: torch.dtype) -> Case:
    shape = (candidates, samples, classes)
    moved = candidates * samples * classes * dtype.itemsize + 8 * samples
    variants = partial(variants_of, shape=shape)
    return Case("candidate_metrics", "K={} N={} C={}".format(*shape), dtype, moved, variants)


def variants_of(case: Case, device: torch.device, *, shape: tuple[int, int, int]) -> dict[str, Call]:
    sets = [
        (draw_logits(shape, case.dtype, device, i).detach(), draw_labels(*shape[1:], device, i))
        for i in range(case.sets)
    ]
    return {
        name: result_of(partial(candidate_metrics, backend=backend), sets)
        for name, backend in [(name, name) for name in our_backends(case.operator, device)] + [(EAGER, "reference")]
    }


CASES = [case_of(8, 10_000, classes, dtype) for classes in (10, 100) for dtype in BOTH]


@each(CASES)
def test_candidate_metrics(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

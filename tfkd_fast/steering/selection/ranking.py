"""Selection of the candidate that training continues from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tfkd_fast.ops import rank_candidates
from tfkd_fast.steering.selection.aggregation import pareto_fronts, z_sums
from tfkd_fast.steering.selection.criteria import CandidateScore, find_criterion
from tfkd_fast.steering.selection.settings import DECISIVE, RankedSelectionSettings


@dataclass(frozen=True)
class Selection:
    """The result of one selection among N candidates by R criteria, in plain numbers."""

    criteria: tuple[str, ...]
    """Names of the R criteria."""
    higher_is_better: tuple[bool, ...]
    """Directions of the R criteria."""
    values: tuple[tuple[float, ...], ...]
    """N rows of R measured criteria."""
    ranks: tuple[tuple[float, ...], ...]
    """N rows of R ranks, of which 1 is best."""
    front: tuple[int, ...]
    """Pareto fronts of the N candidates: 1 for a candidate that no other dominates."""
    aggregate: str
    """Name of the aggregate, see `SelectionSettings.aggregate`."""
    scores: tuple[float, ...]
    """N scores of the aggregate, lower is better: the weighted sum of ranks ("borda") or of standardised values
    ("z-sum"), the rank under holdout-top1 ("accuracy"), or the front ("pareto")."""
    order: tuple[int, ...]
    """Indices of the candidates, best first."""
    winner: int
    """Index of the best candidate."""


def select(scores: Sequence[CandidateScore], settings: RankedSelectionSettings) -> Selection:
    """Rank the candidates by every criterion of `settings` and order them by the aggregate.

    Candidates of equal score stay in the Borda order (see `ops.rank_candidates`). If one candidate dominates another,
    no aggregate gives it the worse score, and the Borda order has it first: a dominated candidate never wins. A
    candidate that diverged comes after all others, whatever its criteria and aggregate say.

    Raises:
        ValueError: there are no candidates, or averaged-top1 is a criterion and a score has no averaged accuracy.
    """
    if not scores:
        raise ValueError("scores must hold one candidate at least, got none")
    criteria = [find_criterion(name) for name in settings.criteria]
    higher_is_better = tuple(criterion.higher_is_better for criterion in criteria)
    values = tuple(tuple(float(criterion.value(score)) for criterion in criteria) for score in scores)
    borda = rank_candidates(torch.tensor(values, dtype=torch.float64), higher_is_better, settings.weights)
    ranks = tuple(map(tuple, borda.ranks.tolist()))
    front = pareto_fronts(ranks)
    aggregated: tuple[float, ...]
    match settings.aggregate:
        case "borda":
            aggregated = tuple(borda.scores.tolist())
        case "z-sum":
            aggregated = z_sums(values, higher_is_better, settings.weights or [1.0] * len(criteria))
        case "accuracy":
            decisive = settings.criteria.index(DECISIVE)
            aggregated = tuple(row[decisive] for row in ranks)
        case "pareto":
            aggregated = tuple(map(float, front))
    diverged = [score.diverged for score in scores]
    order = tuple(sorted(borda.order.tolist(), key=lambda slot: (diverged[slot], aggregated[slot])))  # stable
    return Selection(
        criteria=settings.criteria,
        higher_is_better=higher_is_better,
        values=values,
        ranks=ranks,
        front=front,
        aggregate=settings.aggregate,
        scores=aggregated,
        order=order,
        winner=order[0],
    )

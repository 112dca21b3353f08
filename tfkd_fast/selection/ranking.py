"""Choose the candidate that training continues from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tfkd_fast.ops import rank_candidates
from tfkd_fast.selection.criteria import CRITERIA, CandidateScore
from tfkd_fast.selection.settings import SelectionSettings


@dataclass(frozen=True)
class Selection:
    """One selection among N candidates by R criteria, in plain numbers."""

    criteria: tuple[str, ...]
    higher_is_better: tuple[bool, ...]
    values: tuple[tuple[float, ...], ...]
    """N x R, the criteria as measured."""
    ranks: tuple[tuple[float, ...], ...]
    """N x R, 1 is best."""
    scores: tuple[float, ...]
    """N weighted sums of ranks, lower is better."""
    order: tuple[int, ...]
    """Candidates, best first."""
    winner: int


def select(scores: Sequence[CandidateScore], settings: SelectionSettings) -> Selection:
    """Rank the candidates by every criterion of `settings` and aggregate the ranks (see `ops.rank_candidates`).

    Raises:
        ValueError: for no candidates, or for averaged-top1 without averaged accuracies.
    """
    if not scores:
        raise ValueError("scores must hold one candidate at least, got none")
    criteria = [CRITERIA[name] for name in settings.criteria]
    higher_is_better = tuple(criterion.higher_is_better for criterion in criteria)
    values = tuple(tuple(criterion.value(score) for criterion in criteria) for score in scores)
    ranking = rank_candidates(torch.tensor(values, dtype=torch.float64), higher_is_better, settings.weights)
    return Selection(
        criteria=settings.criteria,
        higher_is_better=higher_is_better,
        values=values,
        ranks=tuple(map(tuple, ranking.ranks.tolist())),
        scores=tuple(ranking.scores.tolist()),
        order=tuple(ranking.order.tolist()),
        winner=int(ranking.winner),
    )

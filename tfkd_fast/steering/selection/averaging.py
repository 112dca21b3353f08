"""The average of several candidates, which is ranked as one more candidate.

Candidates that part from one parent late enough stay in one basin of the loss, where the mean of their weights is a
better network than each of them (Wortsman et al., ICML 2022; Jolicoeur-Martineau et al., TMLR 2024), and no candidate's
training is thrown away. That the average has to win a multi-ranking selection is our choice.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tfkd_fast.steering.selection.criteria import CandidateScore
from tfkd_fast.steering.selection.ranking import select
from tfkd_fast.steering.selection.settings import Average, RankedSelectionSettings


class CandidateAverage(NamedTuple):
    """The average of the weights of several candidates."""

    members: tuple[int, ...]
    """The candidates, best first."""
    score: CandidateScore


def average_candidates(
    rule: Average,
    order: Sequence[int],
    scores: Sequence[CandidateScore],
    settings: RankedSelectionSettings,
    judge: Callable[[tuple[int, ...]], CandidateScore],
) -> CandidateAverage | None:
    """Form the average by a rule of `IntervalSelectionSettings.average`.

    Args:
        rule: the rule.
        order: the candidates that did not diverge, best first.
        scores: the scores of all candidates.
        settings: the criteria and the aggregate by which the greedy soup is compared with and without a candidate.
        judge: gives the score of the average of some candidates.

    Returns:
        The average; None where the rule asks for none, or for that of a single candidate.
    """
    if rule == "greedy":
        return _greedy_soup(order, scores, settings, judge)
    members = {"none": (), "all": tuple(order), "best-two": tuple(order[:2])}[rule]
    return CandidateAverage(members, judge(members)) if len(members) > 1 else None


def _greedy_soup(
    order: Sequence[int],
    scores: Sequence[CandidateScore],
    settings: RankedSelectionSettings,
    judge: Callable[[tuple[int, ...]], CandidateScore],
) -> CandidateAverage | None:
    soup = CandidateAverage((order[0],), scores[order[0]])
    for slot in order[1:]:
        members = (*soup.members, slot)
        larger = CandidateAverage(members, judge(members))
        if select([soup.score, larger.score], settings).winner == 1:
            soup = larger
    return soup if len(soup.members) > 1 else None

"""Multi-ranking selection (MRS): several candidates train, are ranked by several criteria, and the best survive.

The name is from Jiang et al., IEEE Access 2024; criteria, aggregation and times of selection are our choice.
"""

from tfkd_fast.steering.selection.averaging import CandidateAverage, average_candidates
from tfkd_fast.steering.selection.criteria import CRITERIA, CandidateScore, RankingCriterion, find_criterion
from tfkd_fast.steering.selection.plan import PlannedInterval, max_candidates, next_interval
from tfkd_fast.steering.selection.ranking import Selection, select
from tfkd_fast.steering.selection.settings import (
    IntervalSelectionSettings,
    NoSelectionSettings,
    RankedSelectionSettings,
    SelectionSettings,
)
from tfkd_fast.steering.selection.variation import learning_rate_factors

__all__ = [
    "CRITERIA",
    "CandidateAverage",
    "CandidateScore",
    "IntervalSelectionSettings",
    "NoSelectionSettings",
    "PlannedInterval",
    "RankedSelectionSettings",
    "RankingCriterion",
    "Selection",
    "SelectionSettings",
    "average_candidates",
    "find_criterion",
    "learning_rate_factors",
    "max_candidates",
    "next_interval",
    "select",
]

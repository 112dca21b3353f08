"""Multi-Ranking Selection (MRS): when several candidates run, how they are ranked, and which one lives on.

The name is from Jiang et al., IEEE Access 2024; criteria, aggregation and instants are our choice.
"""

from tfkd_fast.selection.criteria import CRITERIA, CandidateScore, Criterion
from tfkd_fast.selection.plan import PlannedInterval, next_interval
from tfkd_fast.selection.ranking import Selection, select
from tfkd_fast.selection.settings import SelectionSettings

__all__ = [
    "CRITERIA",
    "CandidateScore",
    "Criterion",
    "PlannedInterval",
    "Selection",
    "SelectionSettings",
    "next_interval",
    "select",
]

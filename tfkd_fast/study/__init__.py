"""Compares recipes: a table of rows, each trained under the same seeds, in processes side by side."""

from tfkd_fast.study.plan import Row, Study, distinct, load_study, shipped_studies
from tfkd_fast.study.runner import Run, Runner, StudyFolder

__all__ = ["Row", "Run", "Runner", "Study", "StudyFolder", "distinct", "load_study", "shipped_studies"]

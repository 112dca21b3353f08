"""Results of made-up runs in three rows under three seeds."""

from typing import Any

from tfkd_fast.study.results import Pairs, ResultRow, Runs, StudyResults

ROWS = {"ce": ResultRow("cross-entropy"), "a": ResultRow("a"), "b": ResultRow("b")}


def results_of(
    runs: Runs,
    rows: dict[str, ResultRow] = ROWS,
    contrasts: dict[str, Pairs] | None = None,
    failures: dict[str, str] | None = None,
) -> StudyResults:
    return StudyResults("s", (0, 1, 2), "ce", rows, runs, contrasts or {}, failures or {})


def summary(top1: float, **figures: Any) -> dict[str, Any]:
    known = {"student_epochs": 30, "holdout_top1": 40.0, "test_nll": 2.5, "test_ece": 0.1, "seconds": 60.0}
    return {"test_top1": top1, "device_name": "a machine", "precision": "fp32", **known, **figures}


def runs(**top1: dict[int, float]) -> dict[str, dict[int, dict[str, Any]]]:
    return {row: {seed: summary(value) for seed, value in values.items()} for row, values in top1.items()}

"""The accuracy of the student in each group of classes, and how much of it was forgotten."""

import math
from collections.abc import Sequence
from typing import Any

import torch


class Marks:
    """The accuracy of a group is the mean over its classes, on held-out images, among all classes that are known then:
    it falls a little as others join. NaN before the group's own grade.

    Forgotten of a group is its best accuracy at the end of a grade, less that at the end of the last grade.
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self._groups = groups
        self._latest: list[float] = []  # a fraction for each group; empty where no images are held out
        self._ends: list[list[float]] = []  # the latest at the end of each grade so far

    def record(self, top1_by_class: Sequence[float] | None) -> None:
        """Record an epoch: held-out top-1 by class, (C,) fractions, NaN where none was judged; None without held-out
        images."""
        if top1_by_class is not None:
            top1 = torch.tensor(top1_by_class, dtype=torch.float64)
            self._latest = [float(top1[list(group)].nanmean()) for group in self._groups]

    def end_grade(self) -> None:
        """Keep the latest accuracies as those at the end of a grade."""
        if self._latest:
            self._ends.append(self._latest)

    def latest(self) -> list[float]:
        """The latest accuracy of each group, in percent."""
        return [100.0 * top1 for top1 in self._latest]

    def summary(self) -> dict[str, Any]:
        """Accuracy and forgetting of each group, in percent; empty where no images are held out."""
        if not self._ends:
            return {}
        final = self._ends[-1]
        known = [[top1 for top1 in group if not math.isnan(top1)] for group in zip(*self._ends, strict=True)]
        best = [max(group, default=math.nan) for group in known]
        return {
            "group_top1": [100.0 * top1 for top1 in final],
            "group_forgetting": [100.0 * (top1 - last) for top1, last in zip(best, final, strict=True)],
        }

    def state_dict(self) -> dict[str, Any]:
        return {"ends": [*self._ends]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ends = [*state["ends"]]

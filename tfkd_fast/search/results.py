"""What came of the trials of a search: the best, and all of them as JSON and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from tfkd_fast.search.plan import Search
from tfkd_fast.search.trials import REASON
from tfkd_fast.strict_json import to_json

State = Literal["finished", "pruned", "failed", "in progress", "waiting"]

STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class TrialRecord:
    """A trial, and what came of it by now."""

    number: int
    state: State
    values: Mapping[str, Any]
    """Searched key -> value."""
    judgement: float | None
    """What decides between trials: of the student of the last epoch, or of the epoch after which it was pruned."""
    top1: float | None
    """Held-out top-1 of that student, in percent."""
    nll: float | None
    """Held-out calibrated NLL of that student, nats."""
    course: Mapping[int, float]
    """The judgement after each epoch, of the best candidate."""
    reason: str
    """Why it failed; empty where it did not."""

    @property
    def epochs(self) -> int:
        """Number of epochs that were judged."""
        return max(self.course, default=0)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("finished", "pruned", "failed")


def make_record(trial: FrozenTrial, values: Mapping[str, Any], is_live: bool) -> TrialRecord:
    """The record of a trial of Optuna's with these values, which may be in progress."""
    state = STATES.get(trial.state, "in progress" if is_live else "waiting")
    return TrialRecord(
        trial.number,
        state,
        values,
        trial.value if state in ("finished", "pruned") else None,
        trial.user_attrs.get("top1"),
        trial.user_attrs.get("nll"),
        dict(trial.intermediate_values),
        trial.user_attrs.get(REASON, ""),
    )


@dataclass(frozen=True)
class SearchResults:
    """The trials of one search, in the order of their numbers."""

    search: Search
    planned: int
    """Number of trials that are to be trained."""
    trials: Sequence[TrialRecord]

    @cached_property
    def best_first(self) -> list[TrialRecord]:
        """The finished trials, the best first; of equal ones the earlier."""
        finished = [trial for trial in self.trials if trial.state == "finished" and trial.judgement is not None]
        sign = -1 if self.search.higher_is_better else 1
        return sorted(finished, key=lambda trial: (sign * (trial.judgement or 0.0), trial.number))

    @property
    def best(self) -> TrialRecord | None:
        """The best of the finished trials; None before the first."""
        return self.best_first[0] if self.best_first else None

    @property
    def ended(self) -> int:
        """Number of trials that have ended."""
        return sum(trial.has_ended for trial in self.trials)

    def count(self, state: State) -> int:
        """Number of trials in a state."""
        return sum(trial.state == state for trial in self.trials)


def as_json(results: SearchResults) -> dict[str, Any]:
    """The trials as plain values."""
    return {
        "search": results.search.name,
        "judge": results.search.settings.judge,
        "planned": results.planned,
        "best": results.best.number if results.best else None,
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "values": dict(trial.values),
                "judgement": trial.judgement,
                "holdout_top1": trial.top1,
                "holdout_calibrated_nll": trial.nll,
                "epochs": trial.epochs,
                "course": {str(epoch): judgement for epoch, judgement in trial.course.items()},
                "reason": trial.reason,
            }
            for trial in results.trials
        ],
    }


def as_csv(results: SearchResults) -> str:
    """The trials as a table with a column for each key; lists and tables are JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [item.key for item in results.search.ranges]
    writer.writerow(["number", "state", "holdout_calibrated_nll", "holdout_top1", "epochs", *keys, "reason"])
    for trial in results.trials:
        values = [value_cell(trial.values[key]) for key in keys]
        writer.writerow([trial.number, trial.state, trial.nll, trial.top1, trial.epochs, *values, trial.reason])
    return text.getvalue()


def value_cell(value: Any) -> str:
    """A value of a key as a recipe file has it, all digits."""
    return value if isinstance(value, str) else to_json(value)

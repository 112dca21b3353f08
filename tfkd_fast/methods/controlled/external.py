"""Targets that the caller sets before each interval, for students that train side by side without selection."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.events import Event
from tfkd_fast.methods.base import (
    Context,
    EpochResult,
    Interval,
    IntervalResult,
    JudgeAverage,
    Loss,
    Outcome,
    Plan,
    SteeredMethod,
    StepBatch,
)
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.methods.controlled.standing import Standing, progress_of
from tfkd_fast.methods.controlled.teaching import Teaching, target_needs, warmup_epochs
from tfkd_fast.steering import selection
from tfkd_fast.steering.control import Snapshot
from tfkd_fast.steering.selection import NoSelectionSettings


class ExternalTargets(SteeredMethod):
    """Students that train side by side and whose targets the caller sets before each interval.

    Target, interval, warm-up and cooldown are those of the settings; controller and selection are not used.
    """

    def __init__(self, settings: ControlledTargetsSettings, context: Context, students: int) -> None:
        """
        Raises:
            UserError: for a target that takes no action, or one by which students teach each other.
        """
        if "peers" in settings.target.sources:
            raise UserError("students that are steered from outside learn alone: take peers out of target.sources")
        cooldown_epochs = settings.controller.cooldown_epochs
        self.needs = replace(
            target_needs(settings.target),
            candidates=students,
            holdout=True,
            averages=frozenset() if cooldown_epochs else frozenset({"epoch"}),
            cooldown_epochs=cooldown_epochs,
        )
        self._context = context
        self._interval = settings.controller.interval
        self._teaching = Teaching(settings.target, context, students)
        if not self._teaching.space.action_size:
            raise UserError(
                f"there is nothing to steer in the {self._teaching.space.family} target: "
                "choose target.family scalar, rank-binned or full-matrix"
            )
        self.space = self._teaching.space
        self.warmup = warmup_epochs(settings.target, settings.controller.warmup_epochs, context.epochs)
        """Epochs that are trained on the one-hot label before the first decision."""
        self.actions: Tensor | None = None
        """(P,A) float32: the actions of the next interval; the caller sets them before every interval after the
        warm-up."""
        self.data_streams = list(range(students))
        """The random stream of each student's data order and augmentation; set between intervals."""
        self._standings = [Standing.untrained(context.num_classes)] * students
        self._before = self._standings  # one interval earlier

    def interval_epochs(self) -> Iterator[int]:
        """The epochs of each interval of a whole run, in their order."""
        epoch = 0
        while epoch < self._context.epochs:
            yield self._epochs_from(epoch)
            epoch += self._epochs_from(epoch)

    def _epochs_from(self, epoch: int) -> int:
        planned = selection.next_interval(
            epoch, self._context.epochs, self.warmup, NoSelectionSettings(), self._interval
        )
        return planned.epochs

    def begin_interval(self, epoch: int) -> Plan:
        epochs = self._epochs_from(epoch)
        self._teaching.set_actions(None if epoch < self.warmup else self.actions, self.needs.candidates)
        return Plan(Interval(epoch, epochs, self.needs.candidates), data_streams=tuple(self.data_streams))

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        return self._teaching.loss(logits, batch)

    def end_epoch(self, results: Sequence[EpochResult]) -> Iterable[Event]:
        self._teaching.end_epoch()
        return ()

    def cooldown(self) -> AbstractContextManager[None]:
        return self._teaching.cooldown()

    def end_interval(self, results: Sequence[IntervalResult], judge_average: JudgeAverage) -> Outcome:
        self._before = self._standings
        self._standings = [
            Standing.after(before, result, self._teaching.true_mass(slot))
            for slot, (before, result) in enumerate(zip(self._before, results, strict=True))
        ]
        return Outcome(tuple(range(self.needs.candidates)))

    def snapshots(self, epoch: int) -> list[Snapshot]:
        """The students as they stand before the interval that starts at `epoch`."""
        return [
            Snapshot(epoch, progress_of(self._context, epoch, now, before), target["divergence"])
            for now, before, target in zip(self._standings, self._before, self._teaching.describe(), strict=True)
        ]

    def candidate_tensors(self) -> dict[str, Tensor]:
        return self._teaching.candidate_tensors()

    def state_dict(self) -> dict[str, Any]:
        return {
            "teaching": self._teaching.state_dict(self.needs.candidates),
            "standings": [asdict(standing) for standing in self._standings],
            "before": [asdict(standing) for standing in self._before],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that was saved between two intervals."""
        self._teaching.load_state_dict(state["teaching"])
        self._teaching.set_actions(None, self.needs.candidates)
        self._standings = [Standing.from_state_dict(values) for values in state["standings"]]
        self._before = [Standing.from_state_dict(values) for values in state["before"]]

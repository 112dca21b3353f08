"""Teacher-free distillation from a target table that a controller sets, with or without selection among candidates.

Cross-entropy and label smoothing are the same method under a fixed controller. The frame (a free-form,
non-progressive target set by reinforcement learning; Multi-Ranking Selection) is that of Jiang et al., "Teacher-free
knowledge distillation based on non-progressive meta-learned reinforcement learning", IEEE Access 12, 2024. How the
paper parameterises targets, states, rewards and rankings is not public: those here are our choice.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from tfkd_fast import control, ops, selection, targets
from tfkd_fast.control import ControllerSettings, Decision, Progress
from tfkd_fast.methods.protocol import (
    Context,
    EpochResult,
    Event,
    Interval,
    IntervalResult,
    Method,
    Outcome,
    Plan,
    TrainingStatistics,
)
from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.selection import CandidateScore, Selection, SelectionSettings
from tfkd_fast.settings import Settings
from tfkd_fast.targets import SimilarityMemory, TargetSettings

DROP = 0.5
"""A learning rate below this share of the epoch before is a drop, and makes held-out figures jump (our choice)."""

LONGEST_WARMUP = 0.25
"""The warm-up takes at most this share of the run, so that short runs are controlled, too (our choice)."""


class ControlledTargetsSettings(Settings):
    """The tables of a recipe that belong to these methods."""

    target: TargetSettings = TargetSettings()
    controller: ControllerSettings = ControllerSettings()
    selection: SelectionSettings = SelectionSettings()


@dataclass(frozen=True)
class Standing:
    """The surviving student at the end of an interval: what the next one is compared with."""

    training: TrainingStatistics
    top1: float  # held-out, fraction
    nll: float  # held-out, temperature-calibrated
    true_mass: float  # of the target that it was taught with
    nll_history: tuple[float, ...]  # calibrated held-out NLL after each epoch of its lineage


class ControlledTargets(Method):
    """A target family, a controller that acts on it, and a selection among candidates."""

    def __init__(self, settings: ControlledTargetsSettings, context: Context) -> None:
        self._settings, self._context = settings, context
        classes = context.num_classes
        self._target = targets.build_target(settings.target, classes)
        self._controller = control.build_controller(settings.controller, self._target, context.seed)
        selects = settings.selection.budget != "none"
        self.max_candidates = settings.selection.candidates if selects else 1
        self.needs_holdout = selects or self._controller.learns
        self.needs_epoch_average = self.needs_holdout
        self.needs_interval_average = settings.selection.needs_average
        wanted = settings.controller.warmup_epochs if self._target.uses_similarity else 0
        self._warmup = min(wanted, int(LONGEST_WARMUP * context.epochs))
        self._memory = SimilarityMemory(self.max_candidates, classes, settings.target.memory_decay, context.device)
        self._one_hot = targets.one_hot_table(classes).to(context.device)
        untrained = TrainingStatistics(math.log(classes), 1 / classes, 1 / classes, math.log(classes))
        self._standing = Standing(untrained, 1 / classes, math.log(classes), 1.0, ())
        self._before = self._standing  # the standing one interval earlier
        self._number = -1
        self._interval = Interval(0, 0, 0)
        self._decision: Decision | None = None  # None during the warm-up
        self._histories: list[tuple[float, ...]] = []
        self._tables = self._one_hot.repeat(self.max_candidates, 1, 1)  # keep their place: see `Method.loss`

    def data_stream(self, candidate: int) -> int:
        return candidate if self._settings.selection.data_order == "own" else 0

    def begin_interval(self, epoch: int) -> Plan:
        """Warm-up on one-hot labels first, so that the class similarities mean something; then one decision each."""
        length, candidates = selection.next_interval(
            epoch, self._context.epochs, self._warmup, self._settings.selection, self._settings.controller.interval
        )
        self._number += 1
        self._interval = Interval(epoch, length, candidates)
        warming_up = epoch < self._warmup
        self._decision = None if warming_up else self._controller.decide(self._progress(epoch), candidates)
        self._histories = [self._standing.nll_history] * candidates
        self._refresh_tables()
        return Plan(self._interval, [self._decision_event()] if self._target.action_size else [])

    def loss(self, logits: Tensor, labels: Tensor, candidates: slice) -> tuple[Tensor, SoftTargetStats]:
        """Cross-entropy to the target up to a constant, KL(q || p): its gradient in the logits is p - q."""
        similarity = self._memory.accumulator[candidates] if self._target.uses_similarity else None
        return ops.soft_target_loss_with_stats(logits, labels, self._tables[candidates], similarity)

    def end_epoch(self, results: Sequence[EpochResult]) -> None:
        """Similarities move with the student, and the ranks that the tables are built on move with them."""
        if self._target.uses_similarity:
            self._memory.end_epoch()
            self._refresh_tables()
        self._histories = [
            (*history, result.holdout.calibrated_nll) if result.holdout else history
            for history, result in zip(self._histories, results, strict=True)
        ]

    def end_interval(self, results: Sequence[IntervalResult]) -> Outcome:
        standings = [self._stand(slot, result) for slot, result in enumerate(results)]
        events: list[Event] = []
        winner = 0
        if len(results) > 1:
            scores = [self._score(standing, result) for standing, result in zip(standings, results, strict=True)]
            choice = selection.select(scores, self._settings.selection)
            winner = choice.winner
            events.append(self._selection_event(choice))
        self._before, self._standing = self._standing, standings[winner]
        if self._decision is not None and self._controller.learns:
            events.append(self._learn(self._decision, standings, winner))
        self._memory.copy_candidate(winner)
        return Outcome(winner, events)

    def state_dict(self) -> dict[str, Any]:
        decision = self._decision
        return {
            "controller": self._controller.state_dict(),
            "memory": self._memory.state_dict(),
            "number": self._number,
            "interval": list(asdict(self._interval).values()),
            "decision": decision and decision.state_dict(),
            "histories": [list(history) for history in self._histories],
            "standing": _pack(self._standing),
            "before": _pack(self._before),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._controller.load_state_dict(state["controller"])
        self._memory.load_state_dict(state["memory"])
        self._number = state["number"]
        self._interval = Interval(*state["interval"])
        self._decision = state["decision"] and Decision.from_state_dict(state["decision"])
        self._histories = [tuple(history) for history in state["histories"]]
        self._standing, self._before = _unpack(state["standing"]), _unpack(state["before"])
        self._refresh_tables()

    def _refresh_tables(self) -> None:
        """The table of each candidate, from its action and its own similarities."""
        tables = self._tables[: self._interval.candidates]
        if self._decision is None:
            tables.copy_(self._one_hot.expand_as(tables))
        else:
            actions = self._decision.actions.to(self._context.device)
            tables.copy_(self._target.tables(actions, self._memory.similarity[: len(tables)]))

    def _progress(self, epoch: int) -> Progress:
        """What the controller observes before the interval that starts at `epoch`."""
        now, before = self._standing, self._before
        return Progress(
            num_classes=self._context.num_classes,
            epoch_fraction=epoch / self._context.epochs,
            learning_rate_ratio=self._context.learning_rate_ratio(epoch),
            train_loss=now.training.loss,
            train_top1=now.training.top1,
            holdout_top1=now.top1,
            holdout_nll=now.nll,
            delta_top1=now.top1 - before.top1,
            delta_nll=now.nll - before.nll,
            entropy=now.training.entropy,
            true_probability=now.training.true_probability,
            true_mass=now.true_mass,
        )

    def _stand(self, slot: int, result: IntervalResult) -> Standing:
        """Judged by averaged weights where there are any: the last iterate is noisy at a high learning rate."""
        judged = result.epoch_average or result.last
        top1, nll = (judged.top1, judged.calibrated_nll) if judged else (math.nan, math.nan)
        mass = float(self._tables[slot].diagonal().mean())
        return Standing(result.training, top1, nll, mass, self._histories[slot])

    def _score(self, standing: Standing, result: IntervalResult) -> CandidateScore:
        return CandidateScore(
            top1=standing.top1,
            nll=standing.nll,
            averaged_top1=result.interval_average.top1 if result.interval_average else None,
            train_top1=standing.training.top1,
            nll_history=standing.nll_history,
        )

    def _learn(self, decision: Decision, standings: list[Standing], winner: int) -> Event:
        """Reward the controller for the decision of this interval."""
        ratio, interval = self._context.learning_rate_ratio, self._interval
        drops = any(
            ratio(epoch) < DROP * ratio(epoch - 1) for epoch in range(max(1, interval.first_epoch), interval.end)
        )
        judged = control.Outcome(
            top1=tuple(standing.top1 for standing in standings),
            nll=tuple(standing.nll for standing in standings),
            parent_top1=self._before.top1,
            parent_nll=self._before.nll,
            winner=winner,
            comparable=not drops,
        )
        feedback = self._controller.learn(decision, judged, self._progress(interval.end))
        return {
            "event": "reward",
            "interval": self._number,
            "rewards": list(feedback.rewards),
            "advantages": feedback.advantages and list(feedback.advantages),
            "update": feedback.update,
        }

    def _decision_event(self) -> Event:
        candidates = self._interval.candidates
        summaries = targets.describe(self._tables[:candidates], self._memory.similarity[:candidates])
        decision = self._decision
        return {
            "event": "decision",
            "interval": self._number,
            "first_epoch": self._interval.first_epoch + 1,
            "epochs": self._interval.epochs,
            "candidates": [
                {
                    "role": decision.roles[slot] if decision else "warm-up",
                    "action": decision.actions[slot].tolist() if decision else [],
                    "log_probability": decision.log_probability(slot) if decision else None,
                    **asdict(summaries[slot]),
                }
                for slot in range(candidates)
            ],
        }

    def _selection_event(self, choice: Selection) -> Event:
        return {"event": "selection", "interval": self._number, "epoch": self._interval.end, **asdict(choice)}


def _pack(standing: Standing) -> dict[str, Any]:
    return asdict(standing)


def _unpack(values: dict[str, Any]) -> Standing:
    return Standing(**values | {"training": TrainingStatistics(**values["training"])})

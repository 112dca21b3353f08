"""Teacher-free distillation from a target table that a controller sets, with or without selection among candidates.

Cross-entropy and label smoothing are the same method under a fixed controller. The frame (a free-form,
non-progressive target set by reinforcement learning; Multi-Ranking Selection) is that of Jiang et al., "Teacher-free
knowledge distillation based on non-progressive meta-learned reinforcement learning", IEEE Access 12, 2024. How the
paper parameterises targets, states, rewards and rankings is not public: those here are our choice.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any, ClassVar

from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.events import (
    CandidateSelected,
    CandidateTarget,
    ControllerRewarded,
    Event,
    TargetApplied,
    TargetsDecided,
)
from tfkd_fast.methods.base import (
    Context,
    EpochResult,
    Interval,
    IntervalResult,
    JudgeAverage,
    Loss,
    Needs,
    Outcome,
    Plan,
    SteeredMethod,
    StepBatch,
)
from tfkd_fast.methods.base.needs import Average
from tfkd_fast.methods.controlled.standing import Standing, progress_of
from tfkd_fast.methods.controlled.target_log import mean_target, present_targets
from tfkd_fast.methods.controlled.teaching import Teaching, target_needs, warmup_epochs
from tfkd_fast.settings import ReadAcross, Settings
from tfkd_fast.steering import control, selection
from tfkd_fast.steering.control import ControllerSettings, Decision, PPOSettings, Progress
from tfkd_fast.steering.selection import (
    CandidateAverage,
    CandidateScore,
    IntervalSelectionSettings,
    NoSelectionSettings,
    PlannedInterval,
    RankedSelectionSettings,
    Selection,
    SelectionSettings,
)
from tfkd_fast.steering.targets import LEAST_RISE, RankBinnedTargetSettings, TargetSettings

POLICY = "policy.safetensors"
"""Name of the file that the controller's policy is kept in."""

DROP = 0.5
"""A learning rate below this share of the epoch before is a drop, and makes held-out figures jump (our choice)."""


class ControlledTargetsSettings(Settings):
    """The tables of a recipe that belong to these methods."""

    across: ClassVar = (
        ReadAcross(
            "controller",
            "warmup_epochs",
            lambda tables: tables.target.refers_to_student,
            "target.family is rank-binned or target.sources is not empty",
        ),
        ReadAcross(
            "controller",
            "interval",
            lambda tables: (
                tables.controller.moves_on or tables.selection.budget != "full" or tables.selection.start > 0
            ),
            "the controller plays a policy or a schedule, selection.budget is not full, or selection.start is above 0",
        ),
        ReadAcross(
            "controller",
            "cooldown_epochs",
            lambda tables: tables.controller.learns or tables.selection.budget != "none",
            "the controller learns or selection.budget is not none",
        ),
        ReadAcross(
            "controller",
            "group_buffer",
            lambda tables: tables.selection.budget != "none" and tables.selection.target == "own",
            "selection.budget is not none and selection.target is own",
        ),
        *(
            ReadAcross(
                "controller",
                key,
                lambda tables: tables.selection.budget != "full" or tables.selection.target == "shared",
                "selection.budget is not full or selection.target is shared",
            )
            for key in ("single_buffer", "discount", "gae_lambda")
        ),
        ReadAcross(
            "target",
            "shared_memory",
            lambda tables: tables.selection.budget != "none" or "peers" in tables.target.sources,
            "several candidates train: selection.budget is not none, or target.sources has peers",
        ),
        ReadAcross("target", "peers", lambda tables: tables.selection.budget == "none", "selection.budget is none"),
        ReadAcross(
            "selection",
            "target",
            lambda tables: tables.controller.explores,
            "the controller gives each candidate an action of its own",
        ),
        ReadAcross(
            "selection",
            "average",
            lambda tables: not tables.controller.cooldown_epochs,
            "controller.cooldown_epochs is 0: an average is judged as it is",
        ),
        ReadAcross(
            "selection",
            "data_order",
            lambda tables: "peers" not in tables.target.sources,
            "target.sources has no peers, who all see the same images",
        ),
    )
    target: TargetSettings = RankBinnedTargetSettings()
    """The target distributions that the student learns from."""
    controller: ControllerSettings = PPOSettings()
    """The controller that sets the targets as training goes."""
    selection: SelectionSettings = NoSelectionSettings()
    """When several candidates train, and how the best of them is selected."""


class ControlledTargets(SteeredMethod):
    """A target family, a controller that acts on it, and a selection among candidates."""

    FILES: ClassVar = (POLICY,)
    per_sample = True

    @classmethod
    def needs_for(cls, settings: ControlledTargetsSettings) -> Needs:
        """The needs of the tables; held-out images are needed where candidates are selected or the controller
        learns."""
        target, chosen = target_needs(settings.target), settings.selection
        selects = isinstance(chosen, RankedSelectionSettings)
        beside_each_other = target.joint_steps and not selects  # peers that train to the end
        holdout = selects or settings.controller.learns
        cooldown_epochs = settings.controller.cooldown_epochs if holdout else 0
        averages: dict[Average, bool] = {"epoch": holdout and not cooldown_epochs, "interval": chosen.needs_average}
        return replace(
            target,
            candidates=settings.target.peers if beside_each_other else selection.max_candidates(chosen),
            holdout=holdout,
            averages=frozenset(name for name, wanted in averages.items() if wanted),
            judges_epochs=averages["epoch"] and settings.controller.moves_on and settings.controller.observes,
            averaged_candidates=isinstance(chosen, IntervalSelectionSettings) and chosen.average != "none",
            cooldown_epochs=cooldown_epochs,
            influence=settings.controller.needs_gradient,
            own_weights=beside_each_other,  # from one parent there is little to learn
        )

    @classmethod
    def intervals_for(cls, settings: ControlledTargetsSettings, epochs: int) -> Iterator[Interval]:
        warmup = warmup_epochs(settings.target, settings.controller.warmup_epochs, epochs)
        selects, beside_each_other = settings.selection.budget != "none", cls.needs_for(settings).candidates
        epoch = 0
        while epoch < epochs:
            planned = selection.next_interval(epoch, epochs, warmup, settings.selection, settings.controller.interval)
            yield Interval(epoch, planned.epochs, planned.candidates if selects else beside_each_other)
            epoch += planned.epochs

    def __init__(self, settings: ControlledTargetsSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings, self._context = settings, context
        self._ranked = settings.selection if isinstance(settings.selection, RankedSelectionSettings) else None
        self._selects = self._ranked is not None
        self._peers = "peers" in settings.target.sources
        self.teaching = Teaching(settings.target, context, self.needs.candidates)
        """The present targets of the candidates, and the loss by them."""
        self._controller = control.build_controller(settings.controller, self.teaching.space, context.seed)
        self._refuse_equal_candidates()
        self._moves_on = settings.controller.moves_on
        self._one_action = self._ranked is None or self._ranked.target == "shared"
        self._warmup = warmup_epochs(settings.target, settings.controller.warmup_epochs, context.epochs)
        self._standings = [Standing.untrained(context.num_classes)]  # of those alive, best first
        self._before = self._standings[0]  # of the best, one interval earlier
        self._observed = self._before  # when the latest decision was taken
        self._number = -1
        self._interval = Interval(0, 0, 0)
        self._epoch = 0  # the number of epochs that have ended
        self._decided_at = 0  # the first epoch of the decision
        self._decision: Decision | None = None  # None during the warm-up
        self._target_log: list[list[TargetApplied]] = []  # by earlier decisions of the round, each candidate
        self._histories: list[tuple[float, ...]] = []
        self._divergences: list[float] = []  # from one-hot, of what the surviving student was taught with

    def begin_interval(self, epoch: int) -> Plan:
        """Plan a warm-up on one-hot labels first, so that the class similarities mean something, then a decision a
        round."""
        planned = self._plan_interval(epoch)
        candidates = planned.candidates
        if self._peers and not self._selects:
            candidates = self.needs.candidates  # they train beside each other to the end
        self._number += 1
        self._interval, self._epoch = Interval(epoch, planned.epochs, candidates), epoch
        self._histories = [self._standings[slot % len(self._standings)].nll_history for slot in range(candidates)]
        events: list[Event] = []
        if planned.starts_round:
            progress = progress_of(self._context, epoch, self._standings[0], self._before)
            self._target_log, self._decided_at, self._observed = [], epoch, self._standings[0]
            self._decision = None if epoch < self._warmup else self._decide(progress, candidates)
            self._apply_decision()
            events = self._decision_events(progress)
        else:
            self._apply_decision()
            if self._decision is not None and self._is_due:
                events = self._decide_anew(self._decision, self._standings[0])
        return replace(self.resume_interval(self._interval), events=events)

    def resume_interval(self, interval: Interval) -> Plan:
        own_data = self._ranked is not None and self._ranked.data_order == "own" and not self._peers
        return Plan(
            interval,
            learning_rate_factors=self._decision.learning_rate_factors if self._decision else None,
            data_streams=tuple(range(interval.candidates)) if own_data else None,
            selects=self._selects,
        )

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        return self.teaching.loss(logits, batch)

    def end_epoch(self, results: Sequence[EpochResult]) -> Iterable[Event]:
        self.teaching.end_epoch()
        sound = [slot for slot, result in enumerate(results) if math.isfinite(result.training.loss)]
        if self._settings.target.shared_memory and len(sound) > 1:
            self.teaching.instances.share(sound)
        self._histories = [
            (*history, result.holdout.calibrated_nll) if result.holdout else history
            for history, result in zip(self._histories, results, strict=True)
        ]
        self._epoch += 1
        if self._decision is not None and self._is_due and sound and self._epoch < self._interval.end:
            observed = sound[0]
            now = Standing.at_epoch(self._observed, results[observed], self.teaching.true_mass(observed))
            return self._decide_anew(self._decision, now)
        return ()

    @property
    def _is_due(self) -> bool:
        """Whether a controller that waits for no comparison decides again."""
        return self._moves_on and self._epoch - self._decided_at >= self._settings.controller.interval

    def _decide_anew(self, before: Decision, now: Standing) -> list[Event]:
        """Let the controller decide within a round of several candidates, by the standing of one of them; their
        learning rates stay."""
        self._target_log.append(self._present_targets(self._epoch))
        progress = progress_of(self._context, self._epoch, now, self._observed)
        decision = self._decide(progress, self._interval.candidates)
        self._decision = replace(decision, learning_rate_factors=before.learning_rate_factors)
        self._decided_at, self._observed = self._epoch, now
        self._apply_decision()
        return self._decision_events(progress)

    def cooldown(self) -> AbstractContextManager[None]:
        return self.teaching.cooldown()

    def end_interval(self, results: Sequence[IntervalResult], judge_average: JudgeAverage) -> Outcome:
        standings = [
            Standing.after(self._observed, result, self.teaching.true_mass(slot), self._histories[slot])
            for slot, result in enumerate(results)
        ]
        events: list[Event] = []
        average: CandidateAverage | None = None  # where training continues from one
        if self._ranked is None:
            survivors: tuple[int, ...] = tuple(range(len(results)))
        elif len(results) == 1:
            survivors = (0,)
        else:
            scores = [self._score(standing, result) for standing, result in zip(standings, results, strict=True)]
            choice = selection.select(scores, self._ranked)
            sound = [slot for slot in choice.order if not scores[slot].diverged]
            wanted = self._plan_interval(self._interval.first_epoch).survivors
            survivors = tuple(sound[rank % len(sound)] for rank in range(wanted))  # again, where too few are left
            if isinstance(self._ranked, IntervalSelectionSettings):
                judge = partial(self._judge_average, scores, judge_average)
                average = selection.average_candidates(self._ranked.average, sound, scores, self._ranked, judge)
            members: tuple[int, ...] = ()
            if average is not None:
                choice, members = selection.select([*scores, average.score], self._ranked), average.members
                average = average if choice.winner == len(scores) else None
            events.append(self._selection_event(choice, survivors, members))
        best, parent = survivors[0], self._standings[0]
        after = [standings[survivor] for survivor in survivors]
        if average is not None:
            after = [self._average_standing(standings, average)]
            self.teaching.average(average.members, into=best)
        averaged = average.members if average else ()
        if not self._selects or len(survivors) == 1:
            events += self._applied_events(averaged or (best,))
        if self._decision is not None and self._settings.controller.learns:
            gradient = self._action_gradient(best, results[best]) if self.needs.influence else None
            events.append(self._learn(self._decision, standings, best, parent, gradient, after[0]))
        if self._decision is not None:
            self._decision = self._decision.subset(survivors)
        self._target_log = [[candidates[survivor] for survivor in survivors] for candidates in self._target_log]
        self._before, self._standings = parent, after
        self.teaching.continue_from(survivors)
        return Outcome(survivors, events, averaged)

    def summary(self) -> dict[str, Any]:
        """How the surviving student's target moved away from the one-hot label; a run with any rise is
        non-progressive."""
        if not self._divergences:
            return {}
        steps = [after - before for before, after in pairwise(self._divergences)]
        return {
            "divergence_first": self._divergences[0],
            "divergence_last": self._divergences[-1],
            "divergence_rises": sum(step > LEAST_RISE for step in steps),
            "divergence_rise_nats": sum(step for step in steps if step > LEAST_RISE),
        }

    def files(self) -> dict[str, bytes]:
        """The policy file of a controller that has a policy, with which other runs can start."""
        policy = self._controller.policy_bytes()
        return {POLICY: policy} if policy else {}

    def candidate_tensors(self) -> dict[str, Tensor]:
        return self.teaching.candidate_tensors()

    def sample_sums(self) -> Sequence[Tensor]:
        return [self.teaching.similarity.accumulator]

    def image_rows(self) -> Sequence[Tensor]:
        return [self.teaching.instances.logits] if self.needs.indices else []

    def state_dict(self) -> dict[str, Any]:
        decision, alive = self._decision, max(len(self._standings), self._interval.candidates)
        return {
            "controller": self._controller.state_dict(),
            "teaching": self.teaching.state_dict(alive),
            "number": self._number,
            "interval": list(asdict(self._interval).values()),
            "epoch": self._epoch,
            "decided_at": self._decided_at,
            "decision": decision and decision.state_dict(),
            "target_log": [[event.model_dump() for event in candidates] for candidates in self._target_log],
            "histories": [list(history) for history in self._histories],
            "standings": [asdict(standing) for standing in self._standings],
            "before": asdict(self._before),
            "observed": asdict(self._observed),
            "divergences": self._divergences,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._controller.load_state_dict(state["controller"])
        self.teaching.load_state_dict(state["teaching"])
        self._number = state["number"]
        self._interval = Interval(*state["interval"])
        self._epoch, self._decided_at = state["epoch"], state["decided_at"]
        self._target_log = [[TargetApplied(**event) for event in candidates] for candidates in state["target_log"]]
        decided = control.with_every_entry(state["decision"], self.teaching.space.action_size)
        self._decision = decided and Decision.from_state_dict(decided)
        self._histories = [tuple(history) for history in state["histories"]]
        self._standings = [Standing.from_state_dict(values) for values in state["standings"]]
        self._before = Standing.from_state_dict(state["before"])
        self._observed = Standing.from_state_dict(state["observed"])
        self._divergences = list(state["divergences"])
        if self._decision is None or len(self._decision.actions) == self._interval.candidates:
            self._apply_decision()  # within an interval

    def _refuse_equal_candidates(self) -> None:
        """Candidates of one parent that differ in nothing would be the same student, trained several times."""
        chosen = self._ranked
        if chosen is None:
            return
        explores = self._settings.controller.explores and self.teaching.space.action_size
        same_target = chosen.target == "shared" or not explores
        same_data = chosen.data_order == "shared" or self._peers
        if same_target and same_data and not chosen.learning_rate_spread:
            raise UserError(
                "all candidates would be alike: set selection.learning_rate_spread above 0, selection.data_order own "
                "(which peers cannot have), or choose a controller that gives each an action of its own"
            )

    def _plan_interval(self, epoch: int) -> PlannedInterval:
        return selection.next_interval(
            epoch, self._context.epochs, self._warmup, self._settings.selection, self._settings.controller.interval
        )

    def _decide(self, progress: Progress, candidates: int) -> Decision:
        """Ask the controller for an action for each candidate, or one for all; draw learning rates where they
        differ."""
        if self._one_action:
            decision = self._controller.decide(progress, 1).subset([0] * candidates)
        else:
            decision = self._controller.decide(progress, candidates)
        asked = decision.learning_rate_factors or (1.0,) * candidates
        spread = self._ranked.learning_rate_spread if self._ranked else 0.0
        drawn = selection.learning_rate_factors(spread, self._context.seed, self._number, candidates)
        factors = tuple(a * b for a, b in zip(asked, drawn, strict=True))
        return replace(decision, learning_rate_factors=factors)

    def _apply_decision(self) -> None:
        self.teaching.set_actions(self._decision.actions if self._decision else None, self._interval.candidates)

    def _score(self, standing: Standing, result: IntervalResult) -> CandidateScore:
        return CandidateScore(
            top1=standing.top1,
            nll=standing.nll,
            averaged_top1=result.interval_average.top1 if result.interval_average else None,
            train_top1=standing.training.top1,
            nll_history=standing.nll_history,
        )

    def _judge_average(
        self, scores: Sequence[CandidateScore], judge: JudgeAverage, members: tuple[int, ...]
    ) -> CandidateScore:
        """The score of the average of some candidates: held-out figures are its own, others the mean of theirs."""
        result, own = judge(members), [scores[slot] for slot in members]
        metrics, interval_average = result.average, result.interval_average
        histories = zip(*(score.nll_history for score in own), strict=True)
        return CandidateScore(
            top1=metrics.top1,
            nll=metrics.calibrated_nll,
            averaged_top1=interval_average.top1 if interval_average else None,
            train_top1=fmean(score.train_top1 for score in own),
            nll_history=(*map(fmean, list(histories)[:-1]), metrics.calibrated_nll),
        )

    def _average_standing(self, standings: Sequence[Standing], average: CandidateAverage) -> Standing:
        """The standing of a student that is an average: held-out figures are its own, others those of its best
        member but for the mass of the target."""
        own = [standings[slot] for slot in average.members]
        score = average.score
        return replace(
            own[0],
            top1=score.top1,
            nll=score.nll,
            true_mass=fmean(standing.true_mass for standing in own),
            nll_history=score.nll_history,
        )

    def _learn(
        self,
        decision: Decision,
        standings: list[Standing],
        best: int,
        parent: Standing,
        gradient: Tensor | None,
        after: Standing,
    ) -> ControllerRewarded:
        """Reward the controller for its decision. One action for all candidates is judged by the best of them.

        Training continues from `after`, which is the standing of the best or of an average.
        """
        ratio, interval = self._context.learning_rate_ratio, self._interval
        drops = any(
            ratio(epoch) < DROP * ratio(epoch - 1) for epoch in range(max(1, interval.first_epoch), interval.end)
        )
        if self._one_action:
            decision, standings, best = decision.subset([best]), [standings[best]], 0
        judged = control.DecisionOutcome(
            top1=tuple(standing.top1 for standing in standings),
            nll=tuple(standing.nll for standing in standings),
            parent_top1=parent.top1,
            parent_nll=parent.nll,
            winner=best,
            comparable=not drops or self.needs.cooldown_epochs > 0,  # a cooldown has every drop behind it
            action_gradient=gradient,
        )
        feedback = self._controller.learn(decision, judged, progress_of(self._context, interval.end, after, parent))
        return ControllerRewarded(
            interval=self._number,
            rewards=feedback.rewards,
            advantages=feedback.advantages,
            buffer_advantages=feedback.buffer_advantages,
            update=feedback.update,
        )

    def _action_gradient(self, slot: int, result: IntervalResult) -> Tensor | None:
        return None if result.influence is None else self.teaching.action_gradient(slot, result.influence())

    def _decision_events(self, progress: Progress) -> list[Event]:
        """The decision for the log, unless there is nothing to steer."""
        if not self.teaching.space.action_size:
            return []
        decision = self._decision
        observation = decision.observation() if decision else None
        epochs = self._end_of_round() - self._epoch
        decided = TargetsDecided(
            interval=self._number,
            first_epoch=self._epoch + 1,
            epochs=min(epochs, self._settings.controller.interval) if decision and self._moves_on else epochs,
            action_names=self.teaching.space.action_names,
            progress=asdict(progress),
            observation=None if observation is None else tuple(observation),
            candidates=tuple(
                CandidateTarget.model_validate(
                    {
                        "role": decision.roles[slot] if decision else "warm-up",
                        "action": decision.actions[slot].tolist() if decision else [],
                        "log_probability": decision.log_probability(slot) if decision else None,
                        "learning_rate_factor": decision.learning_rate_factor(slot) if decision else 1.0,
                        **target,
                    }
                )
                for slot, target in enumerate(self.teaching.describe())
            ),
        )
        return [decided]

    def _end_of_round(self) -> int:
        """The epoch after the last one of the intervals under one decision."""
        end = self._interval.end
        while end < self._context.epochs and not (following := self._plan_interval(end)).starts_round:
            end += following.epochs
        return end

    def _selection_event(
        self, choice: Selection, survivors: tuple[int, ...], averaged: tuple[int, ...]
    ) -> CandidateSelected:
        return CandidateSelected(
            interval=self._number, epoch=self._interval.end, survivors=survivors, averaged=averaged, **asdict(choice)
        )

    def _present_targets(self, end: int) -> list[TargetApplied]:
        """What each candidate was taught since the decision, until the epoch `end`."""
        return present_targets(self._decided_at, end, self._number, self._decision, self.teaching)

    def _applied_events(self, slots: tuple[int, ...]) -> list[TargetApplied]:
        """The targets of the surviving student in the round, which a replay can apply again: of an average of several
        candidates, the means of theirs."""
        if not self.teaching.space.action_size and not self._selects:
            return []  # the same from the first epoch to the last
        targets = [*self._target_log, self._present_targets(self._interval.end)]
        events = [mean_target([candidates[slot] for slot in slots]) for candidates in targets]
        if self._decision is not None and self.teaching.space.action_size:
            self._divergences += [event.divergence for event in events]
        return events

"""A training method as a criterion for a training loop of one's own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from tfkd_fast.errors import UserError, check_whole_number, shorten
from tfkd_fast.events import CandidateDiverged, Event
from tfkd_fast.judging.metrics import Judgement, judge_logits
from tfkd_fast.methods import Context, Method, find_method
from tfkd_fast.methods.base import (
    CompanionOutputs,
    EpochResult,
    HoldoutMetrics,
    Interval,
    IntervalResult,
    Needs,
    Plan,
    SteeredMethod,
    TeacherFacts,
    TeacherOutputs,
    TrainingStatistics,
    refuse_average,
)
from tfkd_fast.models import Features, FeatureShapes
from tfkd_fast.own_loop.assemble import NETWORK, NO_FEATURES, build_method, check_plan, read_settings
from tfkd_fast.own_loop.batch import EpochSums, Inputs, check_column, check_logits, make_batch, mix_partners
from tfkd_fast.plugins import in_one_sentence
from tfkd_fast.runs.precedence import dotted_values
from tfkd_fast.runs.provenance import paths_in
from tfkd_fast.runs.schedule import phases
from tfkd_fast.steering.targets import Superclasses
from tfkd_fast.training.divergence import NO_FIGURES, NO_STATISTICS
from tfkd_fast.training.step import step_loss


@dataclass(frozen=True)
class EpochReport:
    """The result of an epoch of a loop of one's own."""

    epoch: int
    """The number of the epoch that ended, counted from 1."""
    results: tuple[EpochResult, ...]
    """Training statistics and held-out figures of each candidate that was trained."""
    survivors: tuple[int, ...] | None
    """The candidates that training goes on from, best first, where an interval ended; None within one."""
    events: tuple[Event, ...]
    """What was decided and learned, as the log of a run has it."""


class Criterion(nn.Module):
    """A training method as a criterion: its call is the loss of a batch, for any network, optimiser and loop.

    The loss, and whatever is set from epoch to epoch, come from the objects that `tfkd-fast train` trains with. At the
    end of every epoch call `end_epoch`, with held-out logits and labels where the method is steered by them. What the
    method remembers and decides is in `state_dict`, also in the middle of an epoch, so that a loop that restores it
    goes on with the same bits. Layers of the method that train along are its `parameters()`.

    Three things are not as in `tfkd-fast train`. Candidates are judged by the logits that they are given, and not by
    averaged weights unless their logits are given, too; `selection.criteria` is therefore holdout-nll and holdout-top1
    unless it is set. Images are in the order of the loop, also where a recipe gives each candidate its own. The
    learning rate is the loop's: see `learning_rate_factors`.
    """

    def __init__(
        self,
        method: str,
        *,
        num_classes: int,
        epochs: int,
        num_images: int = 0,
        batch_size: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        learning_rate_ratio: Callable[[int], float] | None = None,
        num_teachers: int | None = None,
        teacher_facts: Sequence[TeacherFacts] = (),
        feature_shapes: FeatureShapes | None = None,
        superclasses: Superclasses | None = None,
        **tables: dict[str, Any],
    ) -> None:
        """
        Args:
            method: name of the method; `tfkd-fast methods` lists them.
            num_classes: number of classes C, 2 at least.
            epochs: number of epochs of the whole training, 1 at least.
            num_images: number of training images, for methods that remember something of each (tfkd, tfkd-mrs and
                tfkd-extended for their memory, ps-kd, dlb).
            batch_size: size of the largest batch, for a method that remembers the last one (dlb).
            seed: seed of everything that is random in the method.
            device: device of the logits; `to` moves the criterion.
            learning_rate_ratio: the learning rate at the start of a 0-based epoch over the largest of the run, by which
                controllers decide; None is 1 throughout, and the share of the epochs says how far the run is.
            num_teachers: number of teachers that know all classes; None for the fewest that the method learns from.
            teacher_facts: facts about each teacher, where there is more to know: the labels of a specialist, the shapes
                of features.
            feature_shapes: shapes of the network's features, for methods that read them.
            superclasses: which classes go together, for the superclass target.
            tables: the tables of the method as a recipe has them, such as `controller={"name": "ucb"}`.

        Raises:
            UserError: unknown methods and settings, numbers out of range, devices that are not there, and methods that
                need more than a call hands over.
        """
        super().__init__()
        num_classes, epochs = check_whole_number("num_classes", num_classes, 2), check_whole_number("epochs", epochs, 1)
        num_images, batch_size = (
            check_whole_number("num_images", num_images, 0),
            check_whole_number("batch_size", batch_size, 0),
        )
        seed = check_whole_number("seed", seed, 0)
        self.method = method
        """Name of the method."""
        self._settings = read_settings(method, tables)
        needs = find_method(method).needs(self._settings)
        if not teacher_facts:
            fewest = needs.teachers.fewest
            count = fewest if num_teachers is None else check_whole_number("num_teachers", num_teachers, 0)
            labels, shapes = tuple(range(num_classes)), feature_shapes or NO_FEATURES
            teacher_facts = [TeacherFacts(f"teacher {i}", NETWORK, labels, shapes) for i in range(count)]
        self._context = Context(
            num_classes=num_classes,
            num_images=num_images,
            epochs=epochs,
            seed=seed,
            device=_find_device(device),
            learning_rate_ratio=_until(epochs, learning_rate_ratio) if learning_rate_ratio else lambda epoch: 1.0,
            superclasses=superclasses,
            model=NETWORK,
            shapes=feature_shapes or NO_FEATURES,
            teachers=tuple(teacher_facts),
            batch_size=batch_size,
            phase=phases(learning_rate_ratio, epochs) if learning_rate_ratio else lambda epoch: 0.0,
        )
        self.epoch = 0
        """Number of epochs that have ended."""
        self._method: Method
        self._plan: Plan | None = None  # of the present interval; None between two intervals
        self._diverged: tuple[int, ...] = ()  # candidates that diverged in the present interval
        self._start()
        self._next_plan()

    def _start(self) -> None:
        """Build the method on the device of the context."""
        self._method = build_method(self.method, self._settings, self._context)
        self.adapters = self._method.adapters
        """Layers of the method that train along with the network; None for none."""
        self._sums = EpochSums(self.needs.candidates)

    @property
    def needs(self) -> Needs:
        """What the method asks for: which arguments a call must have, and whether held-out images are needed."""
        return self._method.needs

    @property
    def most_candidates(self) -> int:
        """The largest number of candidates that train in one interval; 1 for most methods."""
        return self.needs.candidates

    @property
    def candidates(self) -> int:
        """The number of candidates that train in the present interval; those after them wait."""
        return self._next_plan().interval.candidates

    @property
    def own_weights(self) -> bool:
        """Whether candidates start from different weights rather than from the same."""
        return self.needs.own_weights

    @property
    def learning_rate_factors(self) -> tuple[float, ...]:
        """The factor of each candidate that its learning rate should be multiplied by in the present interval; 1 unless
        a recording or `selection.learning_rate_spread` says otherwise."""
        return self._next_plan().factors

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        candidate: int = 0,
        indices: Tensor | None = None,
        teachers: Tensor | Sequence[Tensor | TeacherOutputs] = (),
        features: Features | None = None,
        companions: Tensor | CompanionOutputs | None = None,
        slow_logits: Tensor | None = None,
        networks: Sequence[nn.Module] = (),
        mixed_with: tuple[Tensor, float | Tensor] | None = None,
    ) -> Tensor:
        """The loss of a training batch, with gradient. It is computed in float32, outside of autocast.

        Beside logits and labels a method reads what it needs and nothing else. The logits may also be (n,B,C), of the
        first n candidates on the same images or each on its own; all other tensors then may have an axis n in front.

        Args:
            logits: (B,C) floating point.
            labels: (B,) int64, 0..C-1.
            candidate: the number of the candidate that the logits are of, where several train.
            indices: (B,) int64, which training images these are, 0..num_images-1.
            teachers: the logits (B,C) of the teacher for the same images, or a sequence with those of each;
                `TeacherOutputs` for methods that read features, too.
            features: the features of the network for these images.
            companions: the network's logits (B,C) for another image of each label (cs-kd), or `CompanionOutputs` of the
                batch before, shown again (dlb).
            slow_logits: (B,C), logits of an exponential moving average of the weights (target.sources slow-self).
            networks: the network itself, for methods that read its classifier (zipf).
            mixed_with: for mixed images, the labels (B,) of the partners and the share of the images themselves.

        Returns:
            The mean loss of the batch, () float32; (n,) for logits of n candidates.

        Raises:
            UserError: something is missing that the method needs, shapes do not go together, all epochs have ended, or
                the criterion is in evaluation mode.
        """
        if not self.training:
            raise UserError(
                "the criterion is in evaluation mode, and a training method has a loss for training only: "
                "judge by the cross-entropy, or call train()"
            )
        plan, needs = self._next_plan(), self.needs
        sequence = (teachers,) if isinstance(teachers, Tensor) else tuple(teachers)
        inputs = Inputs(labels, indices, sequence, features, companions, slow_logits, networks, mixed_with)
        check_logits(logits, inputs, self._context)
        single = logits.ndim == 2
        n, first = (1, candidate) if single else (len(logits), 0)
        if not 0 <= first <= first + n <= plan.interval.candidates:
            raise UserError(
                f"{plan.interval.candidates} candidates train in this epoch: got logits of candidate {first + n - 1}"
            )
        if needs.joint_steps and n < plan.interval.candidates:
            raise UserError(
                f"the candidates of method {self.method!r} learn from each other: hand over their logits for the same "
                f"images in one call, ({plan.interval.candidates},B,C)"
            )
        with torch.autocast(self._context.device.type, enabled=False):
            own = (logits.unsqueeze(0) if single else logits).float()
            batch = make_batch(self.method, needs, self._context, inputs, first, n)
            loss = step_loss(self._method, own, batch, mix_partners(inputs, n))
        self._sums.add(first, loss, own.shape[1])
        return loss.total[0] if single else loss.total

    @torch.inference_mode(False)
    @torch.enable_grad()  # a controller learns in it, and a loop may call it where it evaluates
    def end_epoch(
        self,
        logits: Tensor | Sequence[Tensor] | None = None,
        labels: Tensor | None = None,
        *,
        averaged: Tensor | Sequence[Tensor] | None = None,
    ) -> EpochReport:
        """End an epoch: the method learns how each candidate did, and decides how to go on where an interval ends.

        Args:
            logits: (N,C), the network's logits for the held-out images in evaluation mode; of several candidates
                (n,N,C), or a sequence. None where nothing is steered and nothing to be judged.
            labels: (N,) int64.
            averaged: the same of weights averaged over the steps of the epoch, by which controllers judge where they
                are given: they are less noisy.

        Raises:
            UserError: the method is steered by held-out images and got none, logits come without labels or do not go
                with them, a candidate was not trained, or no candidate is left that did not diverge.
        """
        plan = self._next_plan()
        count = plan.interval.candidates
        judged = self._judge(logits, labels, count)
        averages = [None for _ in judged] if averaged is None else self._judge(averaged, labels, count)
        average_figures = [judgement and judgement.metrics for judgement in averages]
        if self.needs.holdout and judged[0] is None:
            raise UserError(f"method {self.method!r} is steered by held-out images: end_epoch(logits, labels) of them")
        statistics = self._sums.statistics()[:count]
        untrained = [slot for slot in range(count) if not self._sums.samples or not self._sums.samples[slot]]
        if untrained:
            raise UserError(
                f"candidate {untrained[0]} was not trained in epoch {self.epoch + 1}: {count} candidates train in it"
            )
        figures = [judgement and judgement.metrics for judgement in judged]
        events: list[Event] = list(plan.events) if self.epoch == plan.interval.first_epoch else []
        events += self._leave_out(plan, [_is_finite(*pair) for pair in zip(statistics, figures, strict=True)])
        self._sums = EpochSums(self.most_candidates)
        self.epoch += 1
        for slot in self._diverged:
            statistics[slot], figures[slot] = NO_STATISTICS, NO_FIGURES
            judged[slot] = Judgement(NO_FIGURES, (math.nan,) * self._context.num_classes)
            average_figures[slot] = NO_FIGURES
        results = [
            EpochResult(training, judgement and judgement.metrics, judgement and judgement.top1_by_class, average)
            for training, judgement, average in zip(statistics, judged, average_figures, strict=True)
        ]
        events += self._method.end_epoch(results)
        survivors: tuple[int, ...] | None = None
        if self.epoch == plan.interval.end:
            survivors = tuple(range(count))
            if isinstance(self._method, SteeredMethod):
                judges_average = "interval" in self.needs.averages  # over one end of an epoch, see `assemble`
                interval_averages = figures if judges_average else [None] * count
                rows = zip(statistics, figures, average_figures, interval_averages, strict=True)
                outcome = self._method.end_interval([IntervalResult(*row) for row in rows], refuse_average)
                survivors = outcome.survivors
                events += outcome.events
            self._plan, self._diverged = None, ()
        return EpochReport(self.epoch, tuple(results), survivors, tuple(events))

    def _next_plan(self) -> Plan:
        """The plan of the present interval, which begins now where none is under way."""
        if self._plan is None:
            if self.epoch == self._context.epochs:
                raise UserError(f"all {self.epoch} epochs have ended: make a criterion with more epochs")
            self._plan = self._method.begin_interval(self.epoch)
            check_plan(self.method, self._plan)
        return self._plan

    def _judge(
        self, logits: Tensor | Sequence[Tensor] | None, labels: Tensor | None, count: int
    ) -> list[Judgement | None]:
        """Judge each candidate by its held-out logits; None for each without any."""
        if logits is None and labels is None:
            return [None] * count
        if logits is None or labels is None:
            raise UserError("held-out logits are judged by their labels: hand over both, end_epoch(logits, labels)")
        rows = logits if isinstance(logits, Tensor) else torch.stack(list(logits))
        rows = (rows.unsqueeze(0) if rows.ndim == 2 else rows).detach().float()
        if len(rows) != count or rows.shape[1:] != (len(labels), self._context.num_classes):
            expected = (count, len(labels), self._context.num_classes)
            raise UserError(f"held-out logits must be {expected}, candidates first: got {tuple(rows.shape)}")
        check_column("held-out labels", labels, rows)
        return list(judge_logits(rows, labels))

    def _leave_out(self, plan: Plan, sound: Sequence[bool]) -> list[Event]:
        """Leave candidates whose figures are not finite out of the selection at the interval's end, as a run does.

        Raises:
            UserError: no candidate is left, or the method selects none.
        """
        found = [slot for slot, is_sound in enumerate(sound) if not is_sound and slot not in self._diverged]
        self._diverged = (*self._diverged, *found)
        if found and (not plan.selects or len(self._diverged) == plan.interval.candidates):
            whose = f"candidate {found[0]}: " if len(sound) > 1 else ""
            raise UserError(
                f"{whose}loss or logits became not finite in epoch {self.epoch + 1}: lower the learning rate"
            )
        for slot in found:
            for tensor in self._method.candidate_tensors().values():
                tensor[slot].zero_()
        reason = f"loss or logits became not finite in epoch {self.epoch + 1}"
        return [CandidateDiverged(epoch=self.epoch + 1, candidate=slot, reason=reason) for slot in found]

    # State.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the network to another device; what the method computes in stays float32."""
        device = fn(torch.empty(0, device=self._context.device)).device
        if device != self._context.device:
            state = self.state_dict()
            self._context = replace(self._context, device=device)
            self._start()
            self.load_state_dict(state)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` has beside the adapters, as tensors, numbers, strings and containers of them."""
        sums = self._sums
        return {
            "method": self.method,
            "num_classes": self._context.num_classes,
            "epochs": self._context.epochs,
            "settings": self._compared_settings(),
            "epoch": self.epoch,
            "interval": list(asdict(self._plan.interval).values()) if self._plan else None,
            "diverged": list(self._diverged),
            "names": sums.names,
            "samples": sums.samples,
            "rows": None if sums.rows is None else sums.rows.clone(),
            "state": self._method.state_dict(),
        }

    def _compared_settings(self) -> dict[str, Any]:
        """What a state and a criterion must have in common beside method, classes and epochs, by name."""
        images = {"num_images": self._context.num_images} if self.needs.indices else {}
        return images | dotted_values(self._settings.model_dump(mode="json"))

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            UserError: the state is of another method or other settings, classes, images or epochs, or of no criterion.
        """
        own = self.get_extra_state()
        if missing := [name for name in own if name not in state and name != "settings"]:  # earlier versions had none
            raise UserError(f"the state has no {missing[0]!r}: load what the state_dict of a criterion gave")
        theirs, mine = (
            {name: each[name] for name in ("method", "num_classes", "epochs")} | each.get("settings", {})
            for each in (state, own)
        )
        for name in (name for name in theirs if name in mine and theirs[name] != mine[name]):
            if not [*paths_in([theirs[name], mine[name]])]:  # files may lie elsewhere
                raise UserError(
                    f"the state is of a criterion with {name} {theirs[name]!r}, and this one has {mine[name]!r}"
                )
        with in_one_sentence("the state is of a criterion with other settings, images or teachers"):
            self._method.load_state_dict(state["state"])
        self.epoch, self._diverged = state["epoch"], tuple(state["diverged"])
        rows = state["rows"]
        self._sums = EpochSums(
            self.most_candidates,
            list(state["names"]),
            list(state["samples"]),
            None if rows is None else rows.to(self._context.device, copy=True),
        )
        interval = state["interval"]
        self._plan = self._method.resume_interval(Interval(*interval)) if interval else None


def _find_device(device: torch.device | str) -> torch.device:
    """The device of tensors that are made on it.

    Raises:
        UserError: there is none.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # an assertion of torch where it was built without CUDA
        reason = " ".join(str(error).split())
        raise UserError(f"there is no device {shorten(device)} here ({reason[:200]}): name another") from None


def _is_finite(training: TrainingStatistics, figures: HoldoutMetrics | None) -> bool:
    """Whether the loss of an epoch and the held-out figures after it are finite."""
    judged = () if figures is None else (figures.top1, figures.nll, figures.calibrated_nll)
    return all(map(math.isfinite, (training.loss, *judged)))


def _until(epochs: int, learning_rate_ratio: Callable[[int], float]) -> Callable[[int], float]:
    """The same function, which is not asked for an epoch behind the last one: the last one's rate is the run's end."""
    return lambda epoch: learning_rate_ratio(min(epoch, epochs - 1))

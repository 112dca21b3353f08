"""The protocol of a training method: it states its needs, plans intervals, and computes the loss of a step.

The engine runs any method through this protocol and names none. Accuracies are fractions here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tfkd_fast.events import Event
from tfkd_fast.methods.base.batch import Loss, StepBatch
from tfkd_fast.methods.base.context import Context, Material
from tfkd_fast.methods.base.lookahead import TrainingStep
from tfkd_fast.methods.base.needs import Needs
from tfkd_fast.methods.base.plan import Interval, Plan
from tfkd_fast.methods.base.results import EpochResult, IntervalResult, JudgeAverage, Outcome


class Method(ABC):
    """A training method. Its state is per run: one object serves one run from the first epoch to the last."""

    FILES: ClassVar[tuple[str, ...]] = ()
    """Names of the files that `files` may give: a run that replaces one of this method deletes them."""
    per_sample: ClassVar[bool] = False
    """Whether the loss is a mean over the images of a batch, in which each counts by itself, so that several processes
    can have a part of a batch each. What it remembers is then in `sample_sums` and `image_rows` alone."""
    needs: Needs
    """What the method asks of the engine for the whole run."""
    adapters: nn.Module | None = None
    """Layers that train along with the student, by the same optimiser, and are no part of it afterwards; None for none.
    Only methods of one candidate may have any."""

    @classmethod
    def needs_for(cls, settings: Any) -> Needs:
        """What a method of these settings needs, known before it is built.

        Args:
            settings: the tables of a recipe that are the method's own.
        """
        return Needs()

    @classmethod
    def intervals_for(cls, settings: Any, epochs: int) -> Iterator[Interval]:
        """The intervals of a run of so many epochs, in their order: what the run costs, known before it is built.

        By default they are the most that a method of these needs may train, with an interval for every epoch.
        """
        candidates = cls.needs_for(settings).candidates
        return (Interval(epoch, 1, candidates) for epoch in range(epochs))

    def __init__(self, settings: Any, context: Context) -> None:
        """
        Args:
            settings: the tables of a recipe that are the method's own.
            context: the facts of the run.

        Raises:
            UserError: for settings that do not go with the run.
        """
        self.needs = self.needs_for(settings)

    # Before training.

    def prepare(self, material: Material) -> Iterable[Event]:
        """Called once before the first epoch of a run, and not when it is resumed; gives what to write into the log."""
        return ()

    # Interval by interval.

    @abstractmethod
    def begin_interval(self, epoch: int) -> Plan:
        """Plan the interval that starts at `epoch` (0-based)."""

    def resume_interval(self, interval: Interval) -> Plan:
        """The plan of an interval whose first epochs were trained before the run was interrupted, without its events.

        Called after `load_state_dict`. The default is right for plans that hold nothing but the interval.
        """
        return Plan(interval)

    # Step by step.

    def before_step(self, step: TrainingStep) -> None:  # noqa: B027, most methods have nothing to do
        """Called before every step where `Needs.look_ahead` is set. The host may wait for the device here."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        """The loss of a step of n candidates, by their logits (n,B,C).

        It is called outside of autocast, and logits and features come in float32, whatever the precision of the run:
        losses are computed in float32, and any layer of torch can be an adapter. `StepBatch.adapt` calls a layer in the
        precision of the run, which is faster.

        No host synchronisation, and every tensor that it reads keeps its place in memory for the whole run: a step is
        captured once, then replayed.
        """

    # Epoch by epoch.

    def end_epoch(self, results: Sequence[EpochResult]) -> Iterable[Event]:
        """Called after each epoch with the result of each candidate; gives what to write into the log."""
        return ()

    # At the end of the run.

    def summary(self) -> dict[str, Any]:
        """The entries of summary.json that the method adds."""
        return {}

    def files(self) -> dict[str, bytes]:
        """The files that the method adds to the run folder at the end, by name; the names are in `FILES`."""
        return {}

    # State.

    def candidate_tensors(self) -> dict[str, Tensor]:
        """The state of each candidate that the method keeps: tensors (P,...) by name, which keep their place in memory.

        Where candidates are trained in several processes, these tensors are exchanged.
        """
        return {}

    def sample_sums(self) -> Sequence[Tensor]:
        """Those of `candidate_tensors` that add up what the loss saw of each image in an epoch, from zero on."""
        return ()

    def image_rows(self) -> Sequence[Tensor]:
        """Those of `candidate_tensors` in which the loss writes a row for each image that it sees: (P,N,...) for the N
        training images."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors, numbers, strings and containers of them.

        The default is right for a method that has no state but its `candidate_tensors`. The engine keeps the adapters.
        """
        return {name: tensor.clone() for name, tensor in self.candidate_tensors().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        with torch.no_grad():
            for name, tensor in self.candidate_tensors().items():
                tensor.copy_(state[name])


class SteeredMethod(Method):
    """A method that judges its candidates at the end of an interval and selects those that continue."""

    def cooldown(self) -> AbstractContextManager[None]:
        """Context manager that is open between the interval's last `end_epoch` and `end_interval`, while copies of the
        candidates train for `Needs.cooldown_epochs`. On exit the method's state is restored."""
        return nullcontext()

    @abstractmethod
    def end_interval(self, results: Sequence[IntervalResult], judge_average: JudgeAverage) -> Outcome:
        """Called after the interval's last `end_epoch` with the result of each candidate, and with what judges averages
        of them, which takes about as long as to judge a candidate."""

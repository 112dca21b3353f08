"""The base of methods that match features of one teacher in a first phase, and then learn the label alone."""

from abc import abstractmethod
from dataclasses import replace

from pydantic import Field
from torch import Tensor

from tfkd_fast.methods.base import Context, Interval, Loss, Needs, Plan, StepBatch
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import Settings


class InitialPhaseLoss(Settings):
    """The `[loss]` table of a method with a first phase."""

    initial_share: float = Field(default=30 / 270, ge=0, lt=1)
    """Share of the run in which features are matched, without the label; an epoch at least, unless it is 0."""


class InitialPhaseSettings(TaughtSettings):
    """The tables of a method with a first phase."""

    loss: InitialPhaseLoss = InitialPhaseLoss()
    """The length of the phase in which features are matched."""


class InitialPhaseStudent(TaughtStudent):
    """A distance of features, and after a first phase CE(y, p) alone; each phase goes through the learning rates of the
    schedule and starts with momenta of zero.

    Source: RepDistiller (helper/pretrain.py), 30 epochs at one learning rate before 240. That they are a share of the
    run, and that the schedule is theirs, too, is our choice.
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), features=frozenset({"stages"}))

    def __init__(self, settings: InitialPhaseSettings, context: Context) -> None:
        super().__init__(settings, context)
        share = settings.loss.initial_share
        self.initial_epochs = min(max(round(share * context.epochs), int(share > 0)), context.epochs - 1)
        """The number of epochs of the first phase."""
        self._is_initial = False

    @abstractmethod
    def distance(self, batch: StepBatch) -> Tensor:
        """The distance (n,) of the features of n students from the teacher's."""

    def resume_interval(self, interval: Interval) -> Plan:
        first = self.initial_epochs
        self._is_initial = interval.first_epoch < first
        bounds = (0, first) if self._is_initial else (first, self.context.epochs)
        plan = super().resume_interval(interval)
        return replace(plan, phase=self._is_initial, schedule=bounds if first else None)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        if self._is_initial:
            return Loss({"features": self.distance(batch)})
        hard, statistics = self.cross_entropy(logits, batch.labels)
        return Loss({"hard": hard}, statistics)

"""What a training method is: it plans intervals, computes the loss of a step, and says which candidate lives on.

The engine runs any method through this protocol and names none. Accuracies are fractions here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tfkd_fast.data import Batch, Companions
from tfkd_fast.models import Features, FeatureShapes
from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.steering.targets import Superclasses

Event = dict[str, Any]
"""One line of metrics.jsonl: its kind under "event", then numbers, strings and lists."""


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher as a method may know it before it sees any of its outputs."""

    name: str
    """Of its run folder."""
    model: str
    labels: tuple[int, ...]
    """Of the student's data set, in the order of the teacher's logits: 0 .. C-1, or fewer for a specialist."""
    shapes: FeatureShapes


class TeacherOutputs(NamedTuple):
    """What one teacher makes of a batch, without gradient; see `TeacherFacts.labels` for the order of the logits."""

    logits: Tensor  # (n,B,C) float32
    features: Features | None  # the same axes in front; where the method asked for features


@dataclass(frozen=True)
class Context:
    """What a method may know of the run that it serves."""

    num_classes: int
    num_images: int
    """To fit on."""
    epochs: int
    seed: int
    device: torch.device
    learning_rate_ratio: Callable[[int], float]
    """Learning rate at the start of an epoch (0-based), over the initial one."""
    superclasses: Superclasses | None = None
    classes: tuple[str, ...] = ()
    """Names, in the order of the labels."""
    model: str = "vgg8"
    """The student's."""
    shapes: FeatureShapes | None = None
    """Of the student's features."""
    teachers: tuple[TeacherFacts, ...] = ()
    batch_size: int = 64
    """Of the student's training; the last batch of an epoch may be smaller."""


@dataclass(frozen=True)
class Interval:
    """Epochs `first_epoch` to `first_epoch + epochs - 1` (0-based), trained by each of `candidates`."""

    first_epoch: int
    epochs: int
    candidates: int

    @property
    def end(self) -> int:
        return self.first_epoch + self.epochs


@dataclass(frozen=True)
class Plan:
    """The next interval, and what to write into the log about it."""

    interval: Interval
    events: list[Event] = field(default_factory=list)
    learning_rate_factors: tuple[float, ...] | None = None
    """On top of the schedule, one a candidate; None is 1 for all."""
    labels: tuple[int, ...] | None = None
    """Only images of these are trained on; None: of all."""
    schedule: tuple[int, int] | None = None
    """First epoch and end (0-based) of a learning-rate schedule of its own, which starts with momenta of zero; None:
    that of the run."""


class CompanionOutputs(NamedTuple):
    """The student on the images that were shown beside the batch."""

    logits: Tensor  # (n,B,C)
    labels: Tensor  # (n,B) int64
    indices: Tensor  # (n,B) int64


class StepBatch(NamedTuple):
    """What n candidates are shown in one step, as far as a loss may want to know."""

    labels: Tensor  # (n,B) int64
    indices: Tensor  # (n,B) int64, 0 .. num_images-1: which images these are; each at most once an epoch
    slow_logits: Tensor | None  # (n,B,C) of their averaged weights, where the method asked for them
    features: Features | None = None  # of the candidates, (n,B,...) each, where the method asked for them
    teachers: tuple[TeacherOutputs, ...] = ()  # in the order of `Context.teachers`, those wanted, on the same images
    companions: CompanionOutputs | None = None  # where the method asked for them
    students: tuple[nn.Module, ...] = ()  # the networks themselves, for what neither logits nor features tell


class TrainingStep(Protocol):
    """A step that is about to be taken, for a method that tries out others before it. One student, no autocast.

    `weights` are the parameters of the student, then those of the method's adapters, and `momenta` theirs: the tensors
    that the step itself will change. The student is in training mode.
    """

    student: nn.Module
    weights: list[Tensor]
    momenta: list[Tensor]
    batch: Batch  # without an axis of candidates
    learning_rate: float
    momentum: float
    weight_decay: float
    nesterov: bool

    def loss(self) -> Tensor:
        """The loss of the step by the present weights, () with gradient, in float32."""

    def holdout(self) -> Batch:
        """The next batch of held-out images, augmented as those to fit are."""

    def teach(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        """What the teachers make of images (B,C,H,W); n is 1."""

    def undone(self) -> AbstractContextManager[None]:
        """At its end weights, momenta and buffers, of student and adapters, are what they were, bit for bit."""


@dataclass(frozen=True)
class Material:
    """What a method may prepare itself with before the first epoch. Every 0-based epoch augments images anew."""

    fit: Callable[[int], Iterable[Batch]]
    unseen: Callable[[int], Iterable[Batch]] | None
    """Those images to fit that every teacher held out from its own training; None where there are none."""
    teach: Callable[[Tensor], tuple[TeacherOutputs, ...]]
    """What the teachers make of images (B,C,H,W); n is 1."""


@dataclass(frozen=True)
class TrainingStatistics:
    """Means over the training samples that one candidate saw in one epoch, as it trained (augmented)."""

    loss: float
    top1: float
    true_probability: float
    entropy: float  # nats


@dataclass(frozen=True)
class HoldoutMetrics:
    """The figures of `ops.candidate_metrics` for one candidate on the held-out split."""

    top1: float
    top5: float
    nll: float
    calibrated_nll: float
    temperature: float
    brier: float
    ece: float
    entropy: float
    confidence: float


@dataclass(frozen=True)
class EpochResult:
    """One candidate after one epoch; `holdout` is None for a run without a held-out split."""

    training: TrainingStatistics
    holdout: HoldoutMetrics | None
    holdout_by_class: tuple[float, ...] | None = None
    """Top-1 on the held-out images of each class; NaN for a class of which none were judged."""


@dataclass(frozen=True)
class IntervalResult:
    """One candidate at the end of an interval, judged by averaged weights where the method asked for them."""

    training: TrainingStatistics
    last: HoldoutMetrics | None  # the weights as they are
    epoch_average: HoldoutMetrics | None  # their running average over the interval's last epoch
    interval_average: HoldoutMetrics | None  # the average of the interval's end-of-epoch weights
    cooled: HoldoutMetrics | None = None  # a copy after `Method.cooldown_epochs` more
    influence: Callable[[], Tensor] | None = None
    """Works out (C,C) float64: entry (y,c) is by how much one step of training would raise (above 0: spoil) the
    held-out loss, per unit of mass that the target of label y gives to class c, learning rate 1."""


@dataclass(frozen=True)
class Outcome:
    """Which candidates live on, and what to write into the log about it."""

    survivors: tuple[int, ...]
    """The best first: slot s continues from survivor s modulo their number."""
    events: list[Event] = field(default_factory=list)


class Method(ABC):
    """A training method. Its state is per run: one object serves one run from the first epoch to the last."""

    max_candidates: int
    """The most candidates that one interval trains."""
    needs_holdout: bool
    """Whether a held-out split is needed to steer."""
    needs_epoch_average: bool
    """Whether `IntervalResult.epoch_average` is read."""
    needs_interval_average: bool
    """Whether `IntervalResult.interval_average` is read, where several candidates train."""
    cooldown_epochs: int = 0
    """How long a copy of each candidate trains on before it is judged, while the learning rate falls to zero along a
    straight line; `IntervalResult.cooled` is then read, and the averages are not."""
    needs_joint_steps: bool = False
    """Whether `loss` wants all candidates of the interval at once, on the same batch."""
    own_initial_weights: bool = False
    """Whether candidates start from different weights rather than from the same."""
    slow_decay: float | None = None
    """Of the moving average of the weights that gives `StepBatch.slow_logits`; None where the method reads none."""
    teachers: tuple[int, int | None] = (0, 0)
    """The fewest and the most teachers that it learns from; None: any number."""
    wanted_teachers: tuple[int, ...] | None = None
    """Which of `Context.teachers` look at the batches of the present phase, ascending; None: all."""
    needs_features: bool = False
    """Whether `StepBatch.features` and those of the teachers are read."""
    companions: Companions | None = None
    """Which images are shown beside each batch, see `StepBatch.companions`."""
    companion_gradient: bool = False
    """Whether the gradient flows through the logits of companions, too. If so, the student sees both in one pass."""
    mixes: bool = True
    """Whether the loss of a mixed image is that of its first label and that of its second, in shares."""
    looks_ahead: bool = False
    """Whether `before_step` is called before every step, which then is not captured."""
    adapters: nn.Module | None = None
    """Layers that train along with the student, by the same optimiser, and are no part of it afterwards. For methods of
    one candidate."""
    phase: Hashable = 0
    """What is captured in one phase does not serve another: `network` or `loss` takes another path."""
    complete: bool = True
    """Whether `network` has all of the student in it, so that what it is judged by says how good the student is."""
    known_labels: tuple[int, ...] | None = None
    """Which classes `network` tells apart in the present phase: after an epoch it is judged by held-out images of
    these only. None: all."""

    def __init__(self, settings: Any, context: Context) -> None:  # noqa: B027, what it is built from
        """From the tables of a recipe that are the method's own, and what it may know of the run."""

    def prepare(self, material: Material) -> Iterable[Event]:
        """Called once before the first epoch of a run, and not when it is resumed; gives what to write into the log."""
        return ()

    def network(self, student: nn.Module) -> nn.Module:
        """What is trained and judged of a student: images (B,...) to logits (B,C). By default all of it; what else is
        in it belongs to `adapters`."""
        return student

    @abstractmethod
    def begin_interval(self, epoch: int) -> Plan:
        """The interval that starts at `epoch` (0-based)."""

    @abstractmethod
    def data_stream(self, candidate: int) -> int:
        """The random stream of a candidate's data order and augmentation."""

    def before_step(self, step: TrainingStep) -> None:
        """Called where `looks_ahead` is set; the host may wait for the device here."""
        raise NotImplementedError

    @abstractmethod
    def loss(self, logits: Tensor, batch: StepBatch, candidates: slice) -> tuple[Tensor, SoftTargetStats]:
        """Mean losses (n,) and training statistics of a step of n candidates with logits (n,B,C).

        No host synchronisation, and every tensor that it reads keeps its place in memory for the whole run: a step is
        captured once, then replayed.
        """

    @abstractmethod
    def end_epoch(self, results: Sequence[EpochResult]) -> None:
        """Called after each epoch with one result a candidate."""

    def cooldown(self) -> AbstractContextManager[None]:
        """Open between the interval's last `end_epoch` and `end_interval`, while copies of the candidates train. At its
        end everything is as it was."""
        return nullcontext()

    @abstractmethod
    def end_interval(self, results: Sequence[IntervalResult]) -> Outcome:
        """Called after the interval's last `end_epoch`."""

    def summary(self) -> dict[str, Any]:
        """What the method adds to summary.json."""
        return {}

    def files(self) -> dict[str, bytes]:
        """What the method adds to the run folder at the end, by file name."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors, numbers, strings and containers of them."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

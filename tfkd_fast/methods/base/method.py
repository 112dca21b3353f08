"""What a training method is: it plans intervals, computes the loss of a step, and says which candidate lives on.

The engine runs any method through this protocol and names none. Accuracies are fractions here.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from tfkd_fast.data import Companions
from tfkd_fast.events import Event
from tfkd_fast.methods.base.batch import StepBatch
from tfkd_fast.methods.base.context import Context, Material
from tfkd_fast.methods.base.lookahead import TrainingStep
from tfkd_fast.methods.base.plan import Plan
from tfkd_fast.methods.base.results import EpochResult, IntervalResult, Outcome
from tfkd_fast.ops import SoftTargetStats


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

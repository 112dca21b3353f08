"""The plan of one interval of training: its epochs and candidates, and the choices of the method for them."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import nn

from tfkd_fast.data import DataStream
from tfkd_fast.events import Event


@dataclass(frozen=True)
class Interval:
    """Epochs `first_epoch` to `first_epoch + epochs - 1` (0-based), trained by each of `candidates`."""

    first_epoch: int
    epochs: int
    candidates: int

    @property
    def end(self) -> int:
        """The 0-based epoch after the last one of the interval."""
        return self.first_epoch + self.epochs


def whole_network(student: nn.Module) -> nn.Module:
    """Return the student itself, which most methods train and judge as a whole."""
    return student


@dataclass(frozen=True)
class Plan:
    """All that holds for one interval. What the engine reads of a method does not change before the next plan."""

    interval: Interval
    events: Sequence[Event] = ()
    """Events about the interval for the log."""
    learning_rate_factors: tuple[float, ...] | None = None
    """Factors on the learning rate of the schedule, one for each candidate; None: 1 for all."""
    data_streams: tuple[int, ...] | None = None
    """The random stream of each candidate's data order and augmentation; None: 0 for all, so that they see the same."""
    view_streams: tuple[int, ...] | None = None
    """The random stream of each candidate's augmentation, for candidates that see the same images in other views; None:
    that of its data order."""
    labels: tuple[int, ...] | None = None
    """The labels whose images are trained on; None: all."""
    turns: tuple[tuple[int, ...], ...] | None = None
    """Groups of labels whose images are shown one group after the other in every epoch; None: all in random order."""
    class_groups: int = 1
    """How many images of a class stand beside each other in the order of every epoch."""
    schedule: tuple[int, int] | None = None
    """First epoch and end (0-based) of a learning-rate schedule of its own, which starts with momenta of zero; None:
    the schedule of the run."""
    teachers: tuple[int, ...] | None = None
    """Numbers, ascending, of those of `Context.teachers` whose outputs are wanted; None: all."""
    network: Callable[[nn.Module], nn.Module] = whole_network
    """Makes of a student the network that is trained and judged, from images (B,...) to logits (B,C). Layers of it that
    are not the student's belong to `Method.adapters`."""
    known_labels: tuple[int, ...] | None = None
    """The classes that `network` tells apart: after an epoch it is judged by held-out images of these only; None:
    all."""
    complete: bool = True
    """Whether `network` has all of the student in it, so that its held-out accuracy says how good the student is."""
    selects: bool = False
    """Whether the method lets some of the candidates live on at the interval's end, so that the run can do without one
    that diverges. All figures of that one are then NaN, and the method must not name it a survivor."""
    phase: Hashable = 0
    """Key of the code path that `network` and `loss` take. The engine keeps one compiled or captured step for each
    value, so that it must change whenever their control flow changes."""

    @property
    def factors(self) -> tuple[float, ...]:
        """The factor on the learning rate of each candidate."""
        return self.learning_rate_factors or (1.0,) * self.interval.candidates

    @property
    def streams(self) -> tuple[DataStream, ...]:
        """The random streams of the images of each candidate."""
        orders = self.data_streams or (0,) * self.interval.candidates
        return tuple(map(DataStream, orders, self.view_streams or orders))

"""What a method asks of the engine for a whole run: fixed once its settings are known."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from tfkd_fast.data import Companions
from tfkd_fast.models import FeatureName

Average = Literal["epoch", "interval"]
"""Averages of the weights: over the steps of an interval's last epoch, or over the ends of its epochs."""


class TeacherCount(NamedTuple):
    """The fewest and the most teachers that a method learns from."""

    fewest: int
    """The smallest number of teachers."""
    most: int | None
    """The largest number of teachers; None for any number."""

    def includes(self, count: int) -> bool:
        """Whether a method may learn from so many teachers."""
        return self.fewest <= count and (self.most is None or count <= self.most)

    def describe(self) -> str:
        """The number in words, for the middle of a sentence."""
        fewest, most = self
        if most == 0:
            return "no teacher"
        if fewest == most:
            return "one teacher" if fewest == 1 else f"{fewest} teachers"
        return f"{fewest} or more teachers" if most is None else f"{fewest} to {most} teachers"


NO_TEACHERS = TeacherCount(0, 0)


@dataclass(frozen=True)
class Needs:
    """What a method asks of the engine for a whole run. The defaults are those of one student that learns alone."""

    candidates: int = 1
    """The most candidates that one interval trains."""
    holdout: bool = False
    """Whether a held-out split is needed to steer."""
    teachers: TeacherCount = NO_TEACHERS
    """How many teachers the method learns from."""
    specialists: bool = False
    """Whether a teacher may know some of the classes only."""
    features: frozenset[FeatureName] = frozenset()
    """Names of the features that are read, of candidates and of teachers, see `Features`: "stages" for the maps of
    every stage, "stem" and "block_sums" for those of residual networks. The pooled features come with any of them.
    What is not named costs nothing."""
    companions: Companions | None = None
    """The images that are shown beside each batch, see `StepBatch.companions`; None for none."""
    companion_gradient: bool = False
    """Whether the gradient flows through the logits of companions, too. If so, the student sees both in one pass."""
    averages: frozenset[Average] = frozenset()
    """The averages of the weights that candidates are judged by at the end of an interval, see `IntervalResult`. The
    one over an interval is kept where several candidates train."""
    judges_epochs: bool = False
    """Whether the average over an epoch is also judged after epochs that do not end an interval, see `EpochResult`."""
    averaged_candidates: bool = False
    """Whether averages of several candidates are judged at the end of an interval, see `JudgeAverage`, and may
    continue."""
    cooldown_epochs: int = 0
    """For how many epochs a copy of each candidate trains on before it is judged, while the learning rate falls to zero
    along a straight line; `IntervalResult.after_cooldown` is then read. 0 for no cooldown."""
    joint_steps: bool = False
    """Whether `loss` wants all candidates of the interval at once, on the same batch."""
    own_weights: bool = False
    """Whether candidates start from different weights rather than from the same."""
    slow_decay: float | None = None
    """The decay of the moving average of the weights that gives `StepBatch.slow_logits`; None where it is not read."""
    indices: bool = False
    """Whether the loss reads which training images a batch has, `StepBatch.indices`, and so how many there are."""
    without_memory: tuple[str, str, tuple[str, ...]] | None = None
    """Table, key and value under which the loss reads no `indices` and images may be mixed, for a method that can do
    without its memory of single images."""
    networks: bool = False
    """Whether the loss reads the networks themselves, `StepBatch.students`."""
    influence: bool = False
    """Whether the end of an interval may read `IntervalResult.influence`."""
    material: bool = False
    """Whether `Method.prepare` reads images or teachers."""
    mixing: bool = True
    """Whether mixed images may be trained on, whose loss is that of their first label and that of their second in
    shares. A method that keeps or compares predictions for single images cannot."""
    look_ahead: bool = False
    """Whether `before_step` is called before every step, which then is not captured."""

"""The base of methods whose students learn from each other."""

from abc import abstractmethod

from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Interval, Loss, Method, Needs, Plan, StepBatch
from tfkd_fast.settings import LARGEST, Settings
from tfkd_fast.steering.targets import one_hot_table


class PeersTable(Settings):
    """The `[peers]` table: the students of a run."""

    count: int = Field(default=2, ge=2, le=64)
    """Number of students that train beside each other, each from weights of its own; the first one is kept."""


class PeerLoss(Settings):
    """The keys of the `[loss]` table that all methods whose students learn from each other have."""

    weight: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the divergence from what teaches a student in its loss; the label has 1."""


class PeerSettings(Settings):
    """The tables of a method whose students learn from each other."""

    peers: PeersTable = PeersTable()
    """The students that train beside each other."""
    loss: PeerLoss = PeerLoss()
    """The divergence from what teaches a student, and the label beside it."""


class PeerStudents(Method):
    """CE(y, p_k) + weight T^2 KL(softmax(t_k/T) || softmax(z_k/T)) for each student k of K, a mean over several t_k.

    A subclass says what the t_k are. All students take each step at once, by the predictions before it, and train to
    the end, where the first one is the student of the run: choosing the best of them would be a selection (our choice).
    """

    per_sample = True

    @classmethod
    def needs_for(cls, settings: PeerSettings) -> Needs:
        return Needs(candidates=settings.peers.count, joint_steps=True, own_weights=True)

    def __init__(self, settings: PeerSettings, context: Context, *, temperature: float) -> None:
        """`temperature` is T, that of both predictions."""
        super().__init__(settings, context)
        self._weight, self._temperature = settings.loss.weight, temperature
        self._one_hot = one_hot_table(context.num_classes).to(context.device)

    def begin_interval(self, epoch: int) -> Plan:
        return self.resume_interval(Interval(epoch, 1, self.needs.candidates))

    @abstractmethod
    def teach(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The logits t (K,M,B,C) that teach each of K students, by their own (K,B,C), without gradient, and labels
        (K,B)."""

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = ops.soft_target_loss_with_stats(logits, batch.labels, self._one_hot)
        teachers = self.teach(logits.detach(), batch.labels)
        soft = ops.distillation_loss(logits, teachers, temperature=self._temperature)
        return Loss({"hard": hard, "peers": self._weight * soft}, statistics)

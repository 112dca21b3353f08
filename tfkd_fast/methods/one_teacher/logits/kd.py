"""Knowledge distillation as it began: one teacher, softened predictions, the label beside them."""

from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, StepBatch
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import Settings


class KDLoss(Settings):
    """The `[loss]` table, by the settings of RepDistiller (Tian et al., ICLR 2020)."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of teacher and student."""
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Weight of the teacher in the loss; the label has the rest."""


class KDSettings(TaughtSettings):
    """The tables of knowledge distillation."""

    loss: KDLoss = KDLoss()
    """The divergence from the teacher, and the label beside it."""


class KD(TaughtStudent):
    """Distillation by alpha T^2 KL(softmax(t/T) || softmax(z/T)) + (1-alpha) CE(y, softmax(z)): Hinton, Vinyals, Dean,
    2015."""

    per_sample = True

    def __init__(self, settings: KDSettings, context: Context) -> None:
        super().__init__(settings, context, temperature=settings.loss.temperature)
        self._settings = settings.loss
        self._soft_weight = settings.loss.alpha

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(logits, batch.labels)
        soft = ops.distillation_loss(logits, self.teacher_logits(batch), temperature=self._settings.temperature)
        return Loss({"soft": self._soft_weight * soft, "hard": (1.0 - self._settings.alpha) * hard}, statistics)

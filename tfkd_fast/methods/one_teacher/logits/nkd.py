"""NKD: the teacher's probability of the label, and its normalised distribution over the other classes."""

from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, StepBatch
from tfkd_fast.methods.one_teacher.logits.dkd import exclude_label
from tfkd_fast.methods.taught.student import TaughtSettings, TaughtStudent
from tfkd_fast.settings import LARGEST, Settings


class NKDLoss(Settings):
    """The `[loss]` table; defaults of the authors' CIFAR-100 configuration (yzd-v/cls_KD,
    res34_distill_res18_cifar.py). For ImageNet they have temperature 1 and gamma 1.5."""

    temperature: float = Field(default=3.0, ge=0.01, le=1_000)
    """Temperature that softens the distributions over the other classes."""
    gamma: float = Field(default=3.5, ge=0, le=LARGEST)
    """Weight of the other classes in the loss; the label has 1 and the teacher's probability of it 1."""


class NKDSettings(TaughtSettings):
    """The tables of normalised knowledge distillation."""

    loss: NKDLoss = NKDLoss()
    """The soft label and the other classes of the teacher, and the label beside them."""


class NKD(TaughtStudent):
    """CE(y, p) - t_y log p_y + gamma T^2 KL(t~ || p~), t_y the teacher's probability of the label, t~ and p~ the
    distributions over the other classes at temperature T: Yang et al., From Knowledge Distillation to Self-Knowledge
    Distillation, ICCV 2023.

    The divergence stands for the cross-entropy of the paper, which is larger by the entropy of the teacher, in which
    the student has no part: the gradient is the same.
    """

    per_sample = True

    def __init__(self, settings: NKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, labels = self._settings, batch.labels
        each, statistics = ops.soft_target_loss_with_stats(logits, labels, self._one_hot, reduction="none")
        teacher = self.teacher_logits(batch)
        of_label = teacher[:, 0].softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        others = ops.distillation_loss(
            exclude_label(logits, labels),
            exclude_label(teacher, labels.unsqueeze(1)),
            temperature=settings.temperature,
        )
        terms = {"hard": each.mean(-1), "label": (of_label * each).mean(-1), "other classes": settings.gamma * others}
        return Loss(terms, statistics)

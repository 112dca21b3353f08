"""Progressive self-knowledge distillation: the label, softened by what the student predicted one epoch earlier."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Interval, Loss, Needs, Plan, SingleStudent, StepBatch
from tfkd_fast.settings import Settings
from tfkd_fast.steering.targets import InstanceMemory


class PSKDLoss(Settings):
    """The `[loss]` table, by the settings of the authors' code."""

    alpha: float = Field(default=0.8, ge=0, le=1)
    """Weight alpha_E of the earlier prediction in the loss of the last epoch; it rises from 0 in equal steps."""


class PSKDSettings(Settings):
    """The tables of progressive self-knowledge distillation."""

    loss: PSKDLoss = PSKDLoss()
    """The prediction of the epoch before, and the label beside it."""


class PSKD(SingleStudent):
    """CE((1-alpha_t) e_y + alpha_t p', softmax(z)) in epoch t = 1..E, where p' is the prediction for the same image in
    epoch t-1, under another augmentation, and alpha_t = alpha_E t/E: Kim et al., ICCV 2021.

    Computed as (1-alpha_t) CE(e_y, softmax(z)) + alpha_t KL(p' || softmax(z)), which is less by alpha_t times the
    entropy of p', a constant. In the first epoch there is no p', and alpha_1 is 0: an empty memory would teach the
    uniform distribution. The authors' code puts e_y in the place of p', which comes to the same. From then on there is
    a p' for every image, because every epoch shows all of them. It is kept as logits in half precision (our choice;
    the authors keep probabilities in float32).
    """

    per_sample = True

    @classmethod
    def needs_for(cls, settings: PSKDSettings) -> Needs:
        """No mixed images, because a prediction for one belongs to neither of its two images."""
        return Needs(mixing=False, indices=True)

    def __init__(self, settings: PSKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._last_alpha = settings.loss.alpha
        self._memory = InstanceMemory(1, context.num_images, context.num_classes, context.device)
        self.hard_weight = torch.ones((), device=context.device)
        """() float32: the weight of the label in the present epoch, 1 - alpha_t; written in place."""

    def resume_interval(self, interval: Interval) -> Plan:
        epoch = interval.first_epoch
        alpha = self._last_alpha * (epoch + 1) / self.context.epochs if epoch > 0 else 0.0
        self.hard_weight.fill_(1.0 - alpha)
        return super().resume_interval(interval)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        before = self._memory.exchange(batch.candidates, batch.indices, logits).softmax(-1, dtype=torch.float32)
        loss, statistics = ops.soft_target_loss_with_stats(
            logits, batch.labels, before, hard_weight=self.hard_weight, rows="sample"
        )
        return Loss({"hard and soft": loss}, statistics)

    def candidate_tensors(self) -> dict[str, Tensor]:
        return {"memory": self._memory.logits}

    def image_rows(self) -> Sequence[Tensor]:
        return [self._memory.logits]

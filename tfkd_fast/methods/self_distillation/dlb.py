"""Self-distillation from the last mini-batch: each image is shown again one step later, where the student's earlier
prediction is its target."""

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.settings import LARGEST, Settings

NO_INDEX = -1
"""The index of a row that holds no image."""


class DLBLoss(Settings):
    """The `[loss]` table. The authors' code (Meta-knowledge-Lab/DLB, dlb.py) has no defaults: these are our choice."""

    temperature: float = Field(default=3.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of this step and of the last one."""
    alpha: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the prediction of the last step in the loss; the label has 1."""


class DLBSettings(Settings):
    """The tables of self-distillation from the last mini-batch."""

    loss: DLBLoss = DLBLoss()
    """The divergence from the prediction of the last step, and the label beside it."""


class DLB(SingleStudent):
    """CE of all images + alpha T^2 KL(p_last^T || p^T) of those shown again, p_last constant: Shen et al., CVPR 2022.

    The paper fills one half of each batch with images of the last. Here, as in the authors' code, a batch is of fresh
    images and the whole last one comes beside it; it is seen in the same pass (our choice: theirs are two). In the
    first step of an epoch, what comes beside the batch was not shown in the step before: it counts in the
    cross-entropy alone (our choice: they carry the batch over, and begin with none).
    """

    @classmethod
    def needs_for(cls, settings: DLBSettings) -> Needs:
        return Needs(companions="previous", companion_gradient=True, mixing=False, indices=True)

    def __init__(self, settings: DLBSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss
        shape = (self.needs.candidates, context.batch_size)
        self._logits = torch.zeros(*shape, context.num_classes, device=context.device)
        self._indices = torch.full(shape, NO_INDEX, device=context.device)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        again, candidates = batch.need_companions(), batch.candidates
        size = logits.shape[1]  # of the last batch of an epoch it is less
        fresh, statistics = self.cross_entropy(logits, batch.labels)
        hard = (fresh + ops.soft_target_loss(again.logits, again.labels, self._one_hot)) / 2

        last = self._logits[candidates, :size].unsqueeze(1)  # one teacher for each candidate
        soft = ops.distillation_loss(again.logits, last, temperature=self._settings.temperature, reduction="none")
        soft = torch.where(again.indices == self._indices[candidates, :size], soft, 0.0).mean(-1)

        self._logits[candidates, :size] = logits.detach().float()
        self._indices[candidates, :size] = batch.indices
        self._indices[candidates, size:].fill_(NO_INDEX)
        return Loss({"hard": hard, "soft": self._settings.alpha * soft}, statistics)

    def candidate_tensors(self) -> dict[str, Tensor]:
        return {"logits": self._logits, "indices": self._indices}

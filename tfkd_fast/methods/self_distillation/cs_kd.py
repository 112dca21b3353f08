"""Class-wise self-distillation: the target of an image is the student's prediction for another image of its class."""

from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.settings import LARGEST, Settings


class CSKDLoss(Settings):
    """The `[loss]` table; defaults of the authors' code (alinlab/cs-kd, train.py)."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions for the image and its companion."""
    weight: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight lambda of the companion's prediction in the loss, where the label has 1; the authors take 3 for images of
    fine-grained classes."""


class CSKDSettings(Settings):
    """The tables of class-wise self-distillation."""

    loss: CSKDLoss = CSKDLoss()
    """The divergence from the prediction for a companion, and the label beside it."""


class CSKD(SingleStudent):
    """CE(y, p) + lambda T^2 KL(p'^T || p^T), p' of another image of class y and constant: Yun et al., CVPR 2020.

    Their batch holds images and companions, half of each. Here a batch has as many images as for any other method, and
    their companions come on top (our choice).
    """

    per_sample = True

    @classmethod
    def needs_for(cls, settings: CSKDSettings) -> Needs:
        return Needs(companions="same-class", mixing=False)

    def __init__(self, settings: CSKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(logits, batch.labels)
        companions = batch.need_companions().logits.unsqueeze(1)  # one teacher for each candidate
        soft = ops.distillation_loss(logits, companions, temperature=self._settings.temperature)
        return Loss({"hard": hard, "soft": self._settings.weight * soft}, statistics)

"""Data-distortion guided self-distillation: predictions for two views of an image are each other's target."""

from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.settings import LARGEST, Settings


class DDGSDLoss(Settings):
    """The `[loss]` table, by the code of Self-KD-Lib (winycg/Self-KD-Lib); there is none of the authors."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions for both views."""
    weight: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the divergences between the views in the loss; the label has 1."""
    feature_weight: float = Field(default=5e-4, ge=0, le=LARGEST)
    """Weight of the distance between the mean features of the views."""


class DDGSDSettings(Settings):
    """The tables of data-distortion guided self-distillation."""

    loss: DDGSDLoss = DDGSDLoss()
    """The divergences and distances between two views, and the label beside them."""


class DDGSD(SingleStudent):
    """The mean of CE(y, p) and CE(y, p') of two views + weight T^2 (KL(p'^T || p^T) + KL(p^T || p'^T)) +
    feature_weight ||m - m'||^2, each constant where it is the target, m and m' their pooled features, means over the
    batch: Xu and Liu, AAAI 2019.

    Both views pass the student at once. The code of Self-KD-Lib has half of this weight of the label, and for m the
    mean over all entries of the features, too; a mean cross-entropy of weight 1 is our choice.
    """

    @classmethod
    def needs_for(cls, settings: DDGSDSettings) -> Needs:
        return Needs(features=frozenset({"stages"}), companions="weak", companion_gradient=True, mixing=False)

    def __init__(self, settings: DDGSDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, again = self._settings, batch.need_companions()
        hard, statistics = self.cross_entropy(logits, batch.labels)
        hard_again, _ = self.cross_entropy(again.logits, again.labels)
        soft = self._divergence(logits, again.logits) + self._divergence(again.logits, logits)
        means = batch.need_features().pooled.mean(1), again.need_features().pooled.mean(1)
        distance = (means[0] - means[1]).square().sum(-1)
        terms = {
            "hard": (hard + hard_again) / 2,
            "soft": settings.weight * soft,
            "features": settings.feature_weight * distance,
        }
        return Loss(terms, statistics)

    def _divergence(self, logits: Tensor, teacher: Tensor) -> Tensor:
        return ops.distillation_loss(logits, teacher.detach().unsqueeze(1), temperature=self._settings.temperature)

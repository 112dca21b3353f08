"""The confidence penalty: cross-entropy, and a reward for predictions that are not certain."""

from pydantic import Field
from torch import Tensor

from tfkd_fast.methods.base import Context, Loss, SingleStudent, StepBatch
from tfkd_fast.settings import Settings


class ConfidencePenaltyLoss(Settings):
    """The `[loss]` table."""

    beta: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Of the entropy."""


class ConfidencePenaltySettings(Settings):
    loss: ConfidencePenaltyLoss = ConfidencePenaltyLoss()


class ConfidencePenalty(SingleStudent):
    """CE(y, p) - beta H(p) with p = softmax(z): Pereyra et al., ICLR workshop 2017. Their variant that stops at a
    threshold of the entropy is left out (our choice)."""

    def __init__(self, settings: ConfidencePenaltySettings, context: Context) -> None:
        super().__init__(settings, context)
        self._beta = settings.loss.beta

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(logits, batch.labels)
        log_probabilities = logits.log_softmax(-1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean(-1)
        return Loss({"hard": hard, "entropy": -self._beta * entropy}, statistics)

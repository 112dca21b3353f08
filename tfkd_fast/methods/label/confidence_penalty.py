"""The confidence penalty: cross-entropy, and a reward for predictions that are not certain."""

from pydantic import Field
from torch import Tensor

from tfkd_fast.methods.base import Context, Loss, SingleStudent, StepBatch
from tfkd_fast.settings import LARGEST, Settings


class ConfidencePenaltyLoss(Settings):
    """The `[loss]` table of the method."""

    beta: float = Field(default=0.1, ge=0, le=LARGEST)
    """Weight of the entropy of the prediction (nats), which is subtracted from the cross-entropy."""


class ConfidencePenaltySettings(Settings):
    """The tables of the confidence penalty."""

    loss: ConfidencePenaltyLoss = ConfidencePenaltyLoss()
    """The penalty beside the cross-entropy with the label."""


class ConfidencePenalty(SingleStudent):
    """CE(y, p) - beta H(p) with p = softmax(z): Pereyra et al., ICLR workshop 2017. Their variant that stops at a
    threshold of the entropy is left out (our choice)."""

    per_sample = True

    def __init__(self, settings: ConfidencePenaltySettings, context: Context) -> None:
        super().__init__(settings, context)
        self._beta = settings.loss.beta

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(logits, batch.labels)
        log_probabilities = logits.log_softmax(-1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean(-1)
        return Loss({"hard": hard, "entropy": -self._beta * entropy}, statistics)

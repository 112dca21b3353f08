"""Online label smoothing: the target of a class is the student's mean correct prediction in the epoch before."""

from collections.abc import Iterable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.events import Event
from tfkd_fast.methods.base import Context, EpochResult, Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.settings import Settings


class OLSLoss(Settings):
    """The `[loss]` table, by the settings of the authors' code."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the soft label in the loss; the one-hot label has the rest."""


class OLSSettings(Settings):
    """The tables of online label smoothing."""

    loss: OLSLoss = OLSLoss()
    """The mean correct prediction for the class in the epoch before, and the label beside it."""


class OLS(SingleStudent):
    """Cross-entropy with two labels, (1-alpha) CE(e_y, softmax(z)) + alpha CE(S[y], softmax(z)), where row y of S is
    the mean prediction of the epoch before for those samples of label y that were classified correctly, uniform if
    there were none: Zhang et al., "Delving deep into label smoothing", TIP 2021.

    Computed with KL(S[y] || softmax(z)) in place of the second cross-entropy, which is less by the entropy of S[y], a
    constant of the epoch. In the first epoch all rows are uniform (our choice, the rule for a class without samples;
    the authors' code leaves the second term out).
    """

    per_sample = True

    @classmethod
    def needs_for(cls, settings: OLSSettings) -> Needs:
        """No mixed images, because a prediction for one says nothing about a single class (our choice)."""
        return Needs(mixing=False)

    def __init__(self, settings: OLSSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._hard_weight = 1.0 - settings.loss.alpha
        self._uniform = 1.0 / context.num_classes
        shape = (1, context.num_classes, context.num_classes)
        self._soft_labels = torch.full(shape, self._uniform, device=context.device)
        self._sums = torch.zeros(shape, device=context.device)  # of this epoch's predictions; each adds 1 to its row

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        self._remember(logits.detach(), batch.labels.unsqueeze(-1), batch.candidates)
        loss, statistics = ops.soft_target_loss_with_stats(
            logits, batch.labels, self._soft_labels[batch.candidates], hard_weight=self._hard_weight
        )
        return Loss({"hard and soft": loss}, statistics)

    def _remember(self, logits: Tensor, labels: Tensor, candidates: slice) -> None:
        """Logits (n,B,C), labels (n,B,1)."""
        correct = logits.argmax(-1, keepdim=True) == labels
        predictions = logits.softmax(-1).to(self._sums.dtype).where(correct, 0.0)
        self._sums[candidates].scatter_add_(1, labels.expand_as(logits), predictions)

    def end_epoch(self, results: Sequence[EpochResult]) -> Iterable[Event]:
        counts = self._sums.sum(-1, keepdim=True)
        self._soft_labels.copy_((self._sums / counts).where(counts > 0, self._uniform))
        self._sums.zero_()
        return ()

    def candidate_tensors(self) -> dict[str, Tensor]:
        return {"soft_labels": self._soft_labels, "sums": self._sums}

    def sample_sums(self) -> Sequence[Tensor]:
        return [self._sums]

"""Universal self-knowledge distillation: soft targets for the label and the wrong classes from the student itself."""

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.methods.label.zipf import wrong_class_divergence
from tfkd_fast.models.layers import Classifier, average_pool
from tfkd_fast.randomness import seeded
from tfkd_fast.settings import LARGEST, Settings
from tfkd_fast.steering.targets.zipf import zipf_targets

SMOOTHING = 0.1
"""Label smoothing of the weak head; the C classes share it."""


class USKDLoss(Settings):
    """The `[loss]` table; defaults of the authors' CIFAR-100 configuration (yzd-v/cls_KD, res18_sd_cifar.py).

    For ImageNet they have alpha 1, beta 0.1 and mu 0.005.
    """

    alpha: float = Field(default=0.1, ge=0, le=LARGEST)
    """Weight of the soft target for the label's class in the loss, on top of the cross-entropy."""
    beta: float = Field(default=0.1, ge=0, le=LARGEST)
    """Weight of the wrong classes in the loss."""
    mu: float = Field(default=0.1, ge=0, le=LARGEST)
    """Weight of the cross-entropy of the weak head in the loss."""


class USKDSettings(Settings):
    """The tables of universal self-knowledge distillation."""

    loss: USKDLoss = USKDLoss()
    """The soft targets for the label and the wrong classes, and the cross-entropy beside them."""


class USKD(SingleStudent):
    """CE(y, p) - alpha s log p_y + beta KL(zipf || p~) + mu CE(smoothed y, w): Yang et al., ICCV 2023.

    As the authors' code computes it (yzd-v/cls_KD, uskd.py), where the paper's formulas leave room:

    * s = p_y^2 + 1 - the mean of p_y^2 in the batch, constant;
    * w is the softmax of a weak head: a linear layer on the averaged map of the last stage but one;
    * the ranks of `zipf_targets` are by w_c / (1 - w_y) + log p_c / (1 - log p_y), p~ is the softmax without p_y.

    Divergences stand for their cross-entropies with a constant target: the gradient is the same.
    """

    @classmethod
    def needs_for(cls, settings: USKDSettings) -> Needs:
        return Needs(features=frozenset({"stages"}))

    def __init__(self, settings: USKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss
        with seeded(context.seed):
            head = Classifier(context.need_shapes().maps[-2][0], context.num_classes)
        self.adapters = self._weak_head = head.to(context.device)
        self._smoothed = (1.0 - SMOOTHING) * self._one_hot + SMOOTHING / context.num_classes

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, labels = self._settings, batch.labels
        hard, statistics = ops.soft_target_loss_with_stats(logits, labels, self._one_hot, reduction="none")
        squared = (-2.0 * hard.detach()).exp()
        soft_label = squared + 1.0 - squared.mean(-1, keepdim=True)

        maps = batch.need_features().after_relu[-2]
        weak_logits = self._weak_head(average_pool(maps.flatten(0, 1))).unflatten(0, maps.shape[:2])
        weak = ops.soft_target_loss(weak_logits, labels, self._smoothed)

        with torch.no_grad():
            scores = _normalise_without_label(weak_logits.softmax(-1), labels) + _normalise_without_label(
                logits.log_softmax(-1), labels
            )
        others = wrong_class_divergence(logits, labels, zipf_targets(scores, labels))
        terms = {
            "label": ((1.0 + settings.alpha * soft_label) * hard).mean(-1),
            "wrong classes": settings.beta * others,
            "weak head": settings.mu * weak,
        }
        return Loss(terms, statistics)


def _normalise_without_label(values: Tensor, labels: Tensor) -> Tensor:
    """Values v_c / (1 - v_y), finite where v_y is 1."""
    return values / (1.0 - values.gather(-1, labels.unsqueeze(-1)) + 1e-6)

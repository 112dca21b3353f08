"""Zipf's label smoothing: targets of the wrong classes follow their ranks in the student's own predictions."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.settings import LARGEST, Forms, Settings
from tfkd_fast.steering.targets.zipf import zipf_targets


class ZipfBase(Settings):
    """The `[loss]` table; defaults of the authors' CIFAR-100 commands (megvii-research/zipfls).

    Their `--alpha 0.1` weighs classifiers at earlier stages, which those commands leave out (`--deeplayer 1`).
    """

    rank: str
    """What ranks the wrong classes: the votes of all places in the image (dense), or its prediction (logits)."""
    weight: float = Field(default=0.1, ge=0, le=LARGEST)
    """Weight lambda of the wrong classes in the loss; the label has 1."""
    power: float = Field(default=1.0, ge=0, le=LARGEST)
    """Exponent of the rank: the target of a wrong class is proportional to 1 / rank ** power."""


class DenseZipfLoss(ZipfBase):
    """Wrong classes by the votes of all places in the image."""

    rank: Literal["dense"] = "dense"
    upsample: int = Field(default=2, ge=1, le=8)
    """Factor that multiplies the height and width of the last map before its places vote."""


class LogitsZipfLoss(ZipfBase):
    """Wrong classes by the prediction for the image."""

    rank: Literal["logits"]


class ZipfSettings(Settings):
    """The tables of Zipf's label smoothing."""

    loss: Annotated[DenseZipfLoss | LogitsZipfLoss, Forms("rank")] = DenseZipfLoss()
    """The wrong classes by their ranks, and the label beside them."""


class Zipf(SingleStudent):
    """CE(y, p) + lambda KL(zipf || p~), p~ the softmax without the label's class: Liang et al., ECCV 2022.

    The ranks of `zipf_targets` are by the number of votes: the classifier is applied at each place of the last feature
    map, and each votes for its best class. The classes without votes share the rank after those that have some.
    """

    per_sample = True

    @classmethod
    def needs_for(cls, settings: ZipfSettings) -> Needs:
        dense = isinstance(settings.loss, DenseZipfLoss)
        return Needs(features=frozenset({"stages"}) if dense else frozenset(), networks=dense)

    def __init__(self, settings: ZipfSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss
        self._upsample = settings.loss.upsample if isinstance(settings.loss, DenseZipfLoss) else 1

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(logits, batch.labels)
        scores = self._votes(batch) if self._settings.rank == "dense" else logits
        soft = wrong_class_divergence(logits, batch.labels, zipf_targets(scores, batch.labels, self._settings.power))
        return Loss({"hard": hard, "soft": self._settings.weight * soft}, statistics)

    @torch.no_grad()
    def _votes(self, batch: StepBatch) -> Tensor:
        """How many places vote for each class, (n,B,C)."""
        maps = batch.need_features().after_relu[-1].permute(0, 1, 3, 4, 2)
        networks = [student.get_submodule("classifier") for student in batch.students]
        logits = torch.stack([network(own) for network, own in zip(networks, maps, strict=True)])
        logits = logits.flatten(0, 1).permute(0, 3, 1, 2)
        if self._upsample > 1:  # of the maps, as theirs, it would come to the same: both are linear
            logits = F.interpolate(logits, scale_factor=self._upsample, mode="bilinear")
        votes = logits.argmax(dim=1).flatten(1)
        counts = logits.new_zeros(logits.shape[:2])
        counts.scatter_add_(1, votes, torch.ones_like(votes, dtype=counts.dtype))
        return counts.unflatten(0, maps.shape[:2])


def wrong_class_divergence(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """KL(targets || softmax(logits)) over the classes that are not the label, (n,), mean over the batch.

    Args:
        logits: (n,B,C).
        labels: (n,B) int64.
        targets: (n,B,C), 0 for the label.
    """
    without_label = logits.scatter(-1, labels.unsqueeze(-1), -torch.inf)
    return ops.soft_target_loss(without_label, labels, targets, rows="sample")

"""CRD: student and teacher are to tell an image from images of other classes, by each other's embeddings."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast.methods.base import Context, Needs, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.memory_bank import MemoryBank
from tfkd_fast.methods.taught.student import TaughtSettings
from tfkd_fast.randomness import seeded

EMBEDDING = 128
"""Entries of an embedding (the authors' code)."""
EPSILON = 1e-7
"""Number that is added where a score divides (the authors' code)."""
STUDENT, TEACHER = 0, 1
"""The numbers of both networks in the bank."""


class CRDLoss(FeatureLoss):
    """The `[loss]` table, by the authors' command."""

    weight: Weight = 0.8
    """Weight of the contrastive loss in the loss; the label has 1."""
    negatives: int = Field(default=16_384, ge=1, le=1_000_000)
    """Number of images that are drawn for each image, to be told from it."""
    contrast_temperature: float = Field(default=0.07, ge=0.001, le=1_000)
    """Divisor of the inner product of two embeddings, of which a score is the exponential."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Share of what was there before in an embedding of the memory bank that is kept anew."""


class CRDSettings(FeatureSettings):
    """The tables of contrastive representation distillation."""

    loss: CRDLoss = CRDLoss()
    """The contrastive loss, and the label beside it."""


class CRD(FeatureStudent):
    """D = the sum, over the student's embeddings beside the teacher's in the bank and the reverse, of the mean over
    images of -log h(own) - sum over K drawn images of log(1 - h(other)), h = s / (s + K/N), s the exponential of the
    inner product over a temperature, divided by a constant that the first batch sets: Tian, Krishnan, Isola,
    Contrastive Representation Distillation, ICLR 2020, equation 18, and the authors' code (crd/).

    An embedding is a linear layer, which is learned, of the pooled features, scaled to length 1. Images are drawn from
    all, and those of the same class do not count, as soon as their label was in a batch (our choice: the code knows all
    labels beforehand and draws from the other classes).
    """

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), indices=True, mixing=False)

    def __init__(self, settings: CRDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss
        widths = context.need_shapes().pooled, context.teachers[0].shapes.pooled
        with seeded(context.seed):
            embeddings = nn.ModuleList(nn.Linear(width, EMBEDDING) for width in widths)
            self.bank = MemoryBank(2, context.num_images, EMBEDDING, settings.loss.momentum, context.device)
            """The embeddings of all training images by student and teacher."""
        self.adapters = self._embeddings = embeddings.to(context.device)
        self.constants = torch.zeros(2, device=context.device)
        """(2,) float32: what the scores of student and teacher are divided by; 0 before the first batch."""

    def distance(self, batch: StepBatch) -> Tensor:
        pooled = batch.need_features().pooled, batch.teachers[0].need_features().pooled
        own = tuple(F.normalize(layer(each[0]), dim=1) for layer, each in zip(self._embeddings, pooled, strict=True))
        indices, labels = batch.indices[0], batch.labels[0]
        self.bank.labels.index_copy_(0, indices, labels)
        chosen = self.bank.draw(indices, self._settings.negatives, self.context.seed)
        # how often each image was drawn: a gradient through counts, unlike one through a gather, has one order of sums
        counts = torch.zeros(len(chosen), len(self.bank.labels), device=chosen.device)
        counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=counts.dtype))
        of_student = self._contrast(STUDENT, self.bank.products(TEACHER, own[STUDENT]), batch, counts)
        of_teacher = self._contrast(TEACHER, self.bank.products(STUDENT, own[TEACHER]), batch, counts)
        self.bank.keep(indices, own)
        return (of_student + of_teacher).unsqueeze(0)

    def _contrast(self, network: int, products: Tensor, batch: StepBatch, counts: Tensor) -> Tensor:
        """The contrastive loss () of a network by inner products (B,images) with all images, of which each was drawn so
        many times, counts (B,images)."""
        drawn, images = self._settings.negatives, self.context.num_images
        scores = (products / self._settings.contrast_temperature).exp()
        own = scores.gather(1, batch.indices[0].unsqueeze(1))
        with torch.no_grad():
            mean = (own.sum() + (counts * scores).sum()) / (len(scores) * (1 + drawn))
            constant = self.constants[network]
            constant.copy_(torch.where(constant == 0, (mean * images).to(constant.dtype), constant))
        divisor, noise = self.constants[network].clone(), drawn / images
        positive = (own / divisor / (own / divisor + noise + EPSILON)).log()
        negative = (noise / (scores / divisor + noise + EPSILON)).log()
        others = counts * (self.bank.labels != batch.labels[0].unsqueeze(1))
        return -(positive.sum() + (others * negative).sum()) / len(scores)

    def candidate_tensors(self) -> dict[str, Tensor]:
        tensors = {
            "embeddings": self.bank.embeddings,
            "labels": self.bank.labels,
            "steps": self.bank.steps,
            "constants": self.constants,
        }
        return super().candidate_tensors() | {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}

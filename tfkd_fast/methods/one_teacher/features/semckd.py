"""SemCKD: every stage of the student learns from all stages of the teacher, in shares by attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.maps import inner_products, pool_to_smaller
from tfkd_fast.models.layers import BatchNorm, Conv, norm_relu_pool
from tfkd_fast.randomness import seeded

REDUCTION = 4
"""How many times fewer entries a query has than a batch has images (the authors' code)."""


class SemCKDLoss(FeatureLoss):
    """The `[loss]` table, by the authors' command."""

    weight: Weight = 400.0
    """Weight of the distance between the maps in the loss; the label has 1."""
    kd_weight: Weight = 1.0
    """Weight of the divergence from the teacher's softened predictions in the loss, beside the features."""
    softness: float = Field(default=1.0, ge=0.01, le=1_000)
    """Divisor of the products of queries and keys, of which the shares are a softmax."""


class SemCKDSettings(FeatureSettings):
    """The tables of SemCKD."""

    loss: SemCKDLoss = SemCKDLoss()
    """The distance between the maps, the teacher's predictions and the label beside it."""


class Projection(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1 to the teacher's channels, with batch norm and ReLU between them, twice as wide."""

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, 2 * wanted, kernel=1)
        self.norm1 = BatchNorm(2 * wanted)
        self.conv2 = Conv(2 * wanted, 2 * wanted)
        self.norm2 = BatchNorm(2 * wanted)
        self.conv3 = Conv(2 * wanted, wanted, kernel=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,S,H,W) as (B,T,H,W)."""
        maps = norm_relu_pool(self.norm1, self.conv1(maps))
        projected: Tensor = self.conv3(norm_relu_pool(self.norm2, self.conv2(maps)))
        return projected


class Query(nn.Module):
    """Two linear layers with ReLU between them, whose result has length 1."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        size = max(1, batch_size // REDUCTION)
        self.linear1 = nn.Linear(batch_size, 2 * size)
        self.linear2 = nn.Linear(2 * size, size)

    def forward(self, similarities: Tensor) -> Tensor:
        """Similarities (B,B) of an image to all of the batch, as (B,E)."""
        return F.normalize(self.linear2(F.relu(self.linear1(similarities))), dim=-1)


class CrossLayerAttention(nn.Module):
    """The queries of the student's stages, the keys of the teacher's, and the projections of each pair."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int], batch_size: int) -> None:
        super().__init__()
        self.queries = nn.ModuleList(Query(batch_size) for _ in student)
        self.keys = nn.ModuleList(Query(batch_size) for _ in teacher)
        self.projections = nn.ModuleList(
            nn.ModuleList(Projection(own, wanted) for wanted in teacher) for own in student
        )


class SemCKD(FeatureStudent):
    """D = the mean over images and stages s of the student of the sum over stages t of the teacher of a_st times the
    mean squared difference of their maps after ReLU, the student's projected: Chen et al., Cross-Layer Distillation
    with Semantic Calibration, AAAI 2021, and the authors' code.

    The shares a_s of an image are softmaxes of products of a query with keys, which small networks make of the
    similarities of the image to those of the batch, inner products of maps. They are as many as a batch has images: our
    choice is that a smaller last batch counts as one with images that resemble none, where the code leaves it out.
    """

    def __init__(self, settings: SemCKDSettings, context: Context) -> None:
        """
        Raises:
            UserError: in a loop of one's own that did not say how large its batches are.
        """
        super().__init__(settings, context)
        if not context.batch_size:
            raise UserError("semckd compares the images of a batch: give batch_size, the size of the largest one")
        self._softness, self._batch_size = settings.loss.softness, context.batch_size
        self._student_stages, self._teacher_stages = ([*stages] for stages in zip(*self.pairs, strict=True))
        with seeded(context.seed):
            attention = CrossLayerAttention(
                [context.need_shapes().maps[stage][0] for stage in self._student_stages],
                [context.teachers[0].shapes.maps[stage][0] for stage in self._teacher_stages],
                context.batch_size,
            )
        self.adapters = self._attention = attention.to(context.device)

    def distance(self, batch: StepBatch) -> Tensor:
        student, teacher = batch.need_features().after_relu, batch.teachers[0].need_features().after_relu
        own = [student[stage] for stage in self._student_stages]
        other = [teacher[stage] for stage in self._teacher_stages]
        attention = self._attention
        queries = torch.stack([f(self._similarities(maps)) for f, maps in zip(attention.queries, own, strict=True)], 2)
        keys = torch.stack([f(self._similarities(maps)) for f, maps in zip(attention.keys, other, strict=True)], 2)
        shares = (queries @ keys.transpose(-1, -2) / self._softness).softmax(-1)  # (n,B,S,T)
        distances = [
            _distance(batch, projection, maps, wanted)
            for projections, maps in zip(attention.projections, own, strict=True)
            for projection, wanted in zip(projections, other, strict=True)  # type: ignore[call-overload]
        ]
        each = torch.stack(distances, dim=-1).view_as(shares)
        return (shares * each).sum(-1).mean((1, 2))

    def _similarities(self, maps: Tensor) -> Tensor:
        """Inner products (n,B,batch size) of the maps (n,B,C,H,W) of each two images; 0 for those that a smaller batch
        has not."""
        return F.pad(inner_products(maps), (0, self._batch_size - maps.shape[1]))


def _distance(batch: StepBatch, projection: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference (n,B) of maps (n,B,S,H,W), projected, and (n,B,T,h,w)."""
    maps, wanted = pool_to_smaller(student.flatten(0, 1), teacher.flatten(0, 1))
    projected = batch.adapt(projection, maps.unflatten(0, batch.labels.shape))
    return (projected - wanted.unflatten(0, batch.labels.shape)).square().mean((2, 3, 4))

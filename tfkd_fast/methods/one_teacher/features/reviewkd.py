"""ReviewKD: early stages of the teacher teach later stages of the student, whose maps are fused from deep up."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, Interval, Plan, StepBatch
from tfkd_fast.methods.distpro.connectors import hierarchical_context_loss
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.warmup import warmup_factor
from tfkd_fast.models.layers import BatchNorm, Conv
from tfkd_fast.randomness import seeded

MOST_CHANNELS = 512
"""The most channels of the maps that are fused (the authors' code)."""


class ReviewKDLoss(FeatureLoss):
    """The `[loss]` table, by mdistiller's configuration for resnet32x4 and resnet8x4."""

    weight: Weight = 5.0
    """Weight of the distance between the maps in the loss; the label has 1."""
    warmup: float = Field(default=20 / 240, ge=0, le=1)
    """Share of the run over which the weight grows from 0 to its value."""


class ReviewKDSettings(FeatureSettings):
    """The tables of ReviewKD."""

    loss: ReviewKDLoss = ReviewKDLoss()
    """The distance between the maps, and the label beside it."""


class Fusion(nn.Module):
    """A map of the student, fused with that of the next deeper level by attention, and brought to the teacher's
    channels."""

    def __init__(self, channels: int, inner: int, wanted: int, *, fuses: bool) -> None:
        super().__init__()
        self.conv1 = Conv(channels, inner, kernel=1)
        self.norm1 = BatchNorm(inner)
        self.conv2 = Conv(inner, wanted)
        self.norm2 = BatchNorm(wanted)
        self.attention = Conv(2 * inner, 2, kernel=1, bias=True) if fuses else None
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(conv.weight, a=1.0)

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Maps (B,S,H,W) and the fused ones (B,I,h,w) of the deeper level, to maps (B,T,*size) and fused ones
        (B,I,*size)."""
        maps = self.norm1(self.conv1(maps))
        if self.attention is not None and deeper is not None:
            deeper = _resize(deeper, (maps.shape[-2], maps.shape[-1]))
            shares = self.attention(torch.cat([maps, deeper], dim=1)).sigmoid()
            maps = maps * shares[:, :1] + deeper * shares[:, 1:]
        maps = _resize(maps, size)
        return self.norm2(self.conv2(maps)), maps


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="nearest")


class Review(nn.Module):
    """The fusions of all levels, the shallowest first."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        """
        Args:
            student: the channels of the student's maps of each level.
            teacher: those of the teacher's.
        """
        super().__init__()
        inner = min(MOST_CHANNELS, student[-1])
        self.levels = nn.ModuleList(
            Fusion(own, inner, wanted, fuses=level < len(student) - 1)
            for level, (own, wanted) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Maps (B,S,H,W) of each level as (B,T,*size), in the same order."""
        fused: Tensor | None = None
        reviewed = []
        for fusion, own, size in zip(reversed(self.levels), reversed(maps), reversed(sizes), strict=True):
            result, fused = fusion(own, fused, size)
            reviewed.append(result)
        return reviewed[::-1]


class ReviewKD(FeatureStudent):
    """D = the sum over levels of the hierarchical context loss between the teacher's maps before ReLU and the student's
    after ReLU, which are fused from deep to shallow; the levels are the pairs of stages and the pooled features: Chen,
    Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, CVPR 2021, as mdistiller has it.

    The weight grows to its value in the first epochs, see `warmup_factor`.
    """

    per_sample = True

    def __init__(self, settings: ReviewKDSettings, context: Context) -> None:
        """
        Raises:
            UserError: where the last batch of an epoch is a single image.
        """
        super().__init__(settings, context)
        if context.batch_size and context.num_images % context.batch_size == 1:
            raise UserError(
                f"the last batch of {context.num_images} images is a single one, and reviewkd normalises pooled "
                f"features over a batch: choose another data.batch_size than {context.batch_size}"
            )
        self._warmup = settings.loss.warmup
        student, teacher = context.need_shapes(), context.teachers[0].shapes
        with seeded(context.seed):
            review = Review(
                [*(student.maps[own][0] for own, _ in self.pairs), student.pooled],
                [*(teacher.maps[other][0] for _, other in self.pairs), teacher.pooled],
            )
        self.adapters = self._review = review.to(context.device)
        self.warmup_factor = torch.ones((), device=context.device)
        """() float32: the present factor of the distance; it rises to 1 over the warm-up, in place."""

    def resume_interval(self, interval: Interval) -> Plan:
        self.warmup_factor.fill_(warmup_factor(interval.first_epoch, self._warmup, self.context.epochs))
        return super().resume_interval(interval)

    def distance(self, batch: StepBatch) -> Tensor:
        student, teacher = batch.need_features(), batch.teachers[0].need_features()
        own = [student.after_relu[stage] for stage, _ in self.pairs] + [student.pooled[..., None, None]]
        wanted = [teacher.before_relu[stage] for _, stage in self.pairs] + [teacher.pooled[..., None, None]]
        sizes = [(maps.shape[-2], maps.shape[-1]) for maps in wanted]
        with batch.autocast():
            reviewed = self._review([maps.flatten(0, 1) for maps in own], sizes)
        total = student.pooled.new_zeros(batch.labels.shape[:1])
        for maps, target in zip(reviewed, wanted, strict=True):
            distances = hierarchical_context_loss(maps, target.flatten(0, 1))
            total = total + distances.unflatten(0, batch.labels.shape).mean(1)
        return self.warmup_factor * total

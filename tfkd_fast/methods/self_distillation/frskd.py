"""FRSKD: a pyramid of features, refined from deep to shallow and back, teaches the network that it is built on."""

import operator
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.methods.base import Context, Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.methods.self_distillation.separable import SeparableConv
from tfkd_fast.methods.taught.maps import attention_map
from tfkd_fast.models.layers import Classifier, average_pool
from tfkd_fast.randomness import seeded
from tfkd_fast.settings import LARGEST, Settings

WIDTH = 2
"""Channels of a level of the pyramid, in multiples of those of its stage (the authors' code, as all numbers here)."""
DEPTH = 2
"""Separable convolutions of a level on the way up, and on the way down."""
EPSILON = 1e-6
"""What is added to the sum of the shares of a level."""

Size = tuple[int, int]
"""Height and width of maps."""


class FRSKDLoss(Settings):
    """The `[loss]` table, by the command of the authors' README for CIFAR-100 (MingiJi/FRSKD)."""

    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of student and pyramid."""
    alpha: float = Field(default=2.0, ge=0, le=LARGEST)
    """Weight of the pyramid's softened prediction in the loss; the label has 1."""
    beta: float = Field(default=100.0, ge=0, le=LARGEST)
    """Weight of the pyramid's attention maps in the loss."""


class FRSKDSettings(Settings):
    """The tables of feature refinement."""

    loss: FRSKDLoss = FRSKDLoss()
    """The distances from the pyramid, and the label beside them."""


class Pointwise(nn.Sequential):
    """A convolution 1x1 with batch norm and ReLU."""

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__(nn.Conv2d(channels, wanted, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU())


class Level(nn.Module):
    """Maps of one level, added in shares that are learned, and refined."""

    def __init__(self, channels: int, inputs: int) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.ones(inputs))
        self.refinement = nn.Sequential(*(SeparableConv(channels, channels) for _ in range(DEPTH)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B,C,H,W) of as many inputs, to (B,C,H,W)."""
        shares = self.shares.relu()
        shares = shares / (shares.sum() + EPSILON)
        # a stack would not be channels-last, for which depthwise convolutions are several times as fast
        mixture = reduce(operator.add, (share * each for share, each in zip(shares, maps, strict=True)))
        refined: Tensor = self.refinement(mixture)
        return refined


class Pyramid(nn.Module):
    """A bidirectional feature pyramid (BiFPN) on the maps of all stages, with a classifier on its last level: features
    are fused from the last level up to the first, and from there down again, beside those of the stages."""

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        """`channels` are those of the maps of each stage, of two stages at least."""
        super().__init__()
        wide = [WIDTH * each for each in channels]
        last = len(wide) - 1
        self.lateral_up = nn.ModuleList(map(Pointwise, channels, wide))
        self.lateral_down = nn.ModuleList(map(Pointwise, channels[1:], wide[1:]))
        self.from_below = nn.ModuleList(Pointwise(deeper, own) for own, deeper in pairwise(wide))
        self.from_above = nn.ModuleList(Pointwise(own, deeper) for own, deeper in pairwise(wide))
        self.up = nn.ModuleList(Level(own, 2) for own in wide[:-1])
        self.down = nn.ModuleList(Level(own, 3 if level < last else 2) for level, own in enumerate(wide) if level)
        self.classifier = Classifier(wide[-1], num_classes)

    def forward(self, stages: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The map (B,2C,H,W) of each level and logits (B,K), of the map (B,C,H,W) after ReLU of each stage."""
        sizes = [(maps.shape[-2], maps.shape[-1]) for maps in stages]
        upward = [layer(maps) for layer, maps in zip(self.lateral_up, stages, strict=True)]
        for level in reversed(range(len(stages) - 1)):
            deeper = F.interpolate(upward[level + 1], sizes[level], mode="nearest")
            upward[level] = self.up[level]([upward[level], self.from_below[level](deeper)])
        levels = [upward[0]]
        for level in range(1, len(stages)):
            inputs = [self.lateral_down[level - 1](stages[level])]
            if level < len(stages) - 1:
                inputs.append(upward[level])
            inputs.append(self.from_above[level - 1](max_pool_to(levels[-1], sizes[level])))
            levels.append(self.down[level - 1](inputs))
        return levels, self.classifier(average_pool(levels[-1]))


def max_pool_to(maps: Tensor, size: Size) -> Tensor:
    """Maps (B,C,H,W), not negative, max-pooled to (B,C,*size) by windows that overlap by a row and a column, unless
    they have that size."""
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    strides = -(-height // size[0]), -(-width // size[1])
    bottom, right = (
        (count - 1) * stride + stride + 1 - length
        for count, stride, length in zip(size, strides, (height, width), strict=True)
    )
    padded = F.pad(maps, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
    return F.max_pool2d(padded, (strides[0] + 1, strides[1] + 1), strides)


class FRSKD(SingleStudent):
    """CE(y, p) + CE(y, q) + alpha T^2 KL(q^T || p^T) + beta D of a student p and a `Pyramid` q, which is constant in
    the last two; D is the sum over the stages of the mean squared difference of attention maps, see `attention_map`:
    Ji, Shin, Hwang, Park, Moon, CVPR 2021.

    The gradient of CE(y, q) reaches the student, too. A level has the size of its stage; where two stages have one
    size, as the last two of a VGG, nothing is pooled or enlarged between them (our choice).
    """

    @classmethod
    def needs_for(cls, settings: FRSKDSettings) -> Needs:
        return Needs(features=frozenset({"stages"}))

    def __init__(self, settings: FRSKDSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss
        channels = [channels for channels, _, _ in context.need_shapes().maps]
        with seeded(context.seed):
            pyramid = Pyramid(channels, context.num_classes)
        self.adapters = self._pyramid = pyramid.to(context.device)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, stages = self._settings, batch.need_features().after_relu
        size = batch.labels.shape
        hard, statistics = self.cross_entropy(logits, batch.labels)
        with batch.autocast():
            levels, outputs = self._pyramid([maps.flatten(0, 1) for maps in stages])
        teacher = outputs.float().unflatten(0, size)
        soft = ops.distillation_loss(logits, teacher.detach().unsqueeze(1), temperature=settings.temperature)
        attention = torch.zeros_like(hard)
        for maps, level in zip(stages, levels, strict=True):
            difference = attention_map(maps.flatten(0, 1)) - attention_map(level.detach().float())
            attention = attention + difference.square().unflatten(0, size).mean((1, 2))
        terms = {
            "label": hard,
            "pyramid": self.cross_entropy(teacher, batch.labels)[0],
            "soft": settings.alpha * soft,
            "attention": settings.beta * attention,
        }
        return Loss(terms, statistics)

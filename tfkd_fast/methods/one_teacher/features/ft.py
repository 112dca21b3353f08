"""FT: the student is to have the factors that a paraphraser makes of the teacher's map."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.events import Event
from tfkd_fast.finiteness import nonfinite_names
from tfkd_fast.methods.base import Context, Material, Needs, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.maps import attention_map, pool_to_smaller
from tfkd_fast.methods.taught.student import TaughtSettings
from tfkd_fast.randomness import seeded
from tfkd_fast.settings import LARGEST

SLOPE = 0.1
"""Slope of the leaky ReLU below 0."""
SHARE = 0.5
"""Channels of the factors, as a share of the teacher's."""
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
"""How the paraphraser is trained beside its learning rate (RepDistiller)."""


class FTLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command and code."""

    weight: Weight = 200.0
    """Weight of the distance between factors in the loss; the label has 1."""
    paraphraser_epochs: int = Field(default=30, ge=1, le=100_000)
    """Epochs in which the paraphraser learns to restore the teacher's map, before the run."""
    paraphraser_learning_rate: float = Field(default=0.01, gt=0, le=LARGEST)
    """Learning rate of the paraphraser: RepDistiller's beside the residual networks of CIFAR; beside other students it
    takes the run's."""


class FTSettings(FeatureSettings):
    """The tables of factor transfer."""

    loss: FTLoss = FTLoss()
    """The distance between factors, and the label beside it."""


class Paraphraser(nn.Module):
    """Three convolutions 3x3 to half of the channels, the factors, and three transposed ones back, with leaky ReLU
    after each."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        widths = [channels, channels, factors, factors]
        self.encoder = nn.Sequential(*_stack(nn.Conv2d, widths))
        self.decoder = nn.Sequential(*_stack(nn.ConvTranspose2d, [factors, factors, channels, channels]))

    def forward(self, maps: Tensor) -> Tensor:
        """The factors (B,F,H,W) of maps (B,C,H,W)."""
        factors: Tensor = self.encoder(maps)
        return factors

    def error(self, maps: Tensor) -> Tensor:
        """The mean squared error () with which the factors restore maps (B,C,H,W)."""
        return F.mse_loss(self.decoder(self.encoder(maps)), maps)


def _stack(layer: type[nn.Conv2d | nn.ConvTranspose2d], widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [layer(width, following, 3, 1, 1), nn.LeakyReLU(SLOPE)]
    return layers


class Translator(nn.Module):
    """Three convolutions 3x3 from the student's map to factors, with batch norm and leaky ReLU after each."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        widths = [channels, channels, factors, factors]
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, 1, 1) for a, b in pairwise(widths))
        self.norm = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])

    def forward(self, maps: Tensor) -> Tensor:
        """The factors (B,F,H,W) of maps (B,C,H,W)."""
        for conv, norm in zip(self.conv, self.norm, strict=True):
            maps = F.leaky_relu(norm(conv(maps)), SLOPE)
        return maps


class FT(FeatureStudent):
    """D = the mean absolute difference of the factors of the last maps after ReLU, as attention maps: those that a
    `Translator` makes of the student's and a `Paraphraser`, trained before the run, of the teacher's: Kim, Park, Kwak,
    Paraphrasing Complex Network, NeurIPS 2018, as RepDistiller has it."""

    per_sample = True

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), material=True)

    def __init__(self, settings: FTSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._settings = settings.loss
        channels = context.teachers[0].shapes.maps[-1][0]
        factors = max(1, int(SHARE * channels))
        with seeded(context.seed):
            translator = Translator(context.need_shapes().maps[-1][0], factors)
            paraphraser = Paraphraser(channels, factors)
        self.adapters = self._translator = translator.to(context.device)
        self.paraphraser = paraphraser.to(context.device)
        """The network that makes factors of the teacher's last map."""

    def prepare(self, material: Material) -> Iterable[Event]:
        """Train the paraphraser.

        Raises:
            UserError: it diverged.
        """
        settings = self._settings
        optimizer = torch.optim.SGD(
            self.paraphraser.parameters(), settings.paraphraser_learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        for epoch in range(settings.paraphraser_epochs):
            for batch in material.fit(epoch):
                maps = material.teach(batch.images)[0].need_features().after_relu[-1][0].float()
                error = self.paraphraser.error(maps)
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
        if names := nonfinite_names(self.paraphraser.state_dict().items()):
            raise UserError(f"the paraphraser diverged, {names[0]} is not finite: lower loss.paraphraser_learning_rate")
        self.paraphraser.requires_grad_(False)
        return ()

    def distance(self, batch: StepBatch) -> Tensor:
        own, other = batch.need_features().after_relu[-1], batch.teachers[0].need_features().after_relu[-1]
        student = batch.adapt(self._translator, own).flatten(0, 1)
        with torch.no_grad():
            teacher = batch.adapt(self.paraphraser, other).flatten(0, 1)
        student, teacher = (attention_map(each) for each in pool_to_smaller(student, teacher))
        return (student - teacher).abs().unflatten(0, batch.labels.shape).mean((1, 2))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"paraphraser": copy.deepcopy(self.paraphraser.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.paraphraser.load_state_dict(state["paraphraser"])

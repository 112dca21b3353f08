"""Networks by name. A model is a function (num_classes, *, in_channels, width) -> nn.Module."""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field, field_validator
from torch import nn

from tfkd_fast.errors import nearest
from tfkd_fast.models.folding import fix_weights, fixed_weights
from tfkd_fast.models.layers import (
    FeatureName,
    Features,
    FeatureShapes,
    feature_shapes,
    gives_finite_logits,
    logits_and_features,
)
from tfkd_fast.models.residual import ResidualNetwork
from tfkd_fast.models.resnet import ResNet, resnet8x4, resnet20, resnet32, resnet32x4, resnet56, resnet110
from tfkd_fast.models.vgg import VGG, vgg8, vgg13
from tfkd_fast.models.wide_resnet import WideResNet, wrn_16_2, wrn_40_2
from tfkd_fast.randomness import seeded
from tfkd_fast.settings import Settings

__all__ = [
    "MODELS",
    "VGG",
    "FeatureName",
    "FeatureShapes",
    "Features",
    "ModelSettings",
    "ResNet",
    "ResidualNetwork",
    "WideResNet",
    "Width",
    "build_model",
    "feature_shapes",
    "fix_weights",
    "fixed_weights",
    "gives_finite_logits",
    "logits_and_features",
    "vgg8",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg8": vgg8,
    "vgg13": vgg13,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet8x4": resnet8x4,
    "resnet32x4": resnet32x4,
    "wrn_16_2": wrn_16_2,
    "wrn_40_2": wrn_40_2,
}

Width = Annotated[float, Field(gt=0, le=8)]
"""Factor that multiplies the number of channels of every layer of a network."""


class ModelSettings(Settings):
    """The `[model]` table of a recipe."""

    name: str = "vgg8"
    """Name of the network."""
    width: Width = 1.0
    """Factor that multiplies the number of channels of every layer."""

    @field_validator("name")
    @classmethod
    def _known_model(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"unknown model {name!r}: {nearest(name, MODELS)}")
        return name


def build_model(settings: ModelSettings, num_classes: int, in_channels: int, seed: int) -> nn.Module:
    """Build the network of a recipe, initialised from `seed` without touching the global random state.

    Args:
        settings: the `[model]` table of the recipe.
        num_classes: number of logits.
        in_channels: channels of the images.
        seed: seed of the initial weights.
    """
    with seeded(seed):
        return MODELS[settings.name](num_classes, in_channels=in_channels, width=settings.width)

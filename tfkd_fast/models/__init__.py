"""Networks by name. A model is a function (num_classes, *, in_channels, width) -> nn.Module."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import nn

from tfkd_fast.errors import UserError
from tfkd_fast.models.vgg import VGG, Features, vgg8
from tfkd_fast.settings import Settings, nearest

__all__ = ["MODELS", "VGG", "Features", "ModelSettings", "build_model", "vgg8"]

MODELS: dict[str, Callable[..., nn.Module]] = {"vgg8": vgg8}


class ModelSettings(Settings):
    """The `[model]` table of a recipe."""

    name: str = "vgg8"
    width: float = Field(default=1.0, gt=0, le=8)  # multiplies every channel count


def build_model(settings: ModelSettings, num_classes: int, in_channels: int, seed: int) -> nn.Module:
    """The network of a recipe, initialised from `seed` without touching the global random state."""
    if settings.name not in MODELS:
        raise UserError(f"unknown model {settings.name!r}: {nearest(settings.name, MODELS)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODELS[settings.name](num_classes, in_channels=in_channels, width=settings.width)

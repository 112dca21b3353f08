"""Networks by name: those of this package, and those of others, see `foreign`.

A network of this package is a function (num_classes, *, in_channels, width) -> FeatureNetwork.
"""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field, field_validator
from torch import nn

from tfkd_fast.errors import refuse_unknown
from tfkd_fast.models.batch_norm import SynchronisedNorms
from tfkd_fast.models.features import (
    FeatureName,
    FeatureNetwork,
    Features,
    FeatureShapes,
)
from tfkd_fast.models.folding import fix_weights, fixed_weights
from tfkd_fast.models.foreign import (
    INSTALLED,
    NetworkOrFactory,
    announce_import,
    build_foreign,
    check_name,
    give,
    imports_code,
)
from tfkd_fast.models.layers import exact_logits, replace_strided
from tfkd_fast.models.mapped import call_with
from tfkd_fast.models.mobilenet import mobilenetv2_half
from tfkd_fast.models.reading import (
    blank_images,
    classifier_of,
    evaluating,
    feature_shapes,
    gives_finite_logits,
    logits_and_features,
    logits_of_noise,
    noise,
)
from tfkd_fast.models.residual import ResidualNetwork
from tfkd_fast.models.resnet import (
    ResNet,
    resnet8,
    resnet8x4,
    resnet14,
    resnet18,
    resnet20,
    resnet32,
    resnet32x4,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet110,
)
from tfkd_fast.models.shufflenet import shufflenetv1, shufflenetv2
from tfkd_fast.models.trial import (
    agree,
    is_of_package,
    refuse_batch_of_one,
    refuse_unstackable,
    try_out,
    unchanged,
)
from tfkd_fast.models.vgg import VGG, vgg8, vgg11, vgg13, vgg16, vgg19
from tfkd_fast.models.wide_resnet import WideResNet, wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2
from tfkd_fast.randomness import all_seeded
from tfkd_fast.settings import ReadIf, Settings

__all__ = [
    "MODELS",
    "VGG",
    "FeatureName",
    "FeatureNetwork",
    "FeatureShapes",
    "Features",
    "ModelSettings",
    "NetworkOrFactory",
    "ResNet",
    "ResidualNetwork",
    "SynchronisedNorms",
    "WideResNet",
    "Width",
    "agree",
    "announce_import",
    "blank_images",
    "build_model",
    "call_with",
    "classifier_of",
    "evaluating",
    "feature_shapes",
    "fix_weights",
    "fixed_weights",
    "give",
    "gives_finite_logits",
    "imports_code",
    "is_of_package",
    "logits_and_features",
    "logits_of_noise",
    "noise",
    "refuse_batch_of_one",
    "refuse_unknown_network",
    "refuse_unstackable",
    "try_out",
    "unchanged",
    "vgg8",
]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "vgg8": vgg8,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet8x4": resnet8x4,
    "resnet32x4": resnet32x4,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "wrn_16_1": wrn_16_1,
    "wrn_16_2": wrn_16_2,
    "wrn_40_1": wrn_40_1,
    "wrn_40_2": wrn_40_2,
    "mobilenetv2_half": mobilenetv2_half,
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
}
INSTALLED.reserve(MODELS)

Width = Annotated[float, Field(gt=0, le=8)]
"""Factor that multiplies the number of channels of every layer of a network."""


class ModelSettings(Settings):
    """The `[model]` table of a recipe."""

    name: str = "vgg8"
    """Name of the network: one of this package, or timm/NAME, torchvision/NAME, package.module:factory or
    path/file.py:factory."""
    width: Annotated[Width, ReadIf("name", MODELS.__contains__, "name is a network of tfkd_fast")] = 1.0
    """Factor that multiplies the number of channels of every layer."""

    @field_validator("name")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return check_name(name, MODELS)


def refuse_unknown_network(name: str, where: object) -> None:
    """Raise UserError if a stored run has a network that this process does not know, as where a program had added it.

    Args:
        name: the name of the network.
        where: the file or folder that names it.
    """
    try:
        check_name(name, MODELS)
    except ValueError:
        refuse_unknown("network", name, MODELS, "tfkd_fast.models.MODELS", where)


def build_model(settings: ModelSettings, num_classes: int, in_channels: int, seed: int) -> nn.Module:
    """Build the network of a recipe, initialised from `seed` without touching the global random state.

    Args:
        settings: the `[model]` table of the recipe.
        num_classes: number of logits.
        in_channels: channels of the images.
        seed: seed of the initial weights.

    Raises:
        UserError: it is the network of others, and cannot be imported or built, or has a name of this package.
    """
    with all_seeded(seed):
        if settings.name in MODELS and settings.name not in INSTALLED:
            return MODELS[settings.name](num_classes, in_channels=in_channels, width=settings.width)
        return exact_logits(replace_strided(build_foreign(settings.name, num_classes, in_channels)), num_classes)

"""Target distributions: the class table that a student is trained with, as a function of a controller's action."""

from tfkd_fast.errors import UserError
from tfkd_fast.steering.targets.full_matrix import FullMatrixTarget
from tfkd_fast.steering.targets.instances import InstanceMemory
from tfkd_fast.steering.targets.mixture import TargetMixture
from tfkd_fast.steering.targets.rank_binned import RankBinnedTarget
from tfkd_fast.steering.targets.settings import (
    TARGETS,
    FullMatrixTargetSettings,
    LabelSmoothingTargetSettings,
    OneHotTargetSettings,
    RankBinnedTargetSettings,
    ScalarTargetSettings,
    SteeredTargetSettings,
    SuperclassTargetSettings,
    TargetBase,
    TargetFamily,
    TargetSettings,
)
from tfkd_fast.steering.targets.similarity import SimilarityMemory
from tfkd_fast.steering.targets.smoothed import ConstantTarget, ScalarTarget, one_hot_table
from tfkd_fast.steering.targets.summary import LEAST_RISE, TargetSummary, describe
from tfkd_fast.steering.targets.superclass import Superclasses, SuperclassTarget
from tfkd_fast.steering.targets.target import ActionSpace, Target
from tfkd_fast.steering.targets.true_mass import TrueMassRange

__all__ = [
    "LEAST_RISE",
    "ActionSpace",
    "InstanceMemory",
    "RankBinnedTargetSettings",
    "SimilarityMemory",
    "Superclasses",
    "Target",
    "TargetBase",
    "TargetFamily",
    "TargetMixture",
    "TargetSettings",
    "TargetSummary",
    "build_mixture",
    "build_target",
    "describe",
    "one_hot_table",
]


def build_mixture(
    settings: TargetSettings, num_classes: int, superclasses: Superclasses | None = None
) -> TargetMixture:
    """Build the class target and the sources beside it that the settings name; see `build_target` for the arguments."""
    return TargetMixture(build_target(settings, num_classes, superclasses), settings)


def build_target(settings: TargetSettings, num_classes: int, superclasses: Superclasses | None = None) -> Target:
    """Build the target family that the settings name.

    Args:
        settings: the `[target]` table of a recipe.
        num_classes: number of classes C, at least 2.
        superclasses: those of the data set, if it has any.

    Raises:
        UserError: the family is "superclass" and the data set has no superclasses.
    """
    match settings:
        case OneHotTargetSettings():
            return ConstantTarget("one-hot", 1.0)
        case LabelSmoothingTargetSettings():
            return ConstantTarget("label-smoothing", 1.0 - settings.smoothing)
        case ScalarTargetSettings():
            return ScalarTarget(_mass_range(settings))
        case RankBinnedTargetSettings():
            return RankBinnedTarget(_mass_range(settings), settings.bins, num_classes)
        case FullMatrixTargetSettings():
            return FullMatrixTarget(_mass_range(settings), num_classes)
        case SuperclassTargetSettings():
            if superclasses is None:
                raise UserError(
                    "the superclass target needs superclasses, and this data set has none: choose data.dataset "
                    "cifar100, an npz or folder with its class names, or another target.family"
                )
            return SuperclassTarget(_mass_range(settings), superclasses, num_classes)
        case _:  # of another distribution
            return TARGETS[settings.family].build(settings, num_classes, superclasses)


def _mass_range(settings: SteeredTargetSettings) -> TrueMassRange:
    return TrueMassRange(settings.true_mass_min, settings.true_mass_max)

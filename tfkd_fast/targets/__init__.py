"""Target distributions: the class table that a student is taught with, as a function of a controller's action."""

from tfkd_fast.targets.full_matrix import FullMatrixTarget
from tfkd_fast.targets.instances import InstanceMemory
from tfkd_fast.targets.mixture import TargetMixture
from tfkd_fast.targets.rank_binned import RankBinnedTarget
from tfkd_fast.targets.settings import TargetSettings
from tfkd_fast.targets.similarity import SimilarityMemory
from tfkd_fast.targets.smoothed import ConstantTarget, ScalarTarget, one_hot_table
from tfkd_fast.targets.summary import TargetSummary, describe
from tfkd_fast.targets.target import ActionSpace, Target
from tfkd_fast.targets.true_mass import TrueMassRange

__all__ = [
    "ActionSpace",
    "InstanceMemory",
    "SimilarityMemory",
    "Target",
    "TargetMixture",
    "TargetSettings",
    "TargetSummary",
    "build_mixture",
    "build_target",
    "describe",
    "one_hot_table",
]


def build_mixture(settings: TargetSettings, num_classes: int) -> TargetMixture:
    """The class target and the sources beside it that the settings name, for C = `num_classes` >= 2."""
    return TargetMixture(build_target(settings, num_classes), settings)


def build_target(settings: TargetSettings, num_classes: int) -> Target:
    """The target family that the settings name, for C = `num_classes` >= 2."""
    mass_range = TrueMassRange(settings.true_mass_min, settings.true_mass_max)
    match settings.family:
        case "one-hot":
            return ConstantTarget("one-hot", 1.0)
        case "label-smoothing":
            return ConstantTarget("label-smoothing", 1.0 - settings.smoothing)
        case "scalar":
            return ScalarTarget(mass_range)
        case "rank-binned":
            return RankBinnedTarget(mass_range, settings.bins, num_classes)
        case "full-matrix":
            return FullMatrixTarget(mass_range, num_classes)

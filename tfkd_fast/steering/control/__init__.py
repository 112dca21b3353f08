"""Controllers: they choose the action of a target family, and so the targets, while a run trains."""

from typing import TYPE_CHECKING, Any

from tfkd_fast.errors import UserError
from tfkd_fast.steering.control.bandit import ThompsonController, UCBController
from tfkd_fast.steering.control.controller import (
    ACTION_LIMIT,
    Controller,
    Decision,
    DecisionOutcome,
    Feedback,
    Progress,
)
from tfkd_fast.steering.control.evolution import EvolutionController
from tfkd_fast.steering.control.hypergradient import HypergradientController
from tfkd_fast.steering.control.observation import observation, with_every_entry
from tfkd_fast.steering.control.open_loop import FixedController, RecordedController, ScheduleController
from tfkd_fast.steering.control.policy_controller import PolicyController
from tfkd_fast.steering.control.settings import (
    CONTROLLERS,
    ControllerBase,
    ControllerEntry,
    ControllerSettings,
    EvolutionSettings,
    FixedSettings,
    HypergradientSettings,
    MassScheduleSettings,
    PlayedPolicySettings,
    PPOSettings,
    ProgressiveSettings,
    RecordedAction,
    RecordedSettings,
    SampledPolicySettings,
    ThompsonSettings,
    UCBSettings,
)
from tfkd_fast.steering.control.students import Snapshot, StudentFleet
from tfkd_fast.steering.targets import ActionSpace

if TYPE_CHECKING:  # they need gymnasium, which is an extra
    from tfkd_fast.steering.control.environment import TargetControlEnv, TargetControlVectorEnv

ENVIRONMENTS = ("TargetControlEnv", "TargetControlVectorEnv")

__all__ = [
    "ACTION_LIMIT",
    "Controller",
    "ControllerBase",
    "ControllerEntry",
    "ControllerSettings",
    "Decision",
    "DecisionOutcome",
    "Feedback",
    "PPOSettings",
    "Progress",
    "RecordedAction",
    "SampledPolicySettings",
    "Snapshot",
    "StudentFleet",
    "TargetControlEnv",
    "TargetControlVectorEnv",
    "build_controller",
    "observation",
    "with_every_entry",
]


def __getattr__(name: str) -> Any:
    """Import an environment class on first access, because gymnasium is an optional dependency.

    Raises:
        UserError: gymnasium is not installed.
    """
    if name not in ENVIRONMENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from tfkd_fast.steering.control import environment
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gymnasium":
            raise
        raise UserError(f"{name} needs gymnasium: pip install 'tfkd-fast[gym]'") from None
    return getattr(environment, name)


def build_controller(settings: ControllerSettings, space: ActionSpace, seed: int) -> Controller:
    """Build the controller that the settings name.

    Args:
        settings: the `[controller]` table of a recipe.
        space: what an action steers: a target family, or a mixture of one with other sources.
        seed: seeds the random numbers of the controller.

    Raises:
        UserError: the target leaves this controller nothing to decide, an action has the wrong length, or the policy
            file cannot be used.
    """
    match settings:
        case FixedSettings():
            return FixedController(settings.action, space)
        case MassScheduleSettings() | ProgressiveSettings():
            return ScheduleController(settings.true_mass, space)
        case RecordedSettings():
            return RecordedController(settings.recorded, space)
        case _ if space.action_size == 0:
            raise UserError(
                f"the {settings.name} controller has nothing to set in the {space.family} target: "
                "choose controller.name fixed, or target.family scalar, rank-binned or full-matrix"
            )
        case PlayedPolicySettings() | SampledPolicySettings():
            return PolicyController(settings, space, seed)
        case ThompsonSettings():
            return ThompsonController(settings, space, seed)
        case UCBSettings():
            return UCBController(settings, space, seed)
        case EvolutionSettings():
            return EvolutionController(settings, space, seed)
        case HypergradientSettings():
            return HypergradientController(settings, space)
        case _:  # of another distribution
            return CONTROLLERS[settings.name].build(settings, space, seed)

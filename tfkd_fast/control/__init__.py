"""Who sets the target: controllers that choose an action for a target family as training goes."""

from tfkd_fast.control.bandit import ThompsonController, UCBController
from tfkd_fast.control.controller import ACTION_LIMIT, Controller, Decision, Feedback, Outcome, Progress
from tfkd_fast.control.evolution import EvolutionController
from tfkd_fast.control.hypergradient import HypergradientController
from tfkd_fast.control.observation import observation
from tfkd_fast.control.open_loop import FixedController, RecordedController, ScheduleController
from tfkd_fast.control.policy_controller import PolicyController
from tfkd_fast.control.settings import ControllerSettings, RecordedAction
from tfkd_fast.errors import UserError
from tfkd_fast.targets import ActionSpace

__all__ = [
    "ACTION_LIMIT",
    "Controller",
    "ControllerSettings",
    "Decision",
    "Feedback",
    "Outcome",
    "Progress",
    "RecordedAction",
    "build_controller",
    "observation",
]


def build_controller(settings: ControllerSettings, space: ActionSpace, seed: int) -> Controller:
    """The controller that the settings name, for a target family.

    Raises:
        UserError: for a controller that this target gives nothing to decide, an action that does not fit it, or a
            policy file that cannot be used.
    """
    match settings.name:
        case "fixed":
            return FixedController(settings.action, space)
        case "schedule" | "progressive":
            return ScheduleController(settings.true_mass, space)
        case "recorded":
            return RecordedController(settings.recorded, space)
        case _ if space.action_size == 0:
            raise UserError(
                f"the {settings.name} controller has nothing to set in the {space.family} target: "
                "choose controller.name fixed, or target.family scalar, rank-binned or full-matrix"
            )
        case "random" | "ppo" | "reinforce":
            return PolicyController(settings, space, seed)
        case "thompson":
            return ThompsonController(settings, space, seed)
        case "ucb":
            return UCBController(settings, space, seed)
        case "cma-es":
            return EvolutionController(settings, space, seed)
        case "hypergradient":
            return HypergradientController(settings, space)

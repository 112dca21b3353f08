"""The `[controller]` table of a recipe: one class for each controller."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from tfkd_fast.files import is_there
from tfkd_fast.plugins import Registry
from tfkd_fast.settings import LARGEST, Forms, PathText, ReadIf, Settings, absolute_path, form_name, named_once
from tfkd_fast.steering.control.controller import ACTION_LIMIT, Controller
from tfkd_fast.steering.targets import ActionSpace

Action = tuple[Annotated[float, Field(ge=-LARGEST, le=LARGEST)], ...]


def _absolute_or_name(policy: str) -> str:
    """The absolute path of a file; a name of a policy that comes with the package, and an empty one, as they are."""
    is_name = (
        Path(policy).name == policy
        and not Path(policy).suffix
        and not (is_there(Path(policy)) and Path(policy).is_file())
    )
    return policy if is_name else absolute_path(policy)


Policy = Annotated[PathText, AfterValidator(_absolute_or_name)]


class RecordedAction(Settings):
    """One entry of a recording."""

    start: float = Field(ge=0, lt=1)
    """Share of the run that has passed when the entry begins; it lasts until the next entry begins."""
    action: Action
    """The action of the entry: as many numbers as the target takes."""
    learning_rate_factor: float = Field(default=1.0, gt=0, le=LARGEST)
    """Factor that multiplies the scheduled learning rate during the entry."""


class ControllerBase(Settings):
    """What every controller reads. All defaults of the `[controller]` table are our choice."""

    learns: ClassVar[bool] = False
    """Whether the controller is told how candidates did after each of its decisions, for which images are held out."""
    explores: ClassVar[bool] = True
    """Whether the candidates of one decision get different actions."""
    needs_gradient: ClassVar[bool] = False
    """Whether the controller is told the gradient of the held-out loss in the action that it decided on."""
    moves_on: ClassVar[bool] = False
    """Whether the controller decides anew while several candidates train, without a comparison of them."""
    observes: ClassVar[bool] = True
    """Whether the controller decides by figures of the student, and not by the time alone."""
    name: str
    """Name of the controller, which sets the actions of a run."""
    warmup_epochs: int = Field(default=5, ge=0, le=1_000_000)
    """Epochs of one-hot labels before the first decision, at most a quarter of the run; a target that refers to what
    the student has learned (rank-binned, or with sources) takes them, any other begins at once."""
    interval: int = Field(default=1, ge=1, le=1_000_000)
    """Epochs that one decision lasts: under a controller that learns from comparing candidates, while a single one
    trains."""
    cooldown_epochs: int = Field(default=0, ge=0, le=1_000_000)
    """Epochs that a copy of each candidate trains on by the neutral target, its learning rate falling to zero, before
    the candidate is judged; 0 judges it as it is, by averaged weights."""


class FixedSettings(ControllerBase):
    """One action for the whole run."""

    explores = False
    name: Literal["fixed"]
    action: Action = ()
    """The action of the whole run: as many numbers as the target takes, or none for the neutral action, which is label
    smoothing 0.1."""


class TrueMassSettings(ControllerBase):
    """A true-class mass that follows straight lines over the run."""

    explores = False
    moves_on, observes = True, False
    true_mass: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.6, 0.999), min_length=2)
    """True-class masses at equal distances over the run, connected by straight lines."""


class MassScheduleSettings(TrueMassSettings):
    """Any course of the true-class mass."""

    name: Literal["schedule"]


class ProgressiveSettings(TrueMassSettings):
    """A true-class mass that rises towards the one-hot label."""

    name: Literal["progressive"]

    @field_validator("true_mass")
    @classmethod
    def _masses_rise(cls, masses: tuple[float, ...]) -> tuple[float, ...]:
        if any(before >= after for before, after in pairwise(masses)):
            raise ValueError("progressive masses must rise towards the one-hot label; name = 'schedule' takes any")
        return masses


class RecordedSettings(ControllerBase):
    """The actions of an earlier run, played again at the same shares of this run."""

    explores = False
    name: Literal["recorded"]
    recorded: tuple[RecordedAction, ...] = Field(min_length=1)
    """The actions to play, in the order of their starts."""

    @field_validator("recorded")
    @classmethod
    def _recording_rises(cls, recorded: tuple[RecordedAction, ...]) -> tuple[RecordedAction, ...]:
        if any(before.start >= after.start for before, after in pairwise(recorded)):
            raise ValueError("entries must be in order, each with a later start than the one before")
        return recorded


class RewardedSettings(ControllerBase):
    """What controllers read that are rewarded for their decisions."""

    learns = True
    top1_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the gain in held-out top-1 in a reward; the gain in calibrated held-out NLL has the rest."""


class PlayedPolicySettings(RewardedSettings):
    """The mean of a learned policy, from the first epoch to the last."""

    explores = False
    moves_on = True
    name: Literal["policy"]
    policy: Annotated[Policy, Field(min_length=1)]
    """Policy that is played: a policy.safetensors file, or the name of a policy that comes with the package."""


class SampledPolicySettings(RewardedSettings):
    """What controllers read that sample from a Gaussian policy."""

    policy: Policy = ""
    """Policy that the run starts from: a policy.safetensors file, or the name of a policy that comes with the package;
    empty for a new policy."""
    min_std: float = Field(default=0.05, gt=0, le=LARGEST)
    """Least standard deviation of a sampled action."""
    max_std: float = Field(default=1.0, gt=0, le=LARGEST)
    """Largest standard deviation of a sampled action."""
    initial_std: Annotated[float, ReadIf("policy", lambda policy: not policy, "policy is empty")] = Field(
        default=0.4, gt=0, le=LARGEST, validate_default=True
    )
    """Standard deviation of a sampled action under a new policy, from min_std to max_std."""

    @field_validator("initial_std")
    @classmethod
    def _initial_std_within_bounds(cls, std: float, info: ValidationInfo) -> float:
        low, high = info.data.get("min_std", std), info.data.get("max_std", std)
        if not info.data.get("policy") and not low <= std <= high:
            raise ValueError(f"must lie within min_std = {low:g} to max_std = {high:g}")
        return std


class RandomSettings(SampledPolicySettings):
    """Samples around the mean of a policy that does not learn."""

    name: Literal["random"]


class LearnedPolicySettings(SampledPolicySettings):
    """What controllers read that learn a policy by its gradient."""

    learning_rate: float = Field(default=3e-2, gt=0, le=LARGEST)
    """Learning rate of Adam for the bias and the standard deviation of the policy; tens of decisions teach nothing at
    the usual 3e-4 or 3e-3."""
    network_learning_rate: float = Field(default=3e-3, ge=0, le=LARGEST)
    """Learning rate of Adam for the weights of the policy and value networks."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """Largest distance from 1 at which an update trusts the ratio of new to old probability of an action."""
    entropy_bonus: float = Field(default=1e-3, ge=0, le=LARGEST)
    """Weight of the entropy of the policy (nats) in the objective of an update."""
    max_gradient_norm: float = Field(default=0.5, gt=0, le=LARGEST)
    """Norm that the gradients of the policy and of the value network are clipped to."""
    epochs: int = Field(default=4, ge=1, le=1_000_000)
    """Passes over the buffer in one update of the policy."""
    group_buffer: int = Field(default=4, ge=1, le=10_000)
    """Latest decisions over several candidates that an update learns from; every such decision is followed by one."""
    single_buffer: int = Field(default=8, ge=2, le=10_000)
    """Decisions over a single candidate from one update to the next."""
    discount: float = Field(default=0.9, ge=0, lt=1)
    """Discount of future rewards while a single candidate trains."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Parameter lambda of generalized advantage estimation while a single candidate trains."""


class PPOSettings(LearnedPolicySettings):
    """A policy that learns by proximal policy optimisation."""

    name: Literal["ppo"] = "ppo"


class ReinforceSettings(LearnedPolicySettings):
    """A policy that learns by REINFORCE."""

    name: Literal["reinforce"]


class BanditSettings(RewardedSettings):
    """What bandits read, which choose among fixed actions."""

    arms: Annotated[tuple[Action, ...], AfterValidator(named_once)] = ()
    """Actions to choose among, each once; empty for the neutral action and each of its numbers moved by arm_step."""
    arm_step: Annotated[float, ReadIf("arms", lambda arms: not arms, "arms is empty")] = Field(
        default=1.5, gt=0, le=ACTION_LIMIT
    )
    """Distance by which an arm moves one number of the neutral action up or down."""
    forgetting: float = Field(default=0.97, gt=0, le=1)
    """Factor that one decision multiplies what is known of the arms with, because training is not stationary."""


class ThompsonSettings(BanditSettings):
    """A bandit that plays an arm as often as it is believed to be the best."""

    name: Literal["thompson"]


class UCBSettings(BanditSettings):
    """A bandit that plays the arm with the highest upper confidence bound."""

    name: Literal["ucb"]
    exploration: float = Field(default=0.5, ge=0, le=LARGEST)
    """Weight of the confidence radius in the score of an arm."""


class EvolutionSettings(RewardedSettings):
    """A search by the evolution strategy CMA-ES."""

    name: Literal["cma-es"]
    initial_std: float = Field(default=0.4, gt=0, le=LARGEST)
    """Standard deviation of the first population of actions."""


class HypergradientSettings(ControllerBase):
    """One action that follows the gradient of the held-out loss."""

    learns = True
    explores = False
    needs_gradient = True
    name: Literal["hypergradient"]
    hypergradient_rate: float = Field(default=0.1, gt=0, le=LARGEST)
    """Learning rate of Adam for the action, which is roughly how far one decision moves it."""


PolicySettings = PlayedPolicySettings | SampledPolicySettings
"""What plays a policy reads."""


@dataclass(frozen=True)
class ControllerEntry:
    """A controller of another distribution, which its entry point of the group `tfkd_fast.controllers` names."""

    settings: type[ControllerBase]
    """The `[controller]` table of the controller, whose key `name` is a literal: the name of the entry point."""
    build: Callable[[Any, ActionSpace, int], Controller]
    """Builds the controller from these settings, what an action steers, and a seed."""


CONTROLLERS: Registry[ControllerEntry] = Registry(
    "controller",
    "tfkd_fast.controllers",
    ControllerEntry,
    "tfkd_fast.steering.control.ControllerEntry",
    {},
)
"""The controllers of other distributions by name."""

ControllerSettings = Annotated[
    FixedSettings
    | MassScheduleSettings
    | ProgressiveSettings
    | RecordedSettings
    | PlayedPolicySettings
    | RandomSettings
    | PPOSettings
    | ReinforceSettings
    | ThompsonSettings
    | UCBSettings
    | EvolutionSettings
    | HypergradientSettings,
    Forms("name", CONTROLLERS),
]
"""The `[controller]` table."""

CONTROLLERS.reserve([form_name("name", form) for form in get_args(get_args(ControllerSettings)[0])])

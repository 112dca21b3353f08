"""The `[controller]` table of a recipe."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tfkd_fast.settings import Settings
from tfkd_fast.steering.control.controller import ACTION_LIMIT

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class RecordedAction(Settings):
    """One entry of a recording."""

    start: float = Field(ge=0, lt=1)
    """The share of the run that has passed when it begins; it lasts until the next one begins."""
    action: tuple[FiniteFloat, ...]
    learning_rate_factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """On top of the schedule."""


class ControllerSettings(Settings):
    """Which controller, when it decides, and how it learns. The values of the learning are our choice."""

    name: Literal[
        "fixed",
        "schedule",
        "progressive",
        "recorded",
        "policy",
        "random",
        "ppo",
        "reinforce",
        "thompson",
        "ucb",
        "cma-es",
        "hypergradient",
    ] = "ppo"
    warmup_epochs: int = Field(default=5, ge=0)
    """Epochs of plain cross-entropy first, for a target that needs class similarities; at most a quarter of the run."""
    interval: int = Field(default=1, ge=1)
    """Epochs that one decision lasts where a single candidate trains."""

    cooldown_epochs: int = Field(default=0, ge=0)
    """Epochs that a copy of each candidate trains on before it is judged, by the neutral target and with the learning
    rate falling to zero; 0: it is judged as it is, by averaged weights."""
    top1_share: float = Field(default=0.5, ge=0, le=1)
    """Of the gain in held-out top-1 in a reward; the gain in calibrated NLL has the rest."""

    action: tuple[FiniteFloat, ...] = ()
    """Fixed: the action for the whole run; empty for the neutral one (label smoothing 0.1)."""
    true_mass: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=(0.6, 0.999), min_length=2)
    """Schedule and progressive: true-class masses at even distances over the run, with straight lines between."""
    recorded: tuple[RecordedAction, ...] = Field(default=(), validate_default=True)
    """Recorded: the actions that are played again, by rising start."""

    policy: str = Field(default="", validate_default=True)
    """The file of a learned policy, or the name of one that comes with the package. Policy: whose mean is played, from
    the first epoch to the last. Random, ppo and reinforce: what they start from; empty for a new one."""
    min_std: float = Field(default=0.05, gt=0)
    max_std: float = Field(default=1.0, gt=0)
    initial_std: float = Field(default=0.4, gt=0, validate_default=True)
    """Random, ppo and reinforce: standard deviation of a sampled action, and the bounds that learning keeps it in.
    CMA-ES: the initial one."""

    learning_rate: float = Field(default=3e-2, gt=0)
    """Of the policy's bias and standard deviation; tens of decisions teach nothing at the usual 3e-4 or 3e-3. This and
    what follows down to `gae_lambda`: PPO and reinforce."""
    network_learning_rate: float = Field(default=3e-3, ge=0)
    """Of the weights of the policy and value networks."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far one update trusts the ratio of new to old probability, around 1."""
    entropy_bonus: float = Field(default=1e-3, ge=0)
    max_gradient_norm: float = Field(default=0.5, gt=0)
    epochs: int = Field(default=4, ge=1)
    """Passes over the buffer in one update."""
    group_buffer: int = Field(default=4, ge=1)
    """Latest decisions over several candidates that each update learns from; there is one update a decision."""
    single_buffer: int = Field(default=8, ge=2)
    """Single-candidate decisions between two updates."""
    discount: float = Field(default=0.9, ge=0, lt=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Single candidate: generalized advantage estimation."""

    arms: tuple[tuple[FiniteFloat, ...], ...] = ()
    """Thompson and ucb: the actions to choose among; empty for the neutral one and each number moved by `arm_step`."""
    arm_step: float = Field(default=1.5, gt=0, le=ACTION_LIMIT)
    forgetting: float = Field(default=0.97, gt=0, le=1)
    """Thompson and ucb: the share of what is known that one decision leaves, because training is not stationary."""
    exploration: float = Field(default=0.5, ge=0)
    """UCB: weight of the confidence radius."""

    hypergradient_rate: float = Field(default=0.1, gt=0)
    """Hypergradient: step of Adam, roughly what one decision moves the action by."""

    @field_validator("true_mass")
    @classmethod
    def _progressive_masses_rise(cls, masses: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if info.data.get("name") == "progressive" and any(before >= after for before, after in pairwise(masses)):
            raise ValueError("progressive masses must rise towards the one-hot label; name = 'schedule' takes any")
        return masses

    @field_validator("recorded")
    @classmethod
    def _recording_rises(cls, recorded: tuple[RecordedAction, ...], info: ValidationInfo) -> tuple[RecordedAction, ...]:
        if info.data.get("name") == "recorded" and not recorded:
            raise ValueError("the recorded controller needs at least one entry to play")
        if any(before.start >= after.start for before, after in pairwise(recorded)):
            raise ValueError("entries must be in order, each with a later start than the one before")
        return recorded

    @field_validator("policy")
    @classmethod
    def _something_to_play(cls, policy: str, info: ValidationInfo) -> str:
        if info.data.get("name") == "policy" and not policy:
            raise ValueError("name = 'policy' plays a learned policy: give its file, or the name of a shipped one")
        return policy

    @field_validator("arms")
    @classmethod
    def _arms_differ(cls, arms: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        if len(set(arms)) < len(arms):
            raise ValueError("each arm may be given once")
        return arms

    @field_validator("initial_std")
    @classmethod
    def _initial_std_within_bounds(cls, std: float, info: ValidationInfo) -> float:
        low, high = info.data.get("min_std", std), info.data.get("max_std", std)
        if not low <= std <= high:
            raise ValueError(f"must lie within min_std = {low:g} to max_std = {high:g}")
        return std

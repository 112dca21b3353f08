"""What a controller is, and the small records that pass between it and a training method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

ACTION_LIMIT = 4.0
"""Sampled actions are clipped to this magnitude: beyond it, sigmoid and softmax hardly move."""


@dataclass(frozen=True)
class Progress:
    """How training goes, before a decision or after it: the surviving student's numbers. Fractions lie in 0..1."""

    num_classes: int
    epoch_fraction: float
    learning_rate_ratio: float  # over the initial (or peak) one
    train_loss: float  # nats
    train_top1: float
    holdout_top1: float
    holdout_nll: float  # nats, temperature-calibrated
    delta_top1: float  # held-out, over the latest interval
    delta_nll: float
    entropy: float  # nats, mean over the training samples
    true_probability: float  # mean over the training samples
    true_mass: float  # of the target that the student was taught with last


@dataclass(frozen=True, eq=False)
class Draws:
    """What a policy needs to remember of a decision in order to learn from it."""

    observation: Tensor  # (13+A,) float32
    values: Tensor  # (P,A) float32, the actions before they were clipped
    log_probabilities: Tensor  # (P,) float32, of `values` under the policy of that moment


@dataclass(frozen=True, eq=False)
class Decision:
    """One action a candidate for the next interval."""

    actions: Tensor  # (P,A) float32
    roles: tuple[str, ...]  # P, where each action comes from
    draws: Draws | None = None  # None where there is no policy
    learning_rate_factors: tuple[float, ...] | None = None  # P, on top of the schedule; None is 1 for all

    def log_probability(self, candidate: int) -> float | None:
        """Log-density of one candidate's action under the policy, if there is one."""
        return float(self.draws.log_probabilities[candidate]) if self.draws else None

    def observation(self) -> tuple[float, ...] | None:
        """What the policy saw (13+A numbers), if there is one."""
        return tuple(self.draws.observation.tolist()) if self.draws else None

    def subset(self, candidates: Sequence[int]) -> "Decision":
        """What was decided for some of the candidates, in that order."""
        rows, factors, draws = list(candidates), self.learning_rate_factors, self.draws
        return Decision(
            self.actions[rows],
            tuple(self.roles[row] for row in rows),
            draws and Draws(draws.observation, draws.values[rows], draws.log_probabilities[rows]),
            factors and tuple(factors[row] for row in rows),
        )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Decision":
        draws, factors = state["draws"], state["learning_rate_factors"]
        return cls(state["actions"], tuple(state["roles"]), draws and Draws(**draws), factors and tuple(factors))


@dataclass(frozen=True)
class DecisionOutcome:
    """What came of a decision: P held-out scores at the interval's end, and those of the parent at its start."""

    top1: tuple[float, ...]  # fractions
    nll: tuple[float, ...]  # nats, temperature-calibrated
    parent_top1: float
    parent_nll: float
    winner: int
    """The candidate that training continues from."""
    comparable: bool = True
    """False where the learning rate dropped within the interval: the scores then jumped whatever the action was."""
    action_gradient: Tensor | None = None
    """(A,) float32 for a controller that `needs_gradient`: of the held-out loss after one training step by the winner's
    action, in that action."""


@dataclass(frozen=True)
class Feedback:
    """What a controller made of an outcome."""

    rewards: tuple[float, ...]  # P; NaN where nothing can be said
    advantages: tuple[float, ...] | None  # P, where this decision entered an update at once
    update: dict[str, float] | None  # figures of the update of what was learned, where there was one
    buffer_advantages: tuple[float, ...] | None = None
    """Of the latest decisions over a single candidate that had a reward, oldest first and this one last, where this one
    filled the buffer and they entered an update together."""


class Controller(ABC):
    """Chooses an action for each candidate before an interval and may learn from what came of it."""

    learns: bool
    """Whether it has a use for outcomes: `learn` then wants to be called after every decision."""
    explores: bool = True
    """Whether the candidates of one decision get different actions."""
    needs_gradient: bool = False
    """Whether it reads `DecisionOutcome.action_gradient`."""

    @abstractmethod
    def decide(self, progress: Progress, candidates: int) -> Decision:
        """The actions of the interval that starts at `progress`."""

    @abstractmethod
    def learn(self, decision: Decision, outcome: DecisionOutcome, progress_after: Progress) -> Feedback:
        """Take in the outcome of the latest decision; `progress_after` is what the next one will start at."""

    def policy_bytes(self) -> bytes | None:
        """The content of a policy file, for `controller.policy` of a later run; None where no policy was learned."""
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors, numbers and containers of them."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

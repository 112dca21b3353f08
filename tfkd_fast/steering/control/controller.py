"""The controller interface, and the records that pass between a controller and a training method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

ACTION_LIMIT = 4.0
"""Sampled actions are clipped to this magnitude: beyond it, sigmoid and softmax hardly move."""


@dataclass(frozen=True)
class Progress:
    """The state of training at a decision: the figures of the student that training continues from.

    Accuracies, probabilities and masses are fractions in 0..1; losses and entropies are in nats.
    """

    num_classes: int
    """Number of classes C."""
    epoch_fraction: float
    """Share of the run's epochs that have passed, 0..1."""
    learning_rate_ratio: float
    """Scheduled learning rate of the next epoch over the initial (or peak) one."""
    train_loss: float
    """Mean training loss of the latest epoch, nats."""
    train_top1: float
    """Training accuracy of the latest epoch."""
    holdout_top1: float
    """Held-out accuracy at the end of the latest interval."""
    holdout_nll: float
    """Held-out negative log-likelihood after temperature calibration, nats."""
    delta_top1: float
    """Change of `holdout_top1` over the latest interval."""
    delta_nll: float
    """Change of `holdout_nll` over the latest interval, nats."""
    entropy: float
    """Mean entropy of the predictions for the training samples, nats."""
    true_probability: float
    """Mean predicted probability of the label of a training sample."""
    true_mass: float
    """True-class mass of the latest target that the student was trained with."""
    least_true_mass: float = 1.0
    """Least true-class mass of the targets that the student was trained with so far."""
    phase: float = 0.0
    """How far the run is by its learning rates, 0..1: the moment of a one-cycle run, as a share of it, by which as
    great a share of its learning rates has passed; 0 where they are not known."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Samples of a policy at one decision, as its later update needs them."""

    observation: Tensor
    """(14+A,) float32: the state that the policy observed."""
    values: Tensor
    """(P,A) float32: the actions before they were clipped."""
    log_probabilities: Tensor
    """(P,) float32: log-densities of `values` under the policy at the time of the decision."""


@dataclass(frozen=True, eq=False)
class Decision:
    """The actions of P candidates for the next interval."""

    actions: Tensor
    """(P,A) float32: one action for each candidate."""
    roles: tuple[str, ...]
    """P words for the origin of each action, such as "mean", "sample" or "arm 3"."""
    draws: Draws | None = None
    """The samples behind the actions; None for a controller without a policy."""
    learning_rate_factors: tuple[float, ...] | None = None
    """P factors that multiply the scheduled learning rate; None for 1 each."""

    def log_probability(self, candidate: int) -> float | None:
        """Return the log-density of one candidate's action under the policy, or None without a policy."""
        return float(self.draws.log_probabilities[candidate]) if self.draws else None

    def learning_rate_factor(self, candidate: int) -> float:
        """Return the factor on the scheduled learning rate of one candidate."""
        return self.learning_rate_factors[candidate] if self.learning_rate_factors else 1.0

    def observation(self) -> tuple[float, ...] | None:
        """Return the 14+A numbers that the policy observed, or None without a policy."""
        return tuple(self.draws.observation.tolist()) if self.draws else None

    def subset(self, candidates: Sequence[int]) -> "Decision":
        """Return the decision for some of the candidates only, in the given order."""
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
        """Build the decision that `state_dict` described."""
        draws, factors = state["draws"], state["learning_rate_factors"]
        return cls(state["actions"], tuple(state["roles"]), draws and Draws(**draws), factors and tuple(factors))


@dataclass(frozen=True)
class DecisionOutcome:
    """The outcome of a decision: held-out scores of P candidates after the interval, and of their parent before it."""

    top1: tuple[float, ...]
    """P held-out accuracies, fractions."""
    nll: tuple[float, ...]
    """P held-out negative log-likelihoods after temperature calibration, nats."""
    parent_top1: float
    """Held-out accuracy of the parent, a fraction."""
    parent_nll: float
    """Held-out negative log-likelihood of the parent after temperature calibration, nats."""
    winner: int
    """Index of the candidate that training continues from."""
    comparable: bool = True
    """False where the learning rate dropped within the interval: the scores then jumped whatever the action was."""
    action_gradient: Tensor | None = None
    """Gradient (A,) float32 of the held-out loss after one training step under the winner's action, with respect to
    that action; None unless its settings have `needs_gradient`."""


@dataclass(frozen=True)
class Feedback:
    """The result of `Controller.learn`, for the log of a run."""

    rewards: tuple[float, ...]
    """P rewards; NaN where the outcome cannot be rewarded."""
    advantages: tuple[float, ...] | None
    """P advantages of the candidates, if this decision entered an update at once."""
    update: dict[str, float] | None
    """Figures of the update by name, such as "std" or "gradient_norm"; None if nothing was updated."""
    buffer_advantages: tuple[float, ...] | None = None
    """Advantages of the buffered single-candidate decisions, oldest first and this one last, if this decision filled
    the buffer and all of them entered one update."""


class Controller(ABC):
    """A controller chooses an action for each candidate before an interval, and may learn from its outcome after it."""

    @abstractmethod
    def decide(self, progress: Progress, candidates: int) -> Decision:
        """Choose the actions of `candidates` students for the interval that starts at `progress`."""

    @abstractmethod
    def learn(self, decision: Decision, outcome: DecisionOutcome, progress_after: Progress) -> Feedback:
        """Learn from the outcome of the latest decision.

        Args:
            decision: the latest decision, or the part of it that was judged.
            outcome: held-out scores of the candidates of `decision`.
            progress_after: the state of training after the interval, at which the next decision will be taken.
        """

    def policy_bytes(self) -> bytes | None:
        """Return a policy file, for `controller.policy` of a later run; None if no policy was learned."""
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as tensors, numbers and containers of them."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""

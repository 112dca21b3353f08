"""Policy gradients: PPO and REINFORCE for very few decisions."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tfkd_fast.steering.control.policy import MLP, GaussianPolicy
from tfkd_fast.steering.control.rewards import generalized_advantages, standardize
from tfkd_fast.steering.control.settings import LearnedPolicySettings, PPOSettings


@dataclass(frozen=True, eq=False)
class Rollout:
    """A rollout of n samples of a policy with their advantages, all float32."""

    observations: Tensor
    """(n,O): the states in which the actions were sampled."""
    draws: Tensor
    """(n,A): the sampled actions before clipping."""
    log_probabilities: Tensor
    """(n,): log-densities of the samples when they were drawn."""
    advantages: Tensor
    """(n,): the advantage of each sample."""


@dataclass(frozen=True, eq=False)
class Transition:
    """One decision of a single trajectory."""

    observation: Tensor
    """(O,) float32: the state in which the action was sampled."""
    draw: Tensor
    """(A,) float32: the sampled action before clipping."""
    log_probability: Tensor
    """() float32: log-density of the sample when it was drawn."""
    reward: float
    """Reward of the interval."""
    next_observation: Tensor
    """(O,) float32: the state after the interval."""
    continues: bool = True
    """Whether the next transition in the buffer starts where this one ended."""


class PolicyGradient:
    """Optimiser of a policy, with its value network and its buffers of samples.

    PPO maximises the clipped surrogate of Schulman et al. (2017, eq. 7). REINFORCE follows A * grad log pi (Williams,
    1992), weighted with the ratio of new to old probability, truncated above at 1 + clip (Ionides, 2008), because its
    buffer holds samples of slightly older policies.

    Decisions over several candidates of one parent are one-step problems: the reward, already centred in its group, is
    the advantage, and each decision is followed by an update from the latest `group_buffer` of them. Decisions of a
    single trajectory use generalized advantages, standardised over the buffer, with one update every `single_buffer`
    decisions.
    """

    def __init__(
        self, settings: LearnedPolicySettings, policy: GaussianPolicy, observation_size: int, generator: torch.Generator
    ) -> None:
        self._settings, self._policy = settings, policy
        self.value = MLP(observation_size, 1, generator)
        self._optimizer = torch.optim.Adam(
            [
                {"params": policy.fast_parameters(), "lr": settings.learning_rate},
                {
                    "params": [*policy.network_parameters(), *self.value.parameters()],
                    "lr": settings.network_learning_rate,
                },
            ]
        )
        self._groups: list[Rollout] = []
        self._transitions: list[Transition] = []

    def learn_group(self, rollout: Rollout) -> dict[str, float]:
        """Add the samples of one decision to the buffer and update the policy; return the figures of the update."""
        self._groups = [*self._groups, rollout][-self._settings.group_buffer :]
        return self._update(_join(self._groups), returns=None)

    def learn_single(self, transition: Transition) -> tuple[dict[str, float], Tensor] | None:
        """Add one transition of the single trajectory to the buffer, and update the policy once the buffer is full.

        It continues the one before only where it starts in the state in which that one ended: of several intervals
        under one decision, all start in the state of that decision.

        Returns:
            The figures of the update and the advantages (n,) of the buffer; None if there was no update.
        """
        if self._transitions and not self._transitions[-1].next_observation.equal(transition.observation):
            self.end_segment()
        self._transitions.append(transition)
        if len(self._transitions) < self._settings.single_buffer:
            return None
        observations = torch.stack([step.observation for step in self._transitions])
        with torch.no_grad():
            values = self.value(observations).squeeze(-1)
            next_values = self.value(torch.stack([step.next_observation for step in self._transitions])).squeeze(-1)
        advantages = generalized_advantages(
            torch.tensor([step.reward for step in self._transitions]),
            values,
            next_values,
            torch.tensor([step.continues for step in self._transitions]),
            self._settings.discount,
            self._settings.gae_lambda,
        )
        rollout = Rollout(
            observations,
            torch.stack([step.draw for step in self._transitions]),
            torch.stack([step.log_probability for step in self._transitions]),
            standardize(advantages),
        )
        self._transitions = []
        return self._update(rollout, returns=advantages + values), rollout.advantages

    def end_segment(self) -> None:
        """Mark the latest transition as the last of its segment: the next one starts somewhere else."""
        if self._transitions:
            self._transitions[-1] = replace(self._transitions[-1], continues=False)

    def _update(self, rollout: Rollout, returns: Tensor | None) -> dict[str, float]:
        settings, policy = self._settings, self._policy
        bounds = math.log(settings.min_std), math.log(settings.max_std)
        figures = {"draws": float(len(rollout.draws))}
        for _ in range(settings.epochs):
            log_probabilities = policy.log_probability(rollout.observations, rollout.draws)
            objective = self._objective(log_probabilities, rollout)
            loss = -objective - settings.entropy_bonus * policy.entropy()
            if returns is not None:
                value_loss = (self.value(rollout.observations).squeeze(-1) - returns).square().mean()
                loss = loss + value_loss
                figures["value_loss"] = value_loss.item()
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), settings.max_gradient_norm)
            nn.utils.clip_grad_norm_(self.value.parameters(), settings.max_gradient_norm)
            self._optimizer.step()
            with torch.no_grad():
                policy.log_std.clamp_(*bounds)
        with torch.no_grad():
            log_ratio = policy.log_probability(rollout.observations, rollout.draws) - rollout.log_probabilities
            return figures | {
                "objective": objective.item(),
                "log_ratio": log_ratio.abs().mean().item(),
                "std": policy.log_std.exp().mean().item(),
                "entropy": policy.entropy().item(),
            }

    def _objective(self, log_probabilities: Tensor, rollout: Rollout) -> Tensor:
        ratio = (log_probabilities - rollout.log_probabilities).exp()
        clip = self._settings.clip
        if isinstance(self._settings, PPOSettings):
            clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
            return torch.minimum(ratio * rollout.advantages, clipped * rollout.advantages).mean()
        weight = ratio.detach().clamp(max=1.0 + clip)
        return (weight * rollout.advantages * log_probabilities).mean()

    def state_dict(self) -> dict[str, Any]:
        state = {
            "value": self.value.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "groups": [vars(rollout) for rollout in self._groups],
            "transitions": [vars(step) for step in self._transitions],
        }
        return copy.deepcopy(state)  # torch returns the tensors that training goes on changing

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value.load_state_dict(state["value"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._groups = [Rollout(**rollout) for rollout in state["groups"]]
        self._transitions = [Transition(**step) for step in state["transitions"]]


def _join(rollouts: Sequence[Rollout]) -> Rollout:
    names = ("observations", "draws", "log_probabilities", "advantages")
    return Rollout(*(torch.cat([getattr(rollout, name) for rollout in rollouts]) for name in names))

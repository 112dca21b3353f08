"""Evolution: a controller that searches for the best action by CMA-ES."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tfkd_fast.steering.control.controller import (
    ACTION_LIMIT,
    Controller,
    Decision,
    DecisionOutcome,
    Feedback,
    Progress,
)
from tfkd_fast.steering.control.rewards import Rewards
from tfkd_fast.steering.control.settings import EvolutionSettings
from tfkd_fast.steering.targets import ActionSpace

if TYPE_CHECKING:
    from cmaes import CMA

SMALLEST_POPULATION = 4
"""Smallest population of CMA-ES: below it, a weight of the covariance update is zero, and the formulas divide by it."""


@dataclass(frozen=True, eq=False)
class EvaluatedPopulation:
    """A population of n actions with their losses, which the optimiser learned from."""

    asked: int
    """Number of draws since the population before, including those that never got a loss."""
    actions: Tensor
    """(n,A) float32: the actions of the population."""
    losses: Tensor
    """(n,) float64: the negated rewards of the actions."""


class EvolutionController(Controller):
    """CMA-ES (Hansen, The CMA evolution strategy: a tutorial, 2016) over actions, started at the neutral one.

    The population has as many members as the first decision has candidates if these are at least four; otherwise, as in
    a single trajectory, it has the usual size 4 + 3 ln A. Draws are collected over decisions until they fill a
    population: rewards of different decisions can be compared because they are standardised (`Rewards`). A draw
    without a reward is left out.

    `cmaes` offers its state as a pickle only, and without its random numbers. The state here is the history: on
    loading, all draws are made again and the optimiser learns from the same losses.
    """

    def __init__(self, settings: EvolutionSettings, space: ActionSpace, seed: int) -> None:
        self._std, self._action_size = settings.initial_std, space.action_size
        self._seed = seed % 2**32  # the range of numpy's generator
        self._rewards = Rewards(settings.top1_share)
        self._optimizer: CMA | None = None  # until the first decision says how many candidates there are
        self._generations: list[EvaluatedPopulation] = []
        self._asked = 0  # since the latest generation
        self._actions = torch.zeros(0, space.action_size)  # of the population that is being collected
        self._losses = torch.zeros(0, dtype=torch.float64)

    def decide(self, progress: Progress, candidates: int) -> Decision:
        if self._optimizer is None:
            usual = 4 + math.floor(3 * math.log(self._action_size))
            self._optimizer = self._new(candidates if candidates >= SMALLEST_POPULATION else usual)
        self._asked += candidates
        return Decision(_ask(self._optimizer, candidates), ("sample",) * candidates)

    def learn(self, decision: Decision, outcome: DecisionOutcome, progress_after: Progress) -> Feedback:
        rewards = self._rewards.compute(outcome)
        if rewards is None:
            return Feedback((math.nan,), None, None)
        if self._optimizer is None:
            raise ValueError("nothing was decided yet that could have an outcome")
        self._actions = torch.cat([self._actions, decision.actions])
        self._losses = torch.cat([self._losses, -rewards])
        figures = None
        size = self._optimizer.population_size
        while len(self._losses) >= size:
            generation = EvaluatedPopulation(self._asked, self._actions[:size], self._losses[:size])
            self._actions, self._losses, self._asked = self._actions[size:], self._losses[size:], 0
            self._generations.append(generation)
            _tell(self._optimizer, generation)
            figures = {
                "generation": float(self._optimizer.generation),
                "std": generation.actions.std(dim=0).mean().item(),
                "mean_norm": float(np.linalg.norm(self._optimizer.mean)),
            }
        return Feedback(tuple(rewards.tolist()), None, figures)

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "population": self._optimizer and self._optimizer.population_size,
            "generations": [vars(generation) for generation in self._generations],
            "asked": self._asked,
            "actions": self._actions,
            "losses": self._losses,
            "rewards": self._rewards.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seed, self._asked = state["seed"], state["asked"]
        self._actions, self._losses = state["actions"], state["losses"]
        self._rewards.load_state_dict(state["rewards"])
        self._generations = [EvaluatedPopulation(**generation) for generation in state["generations"]]
        self._optimizer = None
        if state["population"] is not None:
            self._optimizer = self._new(state["population"])
            for generation in self._generations:
                _ask(self._optimizer, generation.asked)
                _tell(self._optimizer, generation)
            _ask(self._optimizer, self._asked)

    def _new(self, population: int) -> "CMA":
        from cmaes import CMA  # imports scipy.stats, which takes a second, and no other controller needs it

        bounds = np.full((self._action_size, 2), (-ACTION_LIMIT, ACTION_LIMIT))
        mean = np.zeros(self._action_size)
        return CMA(mean, self._std, bounds=bounds, seed=self._seed, population_size=population)


def _ask(optimizer: "CMA", count: int) -> Tensor:
    """Draw actions (count,A) float32."""
    asked = [optimizer.ask() for _ in range(count)]
    return torch.tensor(np.reshape(asked, (count, optimizer.dim)), dtype=torch.float32)


def _tell(optimizer: "CMA", generation: EvaluatedPopulation) -> None:
    actions, losses = generation.actions.double().numpy(), generation.losses.tolist()
    optimizer.tell(list(zip(actions, losses, strict=True)))

"""A policy learned from whole runs: what counts is how good a student is at the end, not after the next decision.

The gain of one decision says little of what it is worth: a soft target may slow a student down while the learning rate
is high and serve it once the rate falls. A search that sees final students alone has no such horizon (our choice).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from cmaes import CMA
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.steering.control.controller import ACTION_LIMIT
from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES, observation
from tfkd_fast.steering.control.policy import MLP, GaussianPolicy
from tfkd_fast.steering.control.policy_file import policy_bytes
from tfkd_fast.steering.control.settings import ControllerSettings
from tfkd_fast.steering.control.students import DIVERGENCE_PENALTY, Snapshot, StudentFleet, quality
from tfkd_fast.steering.targets import ActionSpace

FEATURES = (0, 1)
"""Entries of the observation that the policy is a linear function of: how far the run is, and the learning rate."""

INITIAL_STD = 2.0
"""Of the parameters: half of what an action is limited to, so that a few generations see all of the range."""

SMALLEST_POPULATION = 4
"""As of the controller `cma-es`."""


@dataclass(frozen=True)
class Generation:
    """One run of P students that differ in their policies alone."""

    seed: int
    """Of all students: what they differ in at the end is what their policies differ in, and the rest of chance."""
    parameters: list[list[float]]
    """(P,3A) bias, weight of the time and weight of the learning rate, for each number of the action."""
    qualities: list[float]
    """P, of the final students."""


class PolicySearch:
    """CMA-ES (Hansen, The CMA evolution strategy: a tutorial, 2016) over the parameters of a policy.

    A generation is one run of as many students as the population has.

    The mean action is b + w_1 s_1 + w_2 s_2 of the observed time and learning rate, so that a target may be soft while
    the rate is high and hard at the end, or the other way round: 3 parameters for each number of an action.
    """

    def __init__(self, space: ActionSpace, settings: ControllerSettings, population: int, seed: int) -> None:
        """
        Raises:
            UserError: for a population that is too small.
        """
        if population < SMALLEST_POPULATION:
            raise UserError(f"an evolution needs {SMALLEST_POPULATION} students or more at a time, got {population}")
        self._space, self._settings, self._seed = space, settings, seed
        size = (1 + len(FEATURES)) * space.action_size
        bounds = np.full((size, 2), (-ACTION_LIMIT, ACTION_LIMIT))
        self._optimizer = CMA(np.zeros(size), INITIAL_STD, bounds=bounds, seed=seed % 2**32, population_size=population)
        self.generations: list[Generation] = []

    def run_generation(self, students: StudentFleet) -> Generation:
        """Train the students to the end, and learn from what became of them."""
        parameters = self._ask()
        seed = self._seed + len(self.generations)
        qualities = _final_qualities(students, torch.tensor(parameters, dtype=torch.float32), seed)
        generation = Generation(seed, parameters.tolist(), qualities)
        self._tell(generation)
        return generation

    def restore(self, generations: list[Generation]) -> None:
        """Go on after generations of an earlier search under the same settings: they are asked and told again."""
        for generation in generations:
            self._ask()
            self._tell(generation)

    def policy_bytes(self) -> bytes:
        """A policy file whose mean is that of the search, and whose deviation is that of the latest biases."""
        size, generator = self._space.action_size, torch.Generator().manual_seed(self._seed)
        settings = self._settings
        policy = GaussianPolicy(PROGRESS_ENTRIES + size, size, settings.initial_std, generator)
        value = MLP(PROGRESS_ENTRIES + size, 1, generator)
        bias, *weights = torch.tensor(self._optimizer.mean, dtype=torch.float32).view(1 + len(FEATURES), size)
        with torch.no_grad():
            policy.mean.output.bias.copy_(bias)
            for entry, weight in zip(FEATURES, weights, strict=True):
                policy.mean.trend.weight[:, entry] = weight
            if self.generations:
                biases = torch.tensor(self.generations[-1].parameters)[:, :size]
                policy.log_std.copy_(biases.std(dim=0).clamp(settings.min_std, settings.max_std).log())
        return policy_bytes("policy-search", policy, value, self._space)

    def _ask(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([self._optimizer.ask() for _ in range(self._optimizer.population_size)])

    def _tell(self, generation: Generation) -> None:
        losses = [-value for value in generation.qualities]
        self._optimizer.tell(list(zip(np.array(generation.parameters), losses, strict=True)))
        self.generations.append(generation)


def _final_qualities(students: StudentFleet, parameters: Tensor, seed: int) -> list[float]:
    """Of P students, taught by the policies (P,3A) from the same start; a divergence ends the run for all."""
    count, size = len(parameters), len(students.action_names)
    bias, *weights = parameters.view(count, 1 + len(FEATURES), size).unbind(1)
    snapshots: list[Snapshot | None] = [*students.start([seed] * count)]
    last = [snapshot for snapshot in snapshots if snapshot]
    actions = torch.zeros(count, size)
    while all(snapshots) and last[0].epoch < students.epochs:
        seen = torch.stack([observation(now.progress, action) for now, action in zip(last, actions, strict=True)])
        actions = bias + sum(seen[:, entry, None] * weight for entry, weight in zip(FEATURES, weights, strict=True))
        actions = actions.clamp(-ACTION_LIMIT, ACTION_LIMIT)
        snapshots = [*students.train(actions)]
        last = [new or old for new, old in zip(snapshots, last, strict=True)]
    reached = zip(snapshots, last, strict=True)
    return [quality(old.progress) if new else DIVERGENCE_PENALTY for new, old in reached]


def as_record(generation: Generation) -> dict[str, Any]:
    """A generation as plain values, with the best and the mean quality in front."""
    qualities = generation.qualities
    return {"best": max(qualities), "mean": sum(qualities) / len(qualities)} | asdict(generation)

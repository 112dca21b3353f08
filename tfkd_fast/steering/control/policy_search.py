"""Policy search: a policy is learned from whole runs by the quality of the final students.

The gain of one decision says little about its value: a soft target may slow a student down while the learning rate is
high, and help it once the rate falls. A search that compares final students has no such horizon (our choice).
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.steering.control.controller import ACTION_LIMIT
from tfkd_fast.steering.control.evolution import SMALLEST_POPULATION
from tfkd_fast.steering.control.gated_policy import GatedPolicy, observed_policy
from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES, observation
from tfkd_fast.steering.control.policy import MLP
from tfkd_fast.steering.control.policy_file import policy_bytes
from tfkd_fast.steering.control.settings import SampledPolicySettings
from tfkd_fast.steering.control.students import DIVERGENCE_PENALTY, Snapshot, StudentFleet, quality
from tfkd_fast.steering.targets import ActionSpace

SWITCH, SWITCH_UNIT = 0.7, 0.075
"""Where the search begins for the switch, a share of the run, and what one unit of its parameter moves it: within 0.4
to 1 (our choice)."""

THRESHOLD, THRESHOLD_UNIT = 0.12, 0.04
"""The same for the threshold of the gap: within -0.04, which is no threshold, to 0.28 (our choice)."""

INITIAL_STD = 2.0
"""Initial standard deviation of the parameters: half of `ACTION_LIMIT`, so that a few generations cover the range."""


@dataclass(frozen=True)
class Generation:
    """One run of P students that differ only in their policies."""

    seed: int
    """Seed of all students, so that differences at the end come from their policies and not from initial weights."""
    parameters: list[list[float]]
    """Parameters (P,3A+2) of the policies: A of the start, middle and end action each, switch and threshold in units of
    the search."""
    qualities: list[float]
    """P values of `quality` of the final students."""


class PolicySearch:
    """CMA-ES (Hansen, The CMA evolution strategy: a tutorial, 2016) over the parameters of a policy.

    A generation is one run of as many students as the population has members.

    The policies are gated, see `gated_policy`: three parameters for each number of an action, and two for the whole.
    """

    def __init__(self, space: ActionSpace, settings: SampledPolicySettings, population: int, seed: int) -> None:
        """Start a search at the neutral action.

        Args:
            space: what an action steers.
            settings: settings of a policy that is sampled from, for the bounds of the standard deviation.
            population: number of students of a generation, at least 4.
            seed: seed of the search; generation g trains students of seed + g.

        Raises:
            UserError: the population is too small.
        """
        if population < SMALLEST_POPULATION:
            raise UserError(f"an evolution needs {SMALLEST_POPULATION} students or more at a time, got {population}")
        from cmaes import CMA  # imports scipy.stats, which takes a second

        self._space, self._settings, self._seed = space, settings, seed
        size = 3 * space.action_size + 2
        bounds = np.full((size, 2), (-ACTION_LIMIT, ACTION_LIMIT))
        self._optimizer = CMA(np.zeros(size), INITIAL_STD, bounds=bounds, seed=seed % 2**32, population_size=population)
        self.generations: list[Generation] = []
        """All generations so far, oldest first."""

    def run_generation(self, students: StudentFleet) -> Generation:
        """Train a population of students to the end of their run and update the search by their qualities."""
        parameters = self._ask()
        seed = self._seed + len(self.generations)
        qualities = _final_qualities(students, torch.tensor(parameters, dtype=torch.float32), seed)
        generation = Generation(seed, parameters.tolist(), qualities)
        self._tell(generation)
        return generation

    def restore(self, generations: list[Generation]) -> None:
        """Continue an earlier search under the same settings by repeating its generations, without training."""
        for generation in generations:
            self._ask()
            self._tell(generation)

    def policy_bytes(self) -> bytes:
        """Return a policy file: the mean is that of the search, the standard deviation that of the latest middle
        actions."""
        size, generator = self._space.action_size, torch.Generator().manual_seed(self._seed)
        policy = observed_policy(size, generator)
        value = MLP(PROGRESS_ENTRIES + size, 1, generator)
        policy_of(torch.tensor(self._optimizer.mean, dtype=torch.float32)).write_into(policy)
        std = torch.full((size,), self._settings.initial_std)
        if self.generations:
            middle = torch.tensor(self.generations[-1].parameters)[:, size : 2 * size]
            std = middle.std(dim=0).clamp(self._settings.min_std, self._settings.max_std)
        with torch.no_grad():
            policy.log_std.copy_(std.log())
        return policy_bytes("policy-search", policy, value, self._space)

    def _ask(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([self._optimizer.ask() for _ in range(self._optimizer.population_size)])

    def _tell(self, generation: Generation) -> None:
        losses = [-value for value in generation.qualities]
        self._optimizer.tell(list(zip(np.array(generation.parameters), losses, strict=True)))
        self.generations.append(generation)


def policy_of(parameters: Tensor) -> GatedPolicy:
    """Return the policy of parameters (3A+2,) float32 of a search."""
    start, middle, end = parameters[:-2].chunk(3)
    switch, threshold = parameters[-2:].tolist()
    return GatedPolicy(
        start,
        middle,
        end,
        SWITCH + SWITCH_UNIT * switch,
        THRESHOLD + THRESHOLD_UNIT * threshold,
    )


def _final_qualities(students: StudentFleet, parameters: Tensor, seed: int) -> list[float]:
    """Return the final qualities of P students under policies (P,3A+2); a divergence ends the run for all."""
    count, size = len(parameters), len(students.action_names)
    policies = [observed_policy(size, torch.Generator()) for _ in range(count)]
    for policy, row in zip(policies, parameters, strict=True):
        policy_of(row).write_into(policy)
    snapshots: list[Snapshot | None] = [*students.start([seed] * count)]
    last = [snapshot for snapshot in snapshots if snapshot]
    actions = torch.zeros(count, size)
    while all(snapshots) and last[0].epoch < students.epochs:
        with torch.no_grad():
            actions = torch.stack(
                [
                    policy.mean(observation(now.progress, action))
                    for policy, now, action in zip(policies, last, actions, strict=True)
                ]
            ).clamp(-ACTION_LIMIT, ACTION_LIMIT)
        snapshots = [*students.train(actions)]
        last = [new or old for new, old in zip(snapshots, last, strict=True)]
    reached = zip(snapshots, last, strict=True)
    return [quality(old.progress) if new else DIVERGENCE_PENALTY for new, old in reached]


def as_record(generation: Generation) -> dict[str, Any]:
    """Return a generation as plain values for a log, with the best and the mean quality in front."""
    qualities = generation.qualities
    return {"best": max(qualities), "mean": sum(qualities) / len(qualities)} | asdict(generation)

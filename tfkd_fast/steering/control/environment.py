"""Gymnasium environments in which an agent sets the targets that students are trained with; see docs/environment.md.

One step is one decision interval. An action lies in -1..1; multiplied by `ACTION_LIMIT` it is the action of the target,
and zero is the neutral one. Observations are those of our own policies, see `control.observation`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from tfkd_fast.steering.control.controller import ACTION_LIMIT
from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES, observation
from tfkd_fast.steering.control.students import DIVERGENCE_PENALTY, Snapshot, StudentFleet, quality

Floats = NDArray[Any]
"""An array of float32, the type of observations and actions."""


class Step(NamedTuple):
    """The result of one decision interval for P students."""

    observations: Floats
    """(P,14+A) float32: the state of each student after the interval."""
    rewards: NDArray[np.float64]
    """(P,): the gain in `quality` over the interval, or `DIVERGENCE_PENALTY`."""
    terminated: NDArray[np.bool_]
    """(P,): whether the student is at the end of its run, or diverged."""
    truncated: NDArray[np.bool_]
    """(P,): whether the episode ends because another student diverged."""
    infos: list[dict[str, Any]]
    """P dictionaries of figures for people and logs."""


class Episode:
    """One run of P students as a sequence of actions and rewards."""

    def __init__(self, students: StudentFleet) -> None:
        self._students = students
        self.size = len(students.action_names)
        self.over = True
        self._snapshots: Sequence[Snapshot] = ()
        self._diverged = [False] * students.count
        self._actions = torch.zeros(students.count, self.size)

    def start(self, seeds: Sequence[int]) -> tuple[Floats, list[dict[str, Any]]]:
        """Start new students of P seeds; return their observations (P,14+A) float32 and infos."""
        self._snapshots = self._students.start(seeds)
        self._actions = torch.zeros_like(self._actions)
        self._diverged = [False] * len(seeds)
        self.over = False
        return self._observations(), self._infos()

    def step(self, actions: Floats) -> Step:
        """Train for one decision interval under actions (P,A), which are clipped to -1..1.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over.
            ValueError: an action is not finite.
        """
        if self.over:
            raise ResetNeeded("the episode is over: call reset")
        if not np.isfinite(actions).all():
            raise ValueError(f"actions must be finite, got {actions}")
        self._actions = ACTION_LIMIT * torch.as_tensor(actions, dtype=torch.float32).clamp(-1.0, 1.0)
        before, after = self._snapshots, self._students.train(self._actions)
        self._diverged = [snapshot is None for snapshot in after]
        self._snapshots = [new or old for new, old in zip(after, before, strict=True)]
        rewards = [
            DIVERGENCE_PENALTY if diverged else quality(new.progress) - quality(old.progress)
            for diverged, new, old in zip(self._diverged, self._snapshots, before, strict=True)
        ]
        diverged = np.array(self._diverged)
        ended = np.array([snapshot.epoch == self._students.epochs for snapshot in self._snapshots])
        self.over = bool(diverged.any() or ended.all())
        truncated = ~diverged if diverged.any() else np.zeros_like(diverged)  # nobody trains on without the others
        return Step(self._observations(), np.array(rewards), diverged | ended, truncated, self._infos())

    def lines(self) -> tuple[str, ...]:
        """Return one line of text about each student."""
        return tuple(
            f"epoch {snapshot.epoch}/{self._students.epochs}  held-out top-1 {snapshot.progress.holdout_top1:.1%}  "
            f"true mass {snapshot.progress.true_mass:.3f}" + ("  diverged" if diverged else "")
            for snapshot, diverged in zip(self._snapshots, self._diverged, strict=True)
        )

    def _observations(self) -> Floats:
        pairs = zip(self._snapshots, self._actions, strict=True)
        return np.stack([observation(snapshot.progress, action).numpy() for snapshot, action in pairs])

    def _infos(self) -> list[dict[str, Any]]:
        return [
            {
                "epoch": snapshot.epoch,
                "progress": asdict(snapshot.progress),
                "true_mass": snapshot.progress.true_mass,
                "divergence": snapshot.divergence,
                "diverged": diverged,
            }
            for snapshot, diverged in zip(self._snapshots, self._diverged, strict=True)
        ]


def _box(size: int) -> Box:
    return Box(-1.0, 1.0, (size,), np.float32)


class TargetControlEnv(gymnasium.Env[Floats, Floats]):
    """Environment of one student.

    The undiscounted return of an episode is the `quality` of the final student less its quality at the reset.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012  # as gymnasium has it

    def __init__(self, students: StudentFleet, render_mode: str | None = None) -> None:
        if students.count != 1:
            raise ValueError(f"students must be one, got {students.count}: TargetControlVectorEnv takes several")
        _check_render_mode(render_mode, self.metadata)
        self.render_mode = render_mode
        self._episode = Episode(students)
        self.action_space = _box(self._episode.size)
        self.observation_space = _box(PROGRESS_ENTRIES + self._episode.size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start a new student with the weights and data order of `seed`, 0 .. 2**32 - 1; None draws a seed."""
        super().reset(seed=seed)
        observations, infos = self._episode.start([_draw(self.np_random) if seed is None else seed])
        return observations[0], infos[0]

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Train for one decision interval under an action (A,); see `gymnasium.Env.step` for the result."""
        step = self._episode.step(np.asarray(action)[np.newaxis])
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        return step.observations[0], float(step.rewards[0]), terminated, truncated, step.infos[0]

    def render(self) -> str | None:
        """Return a line of text about the student in render mode "ansi", else None."""
        return self._episode.lines()[0] if self.render_mode == "ansi" else None


class TargetControlVectorEnv(VectorEnv[Floats, Floats, NDArray[Any]]):
    """Vector environment of P students that train side by side.

    All episodes end together: if one student diverges, the others are truncated with reward 0.
    """

    metadata = {**TargetControlEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, students: StudentFleet, render_mode: str | None = None) -> None:
        _check_render_mode(render_mode, self.metadata)
        self.render_mode = render_mode
        self.num_envs = students.count
        self._episode = Episode(students)
        self.single_action_space = _box(self._episode.size)
        self.single_observation_space = _box(PROGRESS_ENTRIES + self._episode.size)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start new students with the seeds `seed`, `seed` + 1, ...; None draws all seeds."""
        super().reset(seed=seed)
        students = range(self.num_envs)
        seeds = [_draw(self.np_random) if seed is None else seed + student for student in students]
        observations, infos = self._episode.start(seeds)
        return observations, self._batch(infos)

    def step(self, actions: Floats) -> tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Train for one decision interval under actions (P,A), or reset if the step before ended the episode."""
        if self._episode.over:
            observations, batched = self.reset()
            nobody = np.zeros(self.num_envs, dtype=np.bool_)
            return observations, np.zeros(self.num_envs), nobody, nobody.copy(), batched
        step = self._episode.step(np.asarray(actions))
        return step.observations, step.rewards, step.terminated, step.truncated, self._batch(step.infos)

    def render(self) -> tuple[str, ...] | None:
        """Return a line of text about each student in render mode "ansi", else None."""
        return self._episode.lines() if self.render_mode == "ansi" else None

    def _batch(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        batched: dict[str, Any] = {}
        for student, info in enumerate(infos):
            batched = self._add_info(batched, info, student)
        return batched


def _draw(generator: np.random.Generator) -> int:
    """Draw the seed of a student."""
    return int(generator.integers(2**32))


def _check_render_mode(render_mode: str | None, metadata: dict[str, Any]) -> None:
    if render_mode not in (None, *metadata["render_modes"]):
        raise ValueError(f"render_mode must be one of {metadata['render_modes']} or None, got {render_mode!r}")

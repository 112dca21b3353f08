"""StudentFleet as gymnasium environments: any agent library can set their targets. See docs/environment.md.

One step is one decision interval. The action lies in -1..1; times the limit of 4 it is the action of the target, and
zero is the neutral one. The observation is that of our own policies, `control.observation`.
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
"""Float32; gymnasium's own types of a Box say less."""


class Step(NamedTuple):
    """What P students give back for their actions."""

    observations: Floats  # (P,13+A)
    rewards: NDArray[np.float64]  # (P,)
    terminated: NDArray[np.bool_]  # (P,)
    truncated: NDArray[np.bool_]  # (P,)
    infos: list[dict[str, Any]]


class Episode:
    """One run of P students: actions in, rewards out."""

    def __init__(self, students: StudentFleet) -> None:
        self._students = students
        self.size = len(students.action_names)
        self.over = True
        self._snapshots: Sequence[Snapshot] = ()
        self._diverged = [False] * students.count
        self._actions = torch.zeros(students.count, self.size)

    def start(self, seeds: Sequence[int]) -> tuple[Floats, list[dict[str, Any]]]:
        """Observations (P,13+A) and infos of new students."""
        self._snapshots = self._students.start(seeds)
        self._actions = torch.zeros_like(self._actions)
        self._diverged = [False] * len(seeds)
        self.over = False
        return self._observations(), self._infos()

    def step(self, actions: Floats) -> Step:
        """Actions (P,A), clipped to -1..1."""
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
        """One a student, for a person to read."""
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
    """One student. The undiscounted return is the `quality` of the final student over that of the one at the reset."""

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
        """A new student, of weights and data order of `seed` (0 .. 2**32 - 1), or else of a seed that is drawn."""
        super().reset(seed=seed)
        observations, infos = self._episode.start([_draw(self.np_random) if seed is None else seed])
        return observations[0], infos[0]

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """One decision interval."""
        step = self._episode.step(np.asarray(action)[np.newaxis])
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        return step.observations[0], float(step.rewards[0]), terminated, truncated, step.infos[0]

    def render(self) -> str | None:
        """A line about the student as it is."""
        return self._episode.lines()[0] if self.render_mode == "ansi" else None


class TargetControlVectorEnv(VectorEnv[Floats, Floats, NDArray[Any]]):
    """P students side by side. They end together: where one diverges, the others are truncated with reward 0."""

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
        """New students: of the seeds `seed`, `seed` + 1, ..., or else of seeds that are drawn."""
        super().reset(seed=seed)
        students = range(self.num_envs)
        seeds = [_draw(self.np_random) if seed is None else seed + student for student in students]
        observations, infos = self._episode.start(seeds)
        return observations, self._batched(infos)

    def step(self, actions: Floats) -> tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One decision interval, or a reset where the episode has ended with the step before."""
        if self._episode.over:
            observations, batched = self.reset()
            nobody = np.zeros(self.num_envs, dtype=np.bool_)
            return observations, np.zeros(self.num_envs), nobody, nobody.copy(), batched
        step = self._episode.step(np.asarray(actions))
        return step.observations, step.rewards, step.terminated, step.truncated, self._batched(step.infos)

    def render(self) -> tuple[str, ...] | None:
        """A line about each student as it is."""
        return self._episode.lines() if self.render_mode == "ansi" else None

    def _batched(self, infos: list[dict[str, Any]]) -> dict[str, Any]:
        batched: dict[str, Any] = {}
        for student, info in enumerate(infos):
            batched = self._add_info(batched, info, student)
        return batched


def _draw(generator: np.random.Generator) -> int:
    """A student's seed."""
    return int(generator.integers(2**32))


def _check_render_mode(render_mode: str | None, metadata: dict[str, Any]) -> None:
    if render_mode not in (None, *metadata["render_modes"]):
        raise ValueError(f"render_mode must be one of {metadata['render_modes']} or None, got {render_mode!r}")

"""Students as gymnasium environments: the interface, what a seed fixes, rewards, divergence, an agent that learns."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")

import numpy as np  # noqa: E402
from gymnasium.utils.env_checker import check_env, data_equivalence  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv  # noqa: E402

from tfkd_fast import api  # noqa: E402
from tfkd_fast.policies.students import Students  # noqa: E402
from tfkd_fast.runs.recipe import Recipe, make_recipe  # noqa: E402
from tfkd_fast.steering import control  # noqa: E402
from tfkd_fast.steering.control import TargetControlEnv, TargetControlVectorEnv  # noqa: E402

EXAMPLE = Path(__file__).parents[3] / "docs" / "environment.md"

SMALL: dict[str, Any] = {
    "method": "tfkd",
    "epochs": 3,
    "device": "cpu",
    "precision": "fp32",
    "population": "sequential",
    "model": {"width": 0.125},
    "data": {"dataset": "digits", "batch_size": 64, "holdout": 0.8},
}
SCALAR = {"target": {"sources": []}}


def recipe(**tables: Any) -> Recipe:
    return make_recipe(SMALL, tables)


def environment(**tables: Any) -> TargetControlEnv:
    return TargetControlEnv(Students(recipe(**tables)))


def play(env: TargetControlEnv, seed: int, actions: list[np.ndarray]) -> list[tuple[Any, ...]]:
    """The reset, then one tuple a step."""
    return [env.reset(seed=seed), *(env.step(action) for action in actions)]


def random_actions(env: TargetControlEnv, count: int) -> list[np.ndarray]:
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(count)]


@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasium_accepts_it() -> None:
    students = Students(recipe(epochs=4))  # with a warm-up of one
    gymnasium.register("Check-v0", entry_point=lambda **kwargs: TargetControlEnv(students, **kwargs))
    try:
        check_env(gymnasium.make("Check-v0", render_mode="ansi").unwrapped)
    finally:
        del gymnasium.registry["Check-v0"]


def test_spaces_and_the_neutral_action() -> None:
    env = environment()
    names = Students(recipe()).action_names
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (len(names),), np.float32)
    assert env.observation_space == gymnasium.spaces.Box(-1.0, 1.0, (14 + len(names),), np.float32)
    env.reset(seed=0)
    observation, _, _, _, info = env.step(np.zeros(len(names), np.float32))
    assert info["true_mass"] == pytest.approx(0.9, abs=1e-6)
    assert info["divergence"] == pytest.approx(-math.log(0.9), abs=1e-6)
    assert not observation[14:].any()


def test_an_action_is_scaled_clipped_and_seen_again() -> None:
    env = environment(**SCALAR)
    space = Students(recipe(**SCALAR)).space
    masses = []
    for value in (-1.0, 0.5, 1.0, 7.0):
        env.reset(seed=0)
        observation, _, _, _, info = env.step(np.array([value], np.float32))
        assert observation[14:] == np.clip(value, -1.0, 1.0)
        masses.append(info["true_mass"])
    assert masses == sorted(masses)
    assert masses[2] == masses[3]
    action = space.action_for_true_mass(masses[1])
    assert action.item() == pytest.approx(0.5 * control.ACTION_LIMIT, abs=1e-4)


def test_same_seed_and_actions_give_the_same_bits() -> None:
    env = environment(target={"sources": ["memory", "slow-self"]})
    actions = random_actions(env, 3)
    first = play(env, 3, actions)
    other = play(env, 4, actions)
    assert not data_equivalence(first[1][0], other[1][0])
    assert data_equivalence(play(env, 3, actions), first, exact=True)  # nothing is left of the student in between
    assert data_equivalence(
        play(environment(target={"sources": ["memory", "slow-self"]}), 3, actions), first, exact=True
    )


def test_without_a_seed_students_are_drawn_from_the_random_state_of_the_environment() -> None:
    env = environment(**SCALAR)
    action = np.zeros(1, np.float32)
    losses = []
    for seed in (0, None, None, 0, None, None):
        env.reset(seed=seed)
        losses.append(env.step(action)[4]["progress"]["train_loss"])
    assert losses[:3] == losses[3:]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("tables", [SCALAR, {"epochs": 4, "controller": {"interval": 2}}])
def test_rewards_add_up_to_what_the_student_gained(tables: dict[str, Any]) -> None:
    env = environment(**tables)
    _, info = env.reset(seed=0)
    started, total, over = info["progress"], 0.0, False
    assert info["epoch"] == (0 if tables is SCALAR else 1)
    while not over:
        before = info["progress"]
        _, reward, over, truncated, info = env.step(env.action_space.sample())
        after = info["progress"]
        points = (after["holdout_top1"] - before["holdout_top1"]) / 0.1
        nats = (before["holdout_nll"] - after["holdout_nll"]) / (0.1 * math.log(10))
        assert reward == pytest.approx(0.5 * points + 0.5 * nats)
        assert not truncated
        total += reward
    assert info["epoch"] == tables.get("epochs", 3)
    ended = info["progress"]
    top1, nll = ended["holdout_top1"] - started["holdout_top1"], ended["holdout_nll"] - started["holdout_nll"]
    assert total == pytest.approx(5 * top1 - 5 * nll / math.log(10))
    assert ended["epoch_fraction"] == 1.0
    if tables is SCALAR:
        assert (started["holdout_top1"], started["holdout_nll"]) == (0.1, math.log(10))


@pytest.mark.parametrize("batch_size", [64, 2000], ids=["in the loss", "in the held-out figures after one step"])
def test_a_student_that_diverges_ends_the_episode_with_the_penalty(batch_size: int) -> None:
    steep = {"learning_rate": 1e30, "weight_decay": 1e10}
    env = environment(**SCALAR, optimizer=steep, data={"batch_size": batch_size})
    _, before = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(np.ones(1, np.float32))
    assert (reward, terminated, truncated, info["diverged"]) == (-10.0, True, False, True)
    assert observation in env.observation_space
    assert info["progress"] == before["progress"]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.ones(1, np.float32))
    assert env.reset(seed=0)[1] == before


def test_what_is_rendered() -> None:
    env = TargetControlEnv(Students(recipe(**SCALAR)), render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "epoch 0/3  held-out top-1 10.0%  true mass 1.000"
    env.step(np.zeros(1, np.float32))
    assert re.fullmatch(r"epoch 1/3  held-out top-1 \d+\.\d%  true mass 0\.900", env.render())
    with pytest.raises(ValueError, match="render_mode must be one of"):
        TargetControlEnv(Students(recipe(**SCALAR)), render_mode="human")


def test_wrong_use_is_refused() -> None:
    env = environment(**SCALAR)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="TargetControlVectorEnv takes several"):
        TargetControlEnv(Students(recipe(), 2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be finite"):
        env.step(np.full(1, np.nan, np.float32))


def test_students_side_by_side_are_what_they_are_alone() -> None:
    """The same as gymnasium's own vector environment of single students, until the first episode ends."""
    alone = SyncVectorEnv([environment] * 2)
    vector = TargetControlVectorEnv(Students(recipe(), 2))
    assert vector.metadata["autoreset_mode"] is alone.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space", "num_envs"):
        assert getattr(vector, name) == getattr(alone, name)
    assert data_equivalence(vector.reset(seed=5), alone.reset(seed=5), exact=True)
    vector.action_space.seed(0)
    for step in range(3):
        actions = vector.action_space.sample()
        ours = vector.step(actions)
        assert data_equivalence(ours, alone.step(actions), exact=True)
        assert ours[0] in vector.observation_space
        assert ours[2].all() == (step == 2)
    observations, rewards, terminated, truncated, infos = vector.step(actions)  # resets
    theirs = alone.step(actions)
    assert data_equivalence((rewards, terminated, truncated), theirs[1:4], exact=True)
    assert observations in vector.observation_space
    assert infos.keys() == theirs[4].keys()
    assert infos["epoch"].tolist() == [0, 0]
    assert vector.step(actions)[4]["epoch"].tolist() == [1, 1]


def test_side_by_side_the_same_seeds_and_actions_give_the_same_bits() -> None:
    vector = TargetControlVectorEnv(Students(recipe(), 2))
    vector.action_space.seed(0)
    actions = [vector.action_space.sample() for _ in range(5)]  # beyond the end: the students after it are drawn
    runs = [[vector.reset(seed=1), *(vector.step(action) for action in actions)] for _ in range(2)]
    assert data_equivalence(runs[0], runs[1], exact=True)
    assert not np.array_equal(runs[0][1][0][0], runs[0][1][0][1])


def test_where_one_of_several_diverges_all_end() -> None:
    students = Students(recipe(**SCALAR), 2)
    vector = TargetControlVectorEnv(students, render_mode="ansi")
    before, _ = vector.reset(seed=0)
    with torch.no_grad():
        students.population.models[1].classifier.bias[0] = torch.inf
    observations, rewards, terminated, truncated, infos = vector.step(np.zeros((2, 1), np.float32))
    assert rewards.tolist() == [0.0, -10.0]
    assert terminated.tolist() == infos["diverged"].tolist() == [False, True]
    assert truncated.tolist() == [True, False]
    assert np.array_equal(observations, before)
    assert [line.endswith("diverged") for line in vector.render()] == [False, True]
    _, rewards, terminated, truncated, infos = vector.step(np.zeros((2, 1), np.float32))
    assert not any(values.any() for values in (rewards, terminated, truncated, infos["diverged"]))


WITHOUT_GYMNASIUM = """
import sys
sys.modules["gymnasium"] = None
from tfkd_fast import policies
from tfkd_fast.steering import control
from tfkd_fast.errors import UserError
policies.Students
for name in ("TargetControlEnv", "TargetControlVectorEnv"):
    try:
        getattr(control, name)
    except UserError as error:
        print(error)
print(hasattr(control, "no_such_thing"))
"""


def test_control_can_be_imported_without_gymnasium() -> None:
    result = subprocess.run([sys.executable, "-c", WITHOUT_GYMNASIUM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "TargetControlEnv needs gymnasium: pip install 'tfkd-fast[gym]'",
        "TargetControlVectorEnv needs gymnasium: pip install 'tfkd-fast[gym]'",
        "False",
    ]


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a smaller size; the recipe that it ends with trains the student of its last episode."""
    pytest.importorskip("stable_baselines3", reason="needs Stable-Baselines3: pip install 'tfkd-fast[agents]'")
    (example,) = re.findall(r"```python\n(.*?)```", EXAMPLE.read_text(), re.DOTALL)
    smaller = {
        '"epochs": 8,': '"epochs": 4, "device": "cpu", "data": {"holdout": 0.8},',
        "n_steps=24, batch_size=24": "n_steps=6, batch_size=6",
        "total_timesteps=240": "total_timesteps=12",
    }
    for written, small in smaller.items():
        assert written in example
        example = example.replace(written, small)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, str(EXAMPLE), "exec"), names)
    assert (tmp_path / "agent.zip").is_file()
    assert len(names["recorded"]) == 3
    summary = api.train(names["learned"], tmp_path / "run", listeners=[])
    events = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [event["train_loss"] for event in events if event["event"] == "epoch"]
    assert losses[-1] == names["info"]["progress"]["train_loss"]
    assert summary["test_images"] > 0

"""Policy files: what travels, to which target, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given
from pydantic import ValidationError

from tests.steering.control.problems import build, outcome, same
from tests.support.tables import make_table
from tfkd_fast.errors import UserError
from tfkd_fast.steering.control import Controller, ControllerSettings, Progress
from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES, observation
from tfkd_fast.steering.control.policy import MLP, GaussianPolicy
from tfkd_fast.steering.control.policy_file import find_policy, load_policy, policy_bytes
from tfkd_fast.steering.targets import ActionSpace, TargetSettings, build_target

OTHERS = ("random", "fixed", "schedule", "thompson", "ucb", "cma-es", "hypergradient")


def experienced(progress: Progress, name: str = "ppo") -> Controller:
    """A controller that has learned from singles and comparisons."""
    controller = build(name)
    for k in range(24):
        decision = controller.decide(progress, 4 if k % 3 == 0 else 1)
        controller.learn(decision, outcome(decision.actions.sin().sum(-1).tolist()), progress)
    return controller


def write(path: Path, controller: Controller) -> str:
    content = controller.policy_bytes()
    assert content is not None
    path.write_bytes(content)
    return str(path)


def space(names: tuple[str, ...]) -> ActionSpace:
    found = ActionSpace()
    found.family, found.action_names = "test", names
    return found


def networks(action_size: int, seed: int) -> tuple[GaussianPolicy, MLP]:
    """With random weights everywhere."""
    generator = torch.Generator().manual_seed(seed)
    policy, value = GaussianPolicy(14 + action_size, action_size, 0.4, generator), MLP(14 + action_size, 1, generator)
    with torch.no_grad():
        for parameter in (*policy.parameters(), *value.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy, value


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_the_same_target_gets_the_same_policy_bit_for_bit(progress: Progress, tmp_path: Path, name: str) -> None:
    """Also its value network; the optimiser, the buffers and the memory of the run stay behind."""
    old = experienced(progress, name)
    new = build(name, seed=7, policy=write(tmp_path / "policy.safetensors", old))
    before, after = old.state_dict(), new.state_dict()
    assert same(before["policy"], after["policy"])
    assert same(before["gradient"]["value"], after["gradient"]["value"])
    assert after["gradient"]["optimizer"]["state"] == {}
    assert after["gradient"]["groups"] == after["gradient"]["transitions"] == []
    before["previous_action"] = torch.zeros(5)
    old.load_state_dict(before)
    mean = new.decide(progress, 2).actions[0]
    assert mean.abs().min() > 0
    assert torch.equal(mean, old.decide(progress, 2).actions[0])


def test_a_loaded_policy_learns_on_and_a_random_one_plays_it(progress: Progress, tmp_path: Path) -> None:
    path = write(tmp_path / "policy.safetensors", experienced(progress))
    learning, playing = build("reinforce", policy=path), build("random", policy=path)
    mean = learning.decide(progress, 2).actions[0]
    assert torch.equal(playing.decide(progress, 2).actions[0], mean)
    for controller in (learning, playing):
        controller.learn(controller.decide(progress, 4), outcome([0.1, 0.2, 0.3, 0.4]), progress)
    assert not same(learning.state_dict()["policy"], playing.state_dict()["policy"])


@pytest.mark.parametrize("candidates", [1, 2, 4])
def test_a_policy_played_as_it_is_gives_its_mean_to_all(progress: Progress, tmp_path: Path, candidates: int) -> None:
    """Whatever comes of it, and to whatever student it is shown next."""
    path = write(tmp_path / "policy.safetensors", experienced(progress))
    playing = build("policy", seed=5, policy=path)
    assert playing.policy_bytes() is None
    policy, value = networks(5, 0)
    load_policy(Path(path), policy, value, build_target(make_table(TargetSettings), 100))
    previous = torch.zeros(5)
    for k in range(3):
        now = replace(progress, epoch_fraction=k / 3, holdout_top1=0.2 * k)
        decision = playing.decide(now, candidates)
        mean = policy.mean(observation(now, previous)).detach()
        assert torch.equal(decision.actions, mean.expand(candidates, -1))
        assert decision.roles == ("mean",) * candidates
        playing.learn(decision, outcome([0.1 * c for c in range(candidates)]), now)
        previous = mean


def test_there_must_be_a_policy_to_play() -> None:
    with pytest.raises(ValidationError, match="Field required"):
        make_table(ControllerSettings, name="policy")


def test_the_standard_deviation_comes_within_the_bounds_of_the_new_run(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.safetensors", build("ppo", initial_std=0.9))
    narrow = build("ppo", policy=path, max_std=0.3)
    assert narrow.state_dict()["policy"]["log_std"].exp().tolist() == pytest.approx([0.3] * 5)


def test_a_file_is_a_function_of_the_policy(progress: Progress) -> None:
    assert experienced(progress).policy_bytes() == experienced(progress).policy_bytes()


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_controller_has_a_policy_to_save(name: str) -> None:
    assert build(name).policy_bytes() is None


NAMES = ("true mass", "rank 1", "rank 2", "rank 3", "rank 5", "rank 17", "peers share", "direction 2")


@given(
    old=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    new=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    seed=st.integers(0, 100),
)
def test_numbers_are_found_by_their_names(
    tmp_path_factory: pytest.TempPathFactory, old: list[str], new: list[str], seed: int
) -> None:
    """The new policy says of each number what the old one says of its counterpart in the same situation: same progress,
    same previous action as far as the names are the same, 0 for what the new target lacks."""
    policy, value = networks(len(old), seed)
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    path.write_bytes(policy_bytes("ppo", policy, value, space(tuple(old))))
    generator = torch.Generator().manual_seed(seed)
    loaded, loaded_value = GaussianPolicy(14 + len(new), len(new), 0.4, generator), MLP(14 + len(new), 1, generator)

    def counterpart(name: str) -> str | None:
        if name in old or not name.startswith("rank"):
            return name if name in old else None
        lower = [int(other[5:]) for other in old if other.startswith("rank") and int(other[5:]) < int(name[5:])]
        return f"rank {max(lower)}" if lower else None

    if not any(map(counterpart, new)):
        with pytest.raises(UserError, match="nothing of which the test target has"):
            load_policy(path, loaded, loaded_value, space(tuple(new)))
        return
    load_policy(path, loaded, loaded_value, space(tuple(new)))
    seen_new = torch.rand(14 + len(new), generator=generator)
    action = dict(zip(new, seen_new[14:].tolist(), strict=True))
    seen_old = torch.cat([seen_new[:14], torch.tensor([action.get(name, 0.0) for name in old])])
    with torch.no_grad():
        old_mean = dict(zip(old, policy.mean(seen_old).tolist(), strict=True))
        old_std = dict(zip(old, policy.log_std.exp().tolist(), strict=True))
        found = [counterpart(name) for name in new]
        assert loaded.mean(seen_new).tolist() == pytest.approx([old_mean[n] if n else 0.0 for n in found], abs=1e-5)
        assert loaded.log_std.exp().tolist() == pytest.approx([old_std[n] if n else 0.4 for n in found], rel=1e-5)
        torch.testing.assert_close(loaded_value(seen_new), value(seen_old))


def test_ten_classes_teach_a_hundred(tmp_path: Path) -> None:
    """CIFAR-10's ranks end with bin 5..9; CIFAR-100 has a bin 17.., which starts as that one."""
    policy, value = networks(4, 0)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(policy_bytes("ppo", policy, value, build_target(make_table(TargetSettings), 10)))
    weights = build("ppo", policy=str(path), max_std=9.0, min_std=1e-9).state_dict()["policy"]
    rows = [0, 1, 2, 3, 3]
    assert torch.equal(weights["mean.output.weight"], policy.mean.output.weight[rows])
    assert torch.equal(weights["mean.output.bias"], policy.mean.output.bias[rows])
    assert torch.equal(weights["log_std"], policy.log_std[rows])
    assert weights["mean.hidden.0.weight"].shape == (64, 14 + 5)
    assert not weights["mean.hidden.0.weight"][:, -1].any()


@pytest.mark.parametrize("classes", [10, 100])
def test_the_policy_that_comes_with_the_package_steers_any_number_of_classes(classes: int) -> None:
    """It was learned on ten; a path of that name would be another policy."""
    assert find_policy("cifar10").is_file()
    assert find_policy("a/file") == Path("a/file")
    target = build_target(make_table(TargetSettings), classes)
    policy, value = networks(target.action_size, seed=0)
    load_policy(find_policy("cifar10"), policy, value, target)
    neutral = torch.zeros(PROGRESS_ENTRIES + target.action_size)
    assert policy.mean(neutral).abs().max() > 0.0
    other = neutral.clone()
    other[PROGRESS_ENTRIES - 1] = 1.0  # which its file does not have
    assert torch.equal(policy.mean(other), policy.mean(neutral))
    assert torch.equal(value(other), value(neutral))
    assert torch.isfinite(policy.log_std).all()


def tampered(path: Path, **changes: object) -> None:
    """The same weights with another header and without its checksum; a change to None removes the entry."""
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["policy"]) | {"sha256": None} | changes
    kept = {name: value for name, value in header.items() if value is not None}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata={"policy": json.dumps(kept)})


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.safetensors"
    write(path, build("ppo"))
    return path


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the policy .*nowhere does not exist: for controller\.policy, give"):
        build("ppo", policy=str(tmp_path / "nowhere"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the policy .* is a folder: for controller\.policy, give"):
        build("ppo", policy=str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.5, 0.999])
def test_a_truncated_file_is_refused(policy_file: Path, share: float) -> None:
    content = policy_file.read_bytes()
    policy_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="is damaged or of another kind"):
        build("ppo", policy=str(policy_file))


@pytest.mark.parametrize(
    "metadata", [None, {"student": "{}"}, {"policy": "{"}, {"policy": "[1]"}, {"policy": "{}"}, {"policy": '{"a": 1}'}]
)
def test_a_foreign_file_is_refused(policy_file: Path, metadata: dict[str, str] | None) -> None:
    safetensors.torch.save_file(safetensors.torch.load_file(policy_file), policy_file, metadata=metadata)
    with pytest.raises(UserError, match="is damaged or of another kind"):
        build("ppo", policy=str(policy_file))


def test_another_format_is_refused(policy_file: Path) -> None:
    """Whatever else a later version writes."""
    tampered(policy_file, format=2, family=None, something={"new": True})
    with pytest.raises(UserError, match="has format 2, but this version of tfkd-fast reads format 1"):
        build("ppo", policy=str(policy_file))


@pytest.mark.parametrize(
    "changes",
    [
        {"observation_entries": 18},
        {"action_names": ["true mass", "rank 1"]},
        {"action_names": "true mass"},
        {"family": None},
        {"something": "new"},
    ],
)
def test_a_header_that_does_not_fit_is_refused(policy_file: Path, changes: dict[str, object]) -> None:
    tampered(policy_file, **changes)
    with pytest.raises(UserError, match="is damaged or of another kind"):
        build("ppo", policy=str(policy_file))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("policy.log_std", torch.zeros(6)),
        ("policy.log_std", torch.zeros(5, dtype=torch.float64)),
        ("policy.log_std", torch.full((5,), torch.nan)),
        ("policy.stranger", torch.zeros(5)),
    ],
)
def test_weights_that_do_not_fit_are_refused(policy_file: Path, name: str, tensor: torch.Tensor) -> None:
    tampered(policy_file)
    with safetensors.safe_open(policy_file, "pt") as file:
        metadata = file.metadata()
    weights = safetensors.torch.load_file(policy_file) | {name: tensor}
    safetensors.torch.save_file(weights, policy_file, metadata=metadata)
    with pytest.raises(UserError, match="is damaged or of another kind"):
        build("ppo", policy=str(policy_file))


def test_a_policy_of_another_kind_of_target_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.safetensors", build("ppo", target={"family": "full-matrix"}))
    with pytest.raises(UserError, match=r"steers direction 0, .* nothing of which the rank-binned target has"):
        build("ppo", policy=path)

"""A run goes on with the data that it began with, and is tested on those that it was trained on."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.command import SMALL, refusal, run
from tests.support.runs import log, recipe
from tfkd_fast import api, tensor_file
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.events import Event
from tfkd_fast.policies import learn_policy
from tfkd_fast.runs.log import Listener
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.runs.student import STUDENT

TRAINING, TEST = (f"its {part} images, their labels or their order are others" for part in ("training", "test"))


def write(path: Path, *, images: int = 24, test_seed: int = 1) -> Path:
    content: dict[str, Any] = {"classes": np.array(["ant", "bee"])}
    for part, count, seed in (("train", images, 0), ("test", 8, test_seed)):
        content[f"{part}_images"] = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        content[f"{part}_labels"] = np.arange(count) % 2
    np.savez(path, **content)
    return path


def small(data: Path, method: str = "ce", **tables: Any) -> Recipe:
    of_data = {"dataset": "npz", "root": str(data), "holdout": 0.25, "batch_size": 8, "loader": "resident"}
    return recipe(method, **{"data": of_data, "epochs": 1} | tables)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the data beside it."""
    folder = tmp_path_factory.mktemp("finished")
    write(folder / "data.npz")
    with contextlib.chdir(folder):
        api.train(small(Path("data.npz")), "run")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The run without its data."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_does_not_take_the_place_of_what_it_is_made_from(copy: Path) -> None:
    place, before = ["--out", copy, "--overwrite"], sorted(copy.rglob("*"))
    taught = ["train", *SMALL, "--method", "kd", "--dataset", "npz", "--data-root", copy.parent / "data.npz"]
    for arguments in (
        [*taught, "--teacher", copy],
        [*taught, "--teacher", f"vgg8@{copy / 'student.safetensors'}"],
        ["replay", copy],
    ):
        assert f"the run would replace {copy}" in refusal(*arguments, *place)
    assert sorted(copy.rglob("*")) == before


def change_header(path: Path, entries: dict[str, Any], *, drop: tuple[str, ...] = ()) -> None:
    header, weights = tensor_file.read(path, STUDENT)
    kept = {key: value for key, value in header.items() if key not in drop}
    path.write_bytes(tensor_file.to_bytes(STUDENT, kept | entries, weights))


def test_a_relative_path_is_that_of_the_folder_where_the_run_was_begun(copy: Path, tmp_path: Path) -> None:
    expected = json.loads((copy / "summary.json").read_text())
    with contextlib.chdir(tmp_path):
        assert api.evaluate("run", device="cpu", precision="fp32").items() <= expected.items()


def test_a_student_is_tested_on_the_data_of_its_run_wherever_they_lie(finished: Path, copy: Path) -> None:
    moved = shutil.copy(finished / "data.npz", copy.parent / "moved.npz")
    expected = json.loads((copy / "summary.json").read_text())
    figures = json.loads(run("eval", copy, "--data-root", moved, "--device", "cpu", "--precision", "fp32").stdout)
    assert figures.items() <= expected.items()


@pytest.mark.parametrize(
    ("other", "said"), [({"images": 32}, TRAINING), ({"test_seed": 2}, TEST)], ids=["train", "test"]
)
def test_other_data_are_refused(copy: Path, tmp_path: Path, other: dict[str, int], said: str) -> None:
    data = write(tmp_path / "other.npz", **other)
    sentence = refusal("eval", copy, "--data-root", data)
    assert f"is not the one that the run in {copy} was trained on, {said}: restore it, or" in sentence
    (copy / "summary.json").unlink()
    assert said in refusal("train", "--resume", copy, "--data-root", data)
    assert not (copy / "summary.json").exists()


def test_a_run_goes_on_where_its_data_have_moved(copy: Path, finished: Path, tmp_path: Path) -> None:
    moved = shutil.copy(finished / "data.npz", tmp_path / "moved.npz")
    before = (copy / "summary.json").read_text()
    (copy / "summary.json").unlink()
    api.resume(copy, data_root=moved)
    assert json.loads((copy / "summary.json").read_text())["test_nll"] == json.loads(before)["test_nll"]


def test_also_a_run_that_has_no_checkpoint_yet_is_that_of_its_data(tmp_path: Path) -> None:
    class Interrupting(Listener):
        def event(self, event: Event) -> None:
            raise KeyboardInterrupt

    data = write(tmp_path / "data.npz")
    with pytest.raises(KeyboardInterrupt):
        api.train(small(data), tmp_path / "run", listeners=[Interrupting()])
    write(data, images=32)
    with pytest.raises(UserError, match=TRAINING):
        api.resume(tmp_path / "run")


def test_a_replay_wants_the_data_of_its_run_unless_it_asks_for_others(copy: Path, tmp_path: Path) -> None:
    other = {"data": {"root": str(write(tmp_path / "other.npz", test_seed=2))}}
    with pytest.raises(UserError, match=TEST):
        api.replay(copy, tmp_path / "replay", overrides=other)
    assert not (tmp_path / "replay").exists()
    api.replay(copy, tmp_path / "replay", overrides={"data": other["data"] | {"per_class": 10}})


def test_a_folder_that_names_what_is_held_out(tmp_path: Path) -> None:
    """Killed and resumed, tested, replayed on what was held out, too, and as a teacher."""
    photos, out, random = tmp_path / "photos", tmp_path / "run", np.random.default_rng(0)
    for place in (photos / part / name for part in ("train", "val", "test") for name in "ab"):
        place.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{number}.png")
    data = {"dataset": "folder", "root": str(photos)}
    settings = recipe("ce", data=data)
    whole = api.train(settings, tmp_path / "whole")

    class Killing(Listener):
        def event(self, event: Event) -> None:
            if event.kind == "epoch" and event.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.train(settings, out, listeners=[Killing()])
    moved = (photos / "val/b/3.png").rename(photos / "train/b/4.png")
    with pytest.raises(UserError, match=TRAINING):
        api.resume(out)
    moved.rename(photos / "val/b/3.png")
    assert api.resume(out)["holdout_top1"] == whole["holdout_top1"]
    assert (out / "student.safetensors").read_bytes() == (tmp_path / "whole/student.safetensors").read_bytes()
    assert api.evaluate(out, device="cpu", precision="fp32").items() <= whole.items()
    api.train(recipe("kd", data=data, teachers={"runs": [str(out)]}), tmp_path / "taught")
    api.replay(out, tmp_path / "replayed")
    starts = [log(tmp_path / name)[0] for name in ("whole", "replayed", "taught")]
    assert [(start["train_images"], start["holdout_images"]) for start in starts] == [(8, 8), (16, 0), (8, 8)]
    assert starts[2]["teachers_saw_holdout"] is False


def test_a_search_goes_on_with_its_data(tmp_path: Path) -> None:
    def learn(data: Path, generations: int) -> None:
        tables = {"target": {"family": "scalar"}}
        settings = small(data, "tfkd", **tables)
        learn_policy(settings, tmp_path / "out", generations=generations, students=4, on_generation=lambda *_: None)

    learn(write(tmp_path / "data.npz"), 1)
    with pytest.raises(UserError, match=f"the search in .* was trained on, {TRAINING}"):
        learn(write(tmp_path / "other.npz", images=32), 2)
    learn(Path(shutil.move(tmp_path / "data.npz", tmp_path / "moved.npz")), 1)


def test_what_an_earlier_version_did_not_record_is_said_and_not_refused(copy: Path, tmp_path: Path) -> None:
    moved = write(tmp_path / "moved.npz")
    (copy / "data.json").unlink()
    for name in ("student", "best"):
        change_header(copy / f"{name}.safetensors", {}, drop=("test_data", "holdout"))
    ended = run("eval", copy, "--data-root", moved)
    assert "see for yourself that npz is still the same" in ended.stderr
    assert json.loads(ended.stdout)["test_images"] == 8
    (copy / "summary.json").unlink()
    with pytest.warns(Notice, match="is of an earlier version"):
        api.resume(copy, data_root=moved)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"classes": ["bee", "ant"]}, "its class number 0 is 'ant', not 'bee' (the same classes in another order)"),
        ({"mean": [0.1, 0.5, 0.5]}, "its mean is"),
        ({"width": 0.25}, "was trained with model.width = 0.25, and its recipe.toml says 0.125: restore that file"),
        ({"name": "vgg13"}, "was trained with model.name = vgg13"),
        ({"holdout": 0.5}, "was trained with data.holdout = 0.5"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["student", "best"])
def test_a_student_that_is_not_of_the_recipe_and_the_data_is_not_tested(
    copy: Path, tmp_path: Path, name: str, entries: dict[str, Any], said: str
) -> None:
    change_header(copy / f"{name}.safetensors", entries)
    with pytest.raises(UserError) as error:
        api.evaluate(copy, data_root=write(tmp_path / "moved.npz"))
    assert said in str(error.value)


def test_the_record_of_the_data_must_be_whole(copy: Path, tmp_path: Path) -> None:
    (copy / "summary.json").unlink()
    (copy / "data.json").write_text('{"classes": ["ant"')
    with pytest.raises(UserError, match=r"the record of the data set .*data\.json is damaged"):
        api.resume(copy, data_root=write(tmp_path / "moved.npz"))

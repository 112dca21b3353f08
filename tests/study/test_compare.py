"""Runs beside each other: which are one row, what their study says of them, and what is not compared."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.study.made_up import results_of, runs, summary
from tfkd_fast.data import DataIdentity
from tfkd_fast.errors import UserError
from tfkd_fast.files import parse_toml
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.study.compare import load_comparison
from tfkd_fast.study.results import paired_difference
from tfkd_fast.study.stored import ResultsFiles

IDENTITY = DataIdentity(
    classes=("a", "b"), image_shape=(1, 8, 8), mean=(0.5,), std=(0.5,), training_data="sha256:1", test_data="sha256:2"
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a study of rows ce, a and b under seeds 0, 1 and 2, in which one run of b is missing."""
    done = runs(ce={0: 10.0, 1: 20.0, 2: 12.0}, a={0: 11.0, 1: 23.0, 2: 12.5}, b={0: 5.0, 1: 4.0})
    folder = tmp_path / "study"
    for row, own in done.items():
        for seed, figures in own.items():
            run = RunFolder(folder / "runs" / f"{row}-seed{seed}")
            run.path.mkdir(parents=True)
            run.recipe.write_text(tomli_w.dumps({"method": row, "seed": 100 + seed, "data": {"root": str(tmp_path)}}))
            run.summary.write_text(json.dumps(figures))
    ResultsFiles(folder).write(results_of(done, contrasts={"x": (("a", "ce"),), "y": (("a", "b"),)}))
    return folder


def run(folder: Path, summary: dict[str, Any] | None = None, **recipe: Any) -> Path:
    """A run folder of a recipe, and finished if it has a summary."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(tomli_w.dumps({"method": "ce", "seed": 0} | recipe))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_six_runs_of_a_study_have_the_figures_of_its_table(study: Path) -> None:
    whole = load_comparison([study])
    named = load_comparison([study / "runs" / f"{row}-seed{seed}" for row in ("a", "ce") for seed in (2, 0, 1)])
    ours, theirs = named.results, whole.results
    assert [line.row for line in ours.lines] == ["ce", "a"]  # in the order of the study, with its baseline
    for line in ours.lines:
        (same,) = (other for other in theirs.lines if other.row == line.row)
        assert (line.test_top1, line.difference, line.seeds) == (same.test_top1, same.difference, (0, 1, 2))
    assert (ours.name, ours.seeds, ours.baseline) == (theirs.name, (0, 1, 2), "ce")
    assert ours.contrast_differences == {"x": theirs.contrast_differences["x"]}


def test_a_study_is_its_run_folders_and_without_them_its_results(study: Path) -> None:
    figures = json.loads((study / "runs/ce-seed0/summary.json").read_text()) | {"test_top1": 13.0}
    (study / "runs" / "ce-seed0" / "summary.json").write_text(json.dumps(figures))
    shutil.rmtree(study / "runs" / "a-seed1")
    found = load_comparison([study])
    assert found.results.top1 == {"ce": {0: 13.0, 1: 20.0, 2: 12.0}, "a": {0: 11.0, 2: 12.5}, "b": {0: 5.0, 1: 4.0}}
    assert len(found.folders) == 9
    shutil.rmtree(study / "runs")
    for path in (study, study / "results.json"):
        assert load_comparison([path]).results.top1["ce"] == {0: 10.0, 1: 20.0, 2: 12.0}


def test_another_baseline(study: Path) -> None:
    found = load_comparison([study], "a").results
    assert [line.difference for line in found.lines] == [
        paired_difference(found.top1["ce"], found.top1["a"]),
        None,
        paired_difference(found.top1["b"], found.top1["a"]),
    ]
    assert load_comparison([study], "cross-entropy").results.baseline == "ce"
    with pytest.raises(UserError, match=r"there is no row 'cee' to compare with: did you mean 'ce'\?"):
        load_comparison([study], "cee")


def test_runs_of_one_recipe_but_for_the_seed_are_a_row(tmp_path: Path) -> None:
    paths = [
        run(tmp_path / "first-seed1", summary(1.0), seed=1, data={"root": "/here"}, teachers={"runs": ["t-seed1"]}),
        run(
            tmp_path / "first-seed2",
            summary(2.0),
            seed=2,
            data={"root": "/there"},
            teachers={"runs": ["t-seed2"]},
            trackers=["tensorboard"],
        ),
        run(tmp_path / "other", summary(3.0), seed=1, method="kd", teachers={"runs": ["t-seed1"]}),
        run(tmp_path / "again", summary(4.0), seed=2, method="kd", teachers={"runs": ["t-seed2"]}),
        run(tmp_path / "x" / "first-seed1", summary(5.0), seed=1, epochs=9),
    ]
    found = load_comparison([*paths, paths[0], paths[1] / ".." / "first-seed1"]).results
    titles = ["first (1: teachers.runs ['t-seed1'])", "kd", "first (2: epochs 9)"]
    assert list(found.rows) == titles
    assert found.top1 == {titles[0]: {1: 1.0, 2: 2.0}, "kd": {1: 3.0, 2: 4.0}, titles[2]: {1: 5.0}}
    assert found.baseline == titles[0]
    assert found.remarks == (f"Named twice and counted once: {paths[0]}.",)


def test_unfinished_runs_are_named_and_one_run_is_enough(tmp_path: Path) -> None:
    path = run(tmp_path / "mine")
    found = load_comparison([path]).results
    assert [(line.row, line.test_top1) for line in found.lines] == [("mine", None)]
    assert found.remarks == (f"Not finished, so without test figures: {path}.",)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"data": {"dataset": "cifar10"}}, "its data.dataset is 'cifar10', not 'digits'"),
        ({"data": {"holdout": 0.2}}, "its data.holdout is 0.2, not 0.1"),
        ({"data": {"classes": "0-4"}}, "its data.classes is '0-4', not not set"),
        ({"data": {"per_class": 10}}, "its data.per_class is 10"),
        ({"test_images": 99}, "it was tested on 99 images, not 100"),
        ({"identity": {"test_data": "sha256:3"}}, "its test images, their labels or their order are others"),
        ({"identity": {"training_data": "sha256:3"}}, "its training images, their labels or their order are others"),
        ({"identity": {"classes": ("a", "c")}}, "its class number 1 is 'c', not 'b'"),
    ],
)
def test_runs_on_other_images_are_not_compared(tmp_path: Path, other: dict[str, Any], sentence: str) -> None:
    data = {"dataset": "digits", "holdout": 0.1}
    first = run(tmp_path / "first", summary(1.0, test_images=100), data=data)
    tested = summary(2.0, test_images=other.get("test_images", 100))
    second = run(tmp_path / "second", tested, method="kd", data=data | other.get("data", {}))
    for path, identity in ((first, {}), (second, other.get("identity", {}))):
        RunFolder(path).write_data(IDENTITY.model_copy(update=identity))
    with pytest.raises(UserError, match=f"{second} cannot be compared with {first}: ") as refused:
        load_comparison([first, second])
    assert sentence in str(refused.value)


def test_a_study_says_itself_which_of_its_rows_hold_out_what(study: Path) -> None:
    for seed in (0, 1):
        recipe = study / "runs" / f"b-seed{seed}" / "recipe.toml"
        table = parse_toml(recipe.read_text(), recipe, "", "")
        recipe.write_text(tomli_w.dumps(table | {"data": {"holdout": 0.5}}))
    paths = [study / "runs" / name for name in ("ce-seed0", "b-seed0")]
    assert load_comparison(paths).results.lines[1].difference is not None
    recipe.with_name("recipe.toml").write_text(tomli_w.dumps({"method": "b", "data": {"dataset": "cifar10"}}))
    with pytest.raises(UserError, match=r"its data\.dataset is 'cifar10'"):
        load_comparison([study / "runs" / "ce-seed1", study / "runs" / "b-seed1"])


def no_run(folder: Path, study: Path) -> list[Path]:
    (folder / "empty").mkdir()
    return [folder / "empty"]


def nothing(folder: Path, study: Path) -> list[Path]:
    return [folder / "nowhere"]


def study_file(folder: Path, study: Path) -> list[Path]:
    (folder / "study.toml").write_text("seeds = [0]")
    return [folder / "study.toml"]


def study_and_run(folder: Path, study: Path) -> list[Path]:
    return [study / "runs" / "ce-seed0", study]


def twins(folder: Path, study: Path) -> list[Path]:
    return [run(folder / "a", summary(1.0)), run(folder / "b", summary(1.0))]


def damaged_summary(folder: Path, study: Path) -> list[Path]:
    (study / "runs" / "ce-seed0" / "summary.json").write_text('{"test_top1": 1')
    return [study]


def damaged_recipe(folder: Path, study: Path) -> list[Path]:
    (run(folder / "a") / "recipe.toml").write_text("method = ")
    return [folder / "a"]


def damaged_results(folder: Path, study: Path) -> list[Path]:
    (study / "results.json").write_text("{")
    return [study / "runs" / "ce-seed0"]


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (no_run, "empty is no run folder and no study: it has neither recipe.toml nor results.json"),
        (nothing, "nowhere does not exist: name run folders, or the folder of a study"),
        (study_file, "study.toml is no study that was trained: name the folder of one"),
        (study_and_run, "is a study, not a run: name it alone, or the runs in "),
        (twins, "are two runs of one recipe under one seed, 0: name one of them"),
        (damaged_summary, "the summary "),
        (damaged_recipe, "is not valid TOML"),
        (damaged_results, "results.json is damaged or of another kind"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    tmp_path: Path, study: Path, paths: Callable[[Path, Path], list[Path]], sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        load_comparison(paths(tmp_path, study))
    assert sentence in str(refused.value)

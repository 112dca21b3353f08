"""Runs read from their folders: finished, unfinished, damaged, none."""

import contextlib
import json
from pathlib import Path

import pytest
import torch

from tfkd_fast import api
from tfkd_fast.data import open_dataset
from tfkd_fast.errors import UserError
from tfkd_fast.events import StepsCompiled, to_line
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.recipe import load_recipe
from tfkd_fast.runs.stored import load_run

COMPILED = StepsCompiled(epoch=1, seconds=0.25)
SMALL = {"method": "ce", "epochs": 2, "device": "cpu", "precision": "fp32", "model": {"width": 0.125}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    api.train("digits", folder, overrides=SMALL)
    return folder


def test_a_finished_run_has_what_its_folder_has(finished: Path) -> None:
    run = load_run(str(finished))
    assert run.path == finished
    assert run.recipe == load_recipe("digits", SMALL)
    written = json.loads((finished / "summary.json").read_text())
    assert len(written.pop("sha256")) == 64
    assert run.summary == written
    kinds = [event.kind for event in run.events]
    assert [kind for kind in kinds if kind != "loader"] == ["start", "epoch", "epoch", "test", "finish"]
    assert run.classes == tuple("0123456789")
    assert run.image_shape == (1, 32, 32)


def test_a_run_is_read_from_whatever_folder_is_the_current_one_by_then(finished: Path) -> None:
    with contextlib.chdir(finished.parent):
        run = load_run(finished.name)
    assert run.path == Path(finished.name)
    assert run.summary is not None
    assert not run.student().training


def test_the_student_predicts_as_it_was_tested(finished: Path) -> None:
    """From pixels, through the run's own normalisation."""
    run = load_run(finished)
    student = run.student()
    assert not student.training
    images = open_dataset(run.recipe.data).read_test()
    with torch.no_grad():
        predicted = student(run.normalise(images.all_images())).argmax(1)
    assert run.summary is not None
    assert 100 * (predicted == images.labels).float().mean().item() == pytest.approx(run.summary["test_top1"], abs=1e-4)


def test_pixels_may_be_fractions(finished: Path) -> None:
    run = load_run(finished)
    pixels = torch.randint(256, (5, 1, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(run.normalise(pixels / 255), run.normalise(pixels))


def test_the_best_student_is_that_of_its_file(finished: Path) -> None:
    run = load_run(finished)
    images = torch.randn(4, 1, 32, 32)
    assert run.summary is not None
    same = torch.equal(run.best()(images), run.student()(images))
    assert same == (run.summary["best_epoch"] == 2)


def test_images_of_another_shape_are_refused(finished: Path) -> None:
    with pytest.raises(UserError, match=r"takes images of shape \(1, 32, 32\), not \(3, 32, 32\)"):
        load_run(finished).normalise(torch.zeros(2, 3, 32, 32))


def test_an_unfinished_run_has_a_recipe_and_a_log(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(load_recipe("digits", SMALL).to_toml())
    folder.metrics.write_text(to_line(COMPILED, 0.5, 1) + '\n{"event": "epo')
    run = load_run(folder.path)
    assert run.summary is None
    assert run.events == [COMPILED]
    with pytest.raises(UserError, match="not finished, go on with --resume"):
        run.student()
    with pytest.raises(UserError, match=r"has no best epoch.*use the student of the last epoch"):
        run.best()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(load_recipe("digits", SMALL).to_toml())
    folder.metrics.write_text(to_line(COMPILED, 0.5, 1) + '\n{"event\n' + to_line(COMPILED, 1.0, 3) + "\n")
    with pytest.raises(UserError, match=r"line 2 of .* is damaged"):
        load_run(folder.path).events  # noqa: B018


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        load_run(tmp_path)

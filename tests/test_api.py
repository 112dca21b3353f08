"""What `train` takes as a recipe and as a folder, and that the others go on from what it leaves."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tfkd_fast
from tfkd_fast import api, tensor_file
from tfkd_fast.cli.app import faults_in_sentences
from tfkd_fast.errors import UserError
from tfkd_fast.events import Event
from tfkd_fast.runs.export import export_student
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener
from tfkd_fast.runs.recipe import load_recipe, read_recipe

SMALL: dict[str, Any] = {"method": "ce", "epochs": 1, "device": "cpu", "precision": "fp32", "model": {"width": 0.125}}


def test_a_recipe_may_be_named_written_down_or_made(tmp_path: Path) -> None:
    """All are the recipe of the command line with these values."""
    file = tmp_path / "mine.toml"
    file.write_text(load_recipe("digits", SMALL).to_toml())
    given = {
        "name": ("digits", SMALL),
        "file": (str(file), None),
        "path": (file, None),
        "values": (SMALL, None),
        "recipe": (load_recipe("digits", {}), SMALL),
    }
    summaries = {}
    for name, (recipe, overrides) in given.items():
        summaries[name] = api.train(recipe, str(tmp_path / name), overrides=overrides)
        assert read_recipe(RunFolder(tmp_path / name)) == load_recipe("digits", SMALL)
    assert len({summary["test_nll"] for summary in summaries.values()}) == 1


def test_overrides_go_before_the_values_beside_them(tmp_path: Path) -> None:
    api.train(SMALL | {"seed": 1}, tmp_path / "run", overrides={"seed": 2, "model": {"width": 0.25}})
    recipe = read_recipe(RunFolder(tmp_path / "run"))
    assert (recipe.seed, recipe.model.width, recipe.epochs) == (2, 0.25, 1)


def test_bad_values_are_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown recipe key 'model\.widht'"):
        api.train("digits", tmp_path / "run", overrides={"model": {"widht": 1}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": None}, r"a recipe is its name, the path of its file, or nested values by table: got None"),
        ({"recipe": Path("nowhere.toml")}, r"no recipe file '/.*nowhere\.toml'"),
        ({"recipe": Path("digits")}, r"no recipe file '/.*digits'"),
        ({"overrides": "epochs=1"}, r"overrides are nested values by table, as \{'epochs': 1\}: got 'epochs=1'"),
        ({"teachers": nn.Sequential(nn.Flatten())}, r"teachers are a list of modules, as \[module\]: got Sequential"),
        ({"listeners": [print]}, r"derives from tfkd_fast\.runs\.log\.Listener: got <built-in function print>"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_the_folder_is_made(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        api.train(**{"recipe": SMALL, "out": tmp_path / "run", **change})
    assert not (tmp_path / "run").exists()


def test_a_replay_refuses_overrides_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="overrides are nested values by table"):
        api.replay(tmp_path, tmp_path / "out", overrides="epochs=1")


def test_a_run_is_tested_again_from_its_folder_as_text(tmp_path: Path) -> None:
    summary = api.train(SMALL, tmp_path / "run")
    figures = api.evaluate(str(tmp_path / "run"), device="cpu", precision="fp32")
    assert figures["test_nll"] == summary["test_nll"]
    with pytest.raises(UserError, match="is finished"):
        api.resume(str(tmp_path / "run"))


def test_a_student_that_is_not_finite_is_refused_by_all_that_read_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    api.train(SMALL, run)
    student = run / "student.safetensors"
    header, tensors = tensor_file.read(student, "student")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # what was read is the file itself
    weight = tensors["classifier.weight"]
    for largest, what in ((math.nan, "classifier.weight is"), (3e38, "its outputs are")):
        spoiled = tensors | {"classifier.weight": weight / weight.abs().max() * largest}
        student.write_bytes(tensor_file.to_bytes("student", header, spoiled))
        taught = {**SMALL, "method": "kd", "teachers": {"runs": [str(run)]}}
        for read in (
            partial(api.evaluate, run, device="cpu", precision="fp32"),
            tfkd_fast.load_run(run).student,
            partial(api.train, taught, tmp_path / "kd"),
            partial(export_student, run),
        ):
            with pytest.raises(UserError, match=rf"{student} is of no use, because {what} not finite: train it again"):
                read()


def test_a_lack_of_memory_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Asks(Listener):
        def event(self, event: Event) -> None:
            torch.empty(2**50)  # more than there are addresses

    with pytest.raises(UserError, match=rf"not enough memory: go on with --resume {tmp_path} where there is more"):
        api.train(SMALL, tmp_path, listeners=[Asks()])
    with pytest.raises(SystemExit) as end, faults_in_sentences():  # of a command that trains no run
        torch.empty(2**50)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: there is not enough memory: lower data.batch_size")

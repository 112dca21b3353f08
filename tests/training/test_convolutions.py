"""Which convolutions a run has, what of them is measured, kept for later runs, and repeated by a run that goes on."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import few_images, log, recipe
from tfkd_fast import api
from tfkd_fast.data import open_dataset
from tfkd_fast.device import Compute
from tfkd_fast.errors import Notice
from tfkd_fast.files import from_checked_json, to_checked_json
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.ops import conv_algorithms
from tfkd_fast.ops.conv_algorithms import PASSES, TORCH, Algorithms, Convolution
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.teachers.teacher import Teachers
from tfkd_fast.training.convolutions import find_measured, record_passes
from tfkd_fast.training.trainer import Trainer

BF16 = Compute(torch.device("cpu"), torch.bfloat16)
SHAPE = Convolution(8, 8, 8, 16, torch.float32)
WANTED = {SHAPE: frozenset(PASSES)}
FORCED = Algorithms("torch", "torch", "taps")
needs_taps = pytest.mark.skipif(
    "taps" not in conv_algorithms.serving("forward", SHAPE, 4), reason="the algorithm taps does not serve here"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of measurements, of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tfkd_fast" / "convolutions"


def write_algorithms(file: Path, algorithms: Algorithms) -> None:
    """Write other algorithms into a file of measurements, or into the record of a run."""
    values = from_checked_json(file.read_bytes())
    for entry in values["convolutions"]:
        entry["algorithms"] = {name: getattr(algorithms, name) for name in entry["algorithms"]}
    file.write_text(to_checked_json(values))


def measure(batch: int = 4, threads: int = 1) -> tuple[Algorithms, bool]:
    """What was found for the convolution, and whether it was measured now."""
    found = find_measured(WANTED, batch, threads, BF16)
    assert (found.record.batch, found.record.threads) == (batch, threads)
    return found.record.choices[SHAPE], found.seconds > 0


def test_the_convolutions_of_a_student() -> None:
    model = build_model(ModelSettings(name="vgg8", width=0.125), 10, 1, seed=0)
    passes = record_passes(BF16.place(model), Teachers((), BF16, 4), BF16, (1, 32, 32))
    every = frozenset(PASSES)
    assert passes == {
        Convolution(1, 32, 32, 8, torch.float32): every - {"input_gradient"},
        Convolution(8, 16, 16, 16, torch.float32): every,
        Convolution(16, 8, 8, 32, torch.float32): every,
        Convolution(32, 4, 4, 64, torch.float32): every,
        Convolution(64, 4, 4, 64, torch.float32): every,
    }


def test_those_of_other_kernels_and_strides() -> None:
    model = build_model(ModelSettings(name="resnet8x4", width=0.25), 10, 3, seed=0)
    passes = record_passes(BF16.place(model), Teachers((), BF16, 4), BF16, (3, 32, 32))
    assert {(shape.in_channels, shape.height, shape.kernel, shape.stride) for shape in passes} == {
        (3, 32, 3, 1),
        *((8, 32, *kind) for kind in ((3, 1), (1, 1))),
        *((16, 32, *kind) for kind in ((3, 1), (3, 2), (1, 2))),
        *((32, 16, *kind) for kind in ((3, 1), (3, 2), (1, 2))),
        (64, 8, 3, 1),
    }


# The user's cache.


def test_a_measurement_is_kept_for_its_batch_and_threads(cache: Path) -> None:
    assert measure()[1]
    (file,) = cache.glob("*.json")
    for algorithms in (FORCED, TORCH):  # one of them is not what was measured
        write_algorithms(file, algorithms)
        assert measure() == (algorithms, False)
    assert measure(batch=5)[1]
    assert measure(threads=2)[1]
    assert measure() == (TORCH, False)
    other = {**WANTED, SHAPE._replace(height=4): frozenset({"forward"})}
    found = find_measured(other, 4, 1, BF16)
    assert found.seconds > 0
    assert found.record.choices.keys() == other.keys()
    assert found.record.choices[SHAPE] == TORCH


@pytest.mark.parametrize("damage", ["cut", "other value", "other machine", "no JSON"])
def test_a_file_that_is_damaged_is_measured_anew(cache: Path, damage: str) -> None:
    measure()
    (file,) = cache.glob("*.json")
    content = file.read_text()
    values: dict[str, Any] = json.loads(content)
    values.pop("sha256")
    values["machine"]["torch"] = "0"
    file.write_text(
        {
            "cut": content[: len(content) // 2],
            "other value": content.replace('"height": 8', '"height": 9'),
            "other machine": to_checked_json(values),
            "no JSON": "\0",
        }[damage]
    )
    assert measure()[1]
    assert not measure()[1]


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="there is no folder to refuse")
def test_a_cache_that_cannot_be_written_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")  # where not even root can make a folder
    with pytest.warns(Notice, match="cannot be kept for later runs") as warned:
        assert measure()[1]
    assert len(warned) == 1


# Runs.


def bf16_recipe(**tables: Any) -> Any:
    return recipe("ce", precision="bf16", **tables)


@pytest.mark.parametrize(
    ("tables", "measured"),
    [
        ({"convolutions": "measured"}, True),
        ({"convolutions": "torch", "epochs": 1000}, False),
        ({"convolutions": "measured", "precision": "fp32"}, False),
        ({"epochs": 166}, False),  # of 6 batches
        ({"epochs": 167}, True),
    ],
)
def test_which_runs_measure(tables: dict[str, Any], measured: bool, tmp_path: Path) -> None:
    settings = recipe("ce", **{"precision": "bf16", "data": {"batch_size": 64}, **tables})
    compute = Compute(torch.device("cpu"), torch.float32 if settings.precision == "fp32" else torch.bfloat16)
    run = Trainer(settings, few_images(), compute, RunFolder(tmp_path / "run"))
    assert bool(run.convolutions.choices) == measured
    assert (tmp_path / "cache").exists() == measured


@needs_taps
def test_a_run_goes_on_by_the_algorithms_that_it_began_with(tmp_path: Path, cache: Path) -> None:
    """Even if those in the cache are others by now, and is evaluated by them."""
    settings, run = bf16_recipe(convolutions="measured"), RunFolder(tmp_path / "run")
    Trainer(settings, open_dataset(settings.data), BF16, RunFolder(tmp_path / "other"))  # writes the cache
    (file,) = cache.glob("*.json")
    write_algorithms(file, FORCED)
    summary = api.train(settings, run.path)
    (event,) = (event for event in log(run.path) if event["event"] == "convolutions")
    assert (event["passes"], event["seconds"]) == ({"taps": 5, "torch": 14}, 0)
    assert set(run.read_convolutions().choices.values()) == {FORCED}
    student = run.student.read_bytes()

    write_algorithms(file, TORCH)
    run.student.unlink()
    run.summary.unlink()
    run.checkpoint_files()[-1].unlink()
    assert api.resume(run.path)["test_nll"] == summary["test_nll"]
    assert run.student.read_bytes() == student
    assert api.evaluate(run.path, device="cpu", precision="bf16")["test_nll"] == summary["test_nll"]

    students = {}
    for name, option in (("cached", "measured"), ("off", "torch")):
        api.train(bf16_recipe(convolutions=option), tmp_path / name)
        students[name] = RunFolder(tmp_path / name).student.read_bytes()
    assert students["cached"] == students["off"] != student


@needs_taps
def test_an_algorithm_that_is_gone_is_said_when_a_run_goes_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    api.train(bf16_recipe(convolutions="measured"), run.path)
    write_algorithms(run.convolutions, Algorithms("torch", "torch", "gone"))
    run.summary.unlink()
    run.checkpoint_files()[-1].unlink()
    with pytest.warns(Notice, match=r"algorithms that this machine has not \(gone\)"):
        api.resume(run.path)
    assert set(run.read_convolutions().passes) == {"gone", "torch"}  # it is still what the run began with

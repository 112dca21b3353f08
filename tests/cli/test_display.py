"""What a person reads while a run goes on."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from tfkd_fast.cli import display
from tfkd_fast.cli.display import Display
from tfkd_fast.events import (
    EpochEnded,
    Event,
    GradeStarted,
    PathwaysWeighed,
    RunStarted,
    StepsCompiled,
    TeachersWeighed,
)
from tfkd_fast.ops import backends
from tfkd_fast.ops.native import NativeLibrary

START = RunStarted(
    method="ce",
    model="vgg8",
    parameters=62_330,
    dataset="digits",
    train_images=1000,
    holdout_images=200,
    seed=0,
    epochs=4,
    device="cpu",
    device_name="CPU",
    precision="fp32",
    loader="resident",
    ops="cpp",
    candidates=1,
    version="0.1.0",
    torch="2.14.1",
    classes=("0", "1"),
)
EPOCH = EpochEnded(
    epoch=1,
    candidate=0,
    train_loss=1.0,
    train_top1=50.0,
    learning_rate=0.1,
    images_per_second=100.0,
    holdout=None,
)


def shown(*events: Event) -> list[str]:
    """The lines that are printed of a run, without the two that every run begins with."""
    text = io.StringIO()
    with Display(Console(file=text, width=200)) as listener:
        for event in (START, *events):
            listener.event(event)
    return text.getvalue().splitlines()[2:]


@pytest.mark.parametrize(
    ("serving", "missing", "said"),
    [("reference", "it is not built", 1), ("reference", None, 0), ("cuda", "it is not built", 0)],
)
def test_the_slow_operators_are_told_once(
    monkeypatch: pytest.MonkeyPatch, serving: str, missing: str | None, said: int
) -> None:
    monkeypatch.setattr(backends, "native_library", NativeLibrary(missing, ""))
    text = io.StringIO()
    with Display(Console(file=text, width=200)) as listener:
        listener.event(START.model_copy(update={"ops": serving}))
        listener.event(EPOCH)
    assert text.getvalue().count("The slow operators serve (plain PyTorch), because it is not built\n") == said


@pytest.mark.parametrize("saw", [False, True, None])
def test_the_teachers_are_named_at_the_start(saw: bool | None) -> None:
    (line,) = shown(START.model_copy(update={"teachers": ("deep", "wide"), "teachers_saw_holdout": saw}))[2:]
    assert line == "taught by deep, wide" + " · trained on images that are held out here" * bool(saw)


def test_what_happens_to_image_files_is_said_at_the_start() -> None:
    reading = "the largest centred square, upright, resized to 32 x 32"
    assert shown(START.model_copy(update={"reading": reading}))[2] == f"of each image file: {reading}"
    assert not any("image file" in line for line in shown())


def test_grades_pathways_and_weights_of_teachers_take_a_line_each() -> None:
    grade = GradeStarted(grade=2, first_epoch=3, epochs=2, stages=3, labels=(0, 1, 2))
    names = ("0>0", "0>1", "0>2", "1>1", "1>2")
    pathways = PathwaysWeighed(epoch=1, names=names, weights=(0.1, 0.0, 0.25, 0.1, 0.4))
    teachers = TeachersWeighed(
        epoch=1, names=("a", "b"), logit_weights=(0.25, 0.75), feature_weights=(0.5, 0.5), updates=3, skipped=0
    )
    assert shown(grade, pathways, teachers) == [
        "grade 2 · epochs 3 to 4 · 3 stages · 3 classes",
        "pathways 4 of 5 · 1>2 0.400 · 0>2 0.250 · 0>0 0.100",
        "  weights of predictions a 0.25 b 0.75 · of features a 0.50 b 0.50",
    ]


def test_the_time_left_counts_training_only_and_the_images_that_an_epoch_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(display, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    text = io.StringIO()
    with Display(Console(file=text, width=200, force_terminal=True)) as listener:
        listener.event(START)
        clock.now += 1000.0  # what a method prepares
        listener.event(StepsCompiled(epoch=1, seconds=1000.0))  # of which nothing is shown
        clock.now += 2.0
        listener.batch(200)  # 100 images a second
        assert listener.status.endswith("0:00:38 left")  # 3,800 of four epochs of 1,000
        clock.now += 3.0
        listener.batch(300)
        clock.now += 500.0  # evaluation
        listener.event(EPOCH)
        clock.now += 1.0
        listener.batch(100)
        assert listener.status.endswith("0:00:14 left")  # 1,400 of three epochs of 500

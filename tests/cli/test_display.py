"""What a person reads while a run goes on."""

import io
import math
from types import SimpleNamespace

import pytest

from tests.cli.screen import Screen, lines_on_screen
from tfkd_fast.cli import display
from tfkd_fast.cli.display import LINES, Display
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.events import (
    CandidateDiverged,
    CandidateSelected,
    CandidateTarget,
    EpochEnded,
    Event,
    GradeStarted,
    HoldoutFigures,
    PathwaysWeighed,
    RunResumed,
    RunStarted,
    StepsCompiled,
    TargetsDecided,
    TeachersWeighed,
)
from tfkd_fast.ops import backends
from tfkd_fast.ops.native import NativeLibrary

FACTS = {
    "method": "ce",
    "model": "vgg8",
    "parameters": 62_330,
    "dataset": "digits",
    "train_images": 1000,
    "holdout_images": 200,
    "seed": 0,
    "epochs": 4,
    "planned_student_epochs": 4,
    "device": "cpu",
    "device_name": "CPU",
    "precision": "fp32",
    "loader": "resident",
    "ops": "cpp",
    "candidates": 1,
    "version": "0.1.0",
    "torch": "2.14.1",
}
START = RunStarted(**FACTS, classes=("0", "1"))
EPOCH = EpochEnded(
    epoch=1,
    candidate=0,
    train_loss=1.0,
    train_top1=50.0,
    learning_rate=0.1,
    images_per_second=100.0,
    student_epochs=1,
    holdout=None,
)
ENTERED = 3
"""Lines that every run begins with."""


def shown(*events: Event) -> list[str]:
    """The lines that are printed of a run, without those that every run begins with."""
    text = io.StringIO()
    with Display(Terminal(text)) as listener:
        for event in (START, *events):
            listener.event(event)
    return text.getvalue().splitlines()[ENTERED:]


@pytest.mark.parametrize(
    ("serving", "missing", "said"),
    [("reference", "it is not built", 1), ("reference", None, 0), ("cuda", "it is not built", 0)],
)
def test_the_slow_operators_are_told_once(
    monkeypatch: pytest.MonkeyPatch, serving: str, missing: str | None, said: int
) -> None:
    monkeypatch.setattr(backends, "native_library", NativeLibrary(missing, ""))
    text = io.StringIO()
    with Display(Terminal(text)) as listener:
        listener.event(START.model_copy(update={"ops": serving}))
        listener.event(EPOCH)
    assert text.getvalue().count("The slow operators serve (plain PyTorch), because it is not built\n") == said


@pytest.mark.parametrize("saw", [False, True, None])
def test_the_teachers_are_named_at_the_start(saw: bool | None) -> None:
    line, _ = shown(START.model_copy(update={"teachers": ("deep", "wide"), "teachers_saw_holdout": saw}))[2:]
    assert line == "taught by deep, wide" + " · trained on images that are held out here" * bool(saw)


def test_what_happens_to_image_files_is_said_at_the_start() -> None:
    words = {"parts": "there is no test/", "reading": "the largest centred square, upright, resized to 32 x 32"}
    lines = shown(START.model_copy(update=words))
    assert lines[2:4] == [words["parts"], f"of each image file: {words['reading']}"]
    assert not any("image file" in line for line in shown())


def test_grades_take_a_line_each_and_weights_one_below_the_epoch() -> None:
    grade = GradeStarted(grade=2, first_epoch=3, epochs=2, stages=3, labels=(0, 1, 2))
    names = ("0>0", "0>1", "0>2", "1>1", "1>2")
    pathways = PathwaysWeighed(epoch=1, names=names, weights=(0.1, 0.0, 0.25, 0.1, 0.4))
    teachers = TeachersWeighed(
        epoch=1, names=("a", "b"), logit_weights=(0.25, 0.75), feature_weights=(0.5, 0.5), updates=3, skipped=0
    )
    line = "epoch 1/4 · loss 1.000 · train 50.0 %"
    assert shown(EPOCH, pathways, grade) == [
        line,
        "  pathways 4 of 5 · 1>2 0.400 · 0>2 0.250 · 0>0 0.100",
        "grade 2 · epochs 3 to 4 · 3 stages · 3 classes",
    ]
    assert shown(EPOCH, teachers) == [line, "  weights of predictions a 0.25 b 0.75 · of features a 0.50 b 0.50"]


def test_a_candidate_that_diverged_is_named_and_never_the_best() -> None:
    lost = EPOCH.model_copy(update={"train_loss": math.nan, "train_top1": math.nan})
    sound = EPOCH.model_copy(update={"candidate": 1})
    reason = "the loss became nan in epoch 1, step 2"
    assert shown(CandidateDiverged(epoch=1, candidate=0, reason=reason), lost, sound) == [
        f"candidate 0 is left out from here on: {reason}",
        "epoch 1/4 · loss 1.000 · train 50.0 % · best c1 of 2",
    ]


def run_of(candidates: int, listener: Display, clock: SimpleNamespace, epochs: int = 240) -> None:
    """A run in which an epoch of one candidate takes a second; the last candidate is the best, and wins."""
    facts = {"epochs": epochs, "planned_student_epochs": epochs * candidates, "candidates": candidates}
    listener.event(START.model_copy(update=facts))
    target = {"role": "sample", "action": (), "true_mass": 0.9, "divergence": 0.1, "mass_by_rank": (0.9, 0.1)}
    targets = (CandidateTarget(**target),) * candidates
    for epoch in range(1, epochs + 1):
        if candidates > 1:
            listener.event(
                TargetsDecided(interval=epoch, first_epoch=epoch, epochs=1, action_names=("a",), candidates=targets)
            )
        for _ in range(4):
            clock.now += candidates / 4
            listener.batch(250 * candidates)
        for slot in range(candidates):
            holdout = HoldoutFigures(top1=40.0 + slot, nll=1.5, calibrated_nll=1.4, temperature=1.1, ece=0.1)
            changes = {"epoch": epoch, "candidate": slot, "student_epochs": epoch * candidates, "holdout": holdout}
            listener.event(EPOCH.model_copy(update=changes))
        if candidates > 1:
            order = tuple(reversed(range(candidates)))
            listener.event(
                CandidateSelected(
                    interval=epoch, epoch=epoch, criteria=("holdout-nll",), higher_is_better=(False,),
                    values=((1.5,),) * candidates, ranks=((1.0,),) * candidates, aggregate="borda",
                    scores=(1.0,) * candidates, order=order, winner=order[0],
                )
            )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(display, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.mark.parametrize("candidates", [1, 4])
def test_a_long_run_is_told_in_a_few_lines(candidates: int, clock: SimpleNamespace) -> None:
    text = io.StringIO()
    with Display(Terminal(text)) as listener:
        run_of(candidates, listener, clock)
    lines = text.getvalue().splitlines()[ENTERED - 1 :]
    cost = ", up to 960 student-epochs" * (candidates > 1)
    assert lines[0] == f"plan: 240 epochs{cost}; the time is measured in the first epoch"
    assert lines[1] == f"plan: 240 epochs{cost}, about {239 * candidates / 60:.0f} min at this speed"
    assert len(lines) == 2 + 1 + LINES
    more = " · winner c3 of 4 · true-class mass 0.900" * (candidates > 1)
    figures = f"loss 1.000 · train 50.0 % · held-out {40 + candidates - 1}.0 % · NLL 1.500{more}"
    assert lines[3] == f"epoch 12/240 · {figures} · {228 * candidates / 60:.0f} min left"
    assert lines[-1] == f"epoch 240/240 · {figures}"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("candidates", [1, 4])
def test_on_a_terminal_one_block_is_updated_below_the_lines(
    candidates: int, width: int, clock: SimpleNamespace
) -> None:
    screen = Screen()
    with Display(Terminal(screen, width=width)) as listener:
        run_of(candidates, listener, clock, epochs=20)
        during = lines_on_screen(screen.getvalue())
    after = lines_on_screen(screen.getvalue())
    for lines in (during, after):
        assert max(map(len, lines)) <= width
    block = during[next(i for i, line in enumerate(during) if line.startswith("epoch 20/20 ━")) :]
    assert "1,000 images/s" in block[0]
    assert block[1].split() == ["epoch", "19", "loss", "train", "%", "held-out", "%", "NLL"] + (
        ["true", "mass", "role"] if candidates > 1 else []
    )
    assert [line.split()[0] for line in block[2 : 2 + candidates]] == [f"c{slot}" for slot in range(candidates)]
    assert sum(line.startswith("epoch ") for line in after) == 20
    assert not any("━" in line for line in after)
    if candidates > 1:
        assert block[2 + candidates] == "ranking after epoch 19: c3 > c2 > c1 > c0"


def test_a_run_that_goes_on_counts_what_is_left(clock: SimpleNamespace) -> None:
    text = io.StringIO()
    with Display(Terminal(text)) as listener:
        listener.event(RunResumed(**FACTS | {"epochs": 40, "planned_student_epochs": 80}, epoch=10, student_epochs=20))
        clock.now += 4.0
        listener.batch(2000)
        for slot in range(2):
            listener.event(EPOCH.model_copy(update={"epoch": 11, "candidate": slot, "student_epochs": 22}))
    assert text.getvalue().splitlines()[1:3] == [
        "plan: 40 epochs, up to 80 student-epochs, 20 of these trained",
        "plan: 40 epochs, up to 80 student-epochs, about 2 min left at this speed",
    ]


def test_the_time_left_leaves_out_what_is_not_repeated(clock: SimpleNamespace) -> None:
    with Display(Terminal(io.StringIO())) as listener:
        listener.event(START)
        clock.now += 1000.0  # what a method prepares
        listener.event(PathwaysWeighed(epoch=1, names=(), weights=()))
        clock.now += 2.0
        listener.batch(200)
        assert listener.status() == "100 images/s · 38 s left"  # 3,800 of four epochs of 1,000
        clock.now += 508.0  # 500 to compile
        listener.batch(800)
        listener.event(StepsCompiled(epoch=1, seconds=500.0))
        clock.now += 2.0  # evaluation
        listener.event(EPOCH)
        assert listener.status() == "36 s left"  # three times 12
        clock.now += 5.0
        listener.batch(500)
        assert listener.status() == "100 images/s · 30 s left"

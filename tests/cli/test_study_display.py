"""What a person sees of a study: its runs while they train, and its table in the width that there is."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.screen import Screen, lines_on_screen
from tfkd_fast.cli import study as command
from tfkd_fast.cli.study import StudyDisplay, tables
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.events import EpochEnded, to_line
from tfkd_fast.study import Run, StudyFolder
from tfkd_fast.study.plan import make_study
from tfkd_fast.study.results import HEADINGS

FIGURES = ("3/3", "44.14 ± 10.30", "+12.34 [-10.71, +14.71]", "0.295", "1,200", "140.00", "12.500", "0.100", "12,345")
NAMES = ("cross-entropy", "a free-form target and multi-ranking selection", "名前 of another width", "x\x1b[2J\ny")


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_no_word_and_no_number_of_a_table_is_cut(width: int) -> None:
    text = io.StringIO()
    terminal = Terminal(text, width=width)
    for table in tables([(name, *FIGURES) for name in NAMES], width):
        terminal.print(table, width=width)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for figure in FIGURES:
        assert sum(figure in line for line in lines) == len(NAMES)
    words = " ".join(lines).split()
    for word in " ".join((*NAMES[:3], *HEADINGS)).split():
        assert word in words
    assert "\x1b" not in text.getvalue()


@pytest.mark.parametrize(("width", "parts"), [(80, 2), (120, 1), (160, 1)])
def test_one_table_where_there_is_room_and_else_what_is_compared_first(width: int, parts: int) -> None:
    found = tables([(name, *FIGURES) for name in NAMES[:2]], width)
    assert len(found) == parts
    headings = [str(column.header) for column in found[0].columns]
    assert headings[:5] == ["row", "seeds", "test top-1, %", "difference [95 %]", "p, Holm"]


STUDY = """
seeds = [0]
baseline = "ce"
[base]
epochs = 40
[rows.ce]
title = "cross-entropy"
method = "ce"
[rows.mrs]
method = "tfkd-mrs"
selection.candidates = 4
[rows.again]
replay = "mrs"
"""


def test_a_study_knows_the_cost_of_its_rows() -> None:
    study = make_study("s", STUDY)
    assert [study.cost(row) for row in study.rows.values()] == [(40, 40), (40, 5 + 35 * 4), (40, 40)]


@pytest.mark.parametrize("make", [Screen, io.StringIO])
def test_the_runs_are_shown_while_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: type[io.StringIO]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(command, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    study, folder = make_study("s", STUDY), StudyFolder(tmp_path)
    runs = [Run(row, 0) for row in study.rows.values()]
    runner = SimpleNamespace(waiting=runs, running=runs[:2])
    file = make()
    with StudyDisplay(Terminal(file, width=80), study, folder) as display:
        display.start(runner)
        for epoch in range(1, 41):
            clock.now += 6.0
            for run in runs[:2]:
                write_epoch(folder.run(run).path, epoch)
            display.look()
            if epoch == 20:
                during = lines_on_screen(file.getvalue())
        runner.running = []
        display.end_run(runs[1], "it diverged")
    text = file.getvalue()
    lines = [line for line in (lines_on_screen(text) if make is Screen else text.splitlines()) if line]
    (first,) = (line for line in lines if line.startswith("seed 0 · mrs · failed"))
    said = [
        "plan: 3 runs, 120 epochs, up to 225 student-epochs; the time is measured in the first epochs",
        "plan: 3 runs, 120 epochs, up to 225 student-epochs, about 11 min left at this speed",  # 3 s for each of 221
    ]
    assert re.sub(r"\s+", " ", " ".join(lines)).startswith(" ".join(said))
    assert re.match(
        "seed 0 · mrs · failed: it diverged · 1 of 3 runs ended, .* left", " ".join(lines[lines.index(first) :])
    )
    if make is Screen:
        during = [line for line in during if line]
        assert max(map(len, during)) <= 80
        assert during[-3] == "0 of 3 runs ended · 17 % trained · 9 min left"
        assert re.fullmatch(r"seed 0 · cross-entropy +━+.* epoch 20/40", during[-2])
        assert not any("━" in line for line in lines)
    else:
        assert "\x1b" not in text
        assert sum(" % · seed 0 cross-entropy epoch " in line for line in lines) == 3  # at 10, 20 and 30 %


def test_runs_side_by_side_have_the_speed_of_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(command, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    study, folder = make_study("s", STUDY), StudyFolder(tmp_path)
    runs = [Run(row, 0) for row in study.rows.values()]
    file = io.StringIO()
    with StudyDisplay(Terminal(file, width=200), study, folder) as display:
        display.start(SimpleNamespace(waiting=runs, running=runs[:2]))
        for epoch in (1, 2, 3):
            for run, late in zip(runs[:2], (0.0, 2.0), strict=True):  # seconds; an epoch takes 100
                clock.now = 100.0 * epoch + late
                write_epoch(folder.run(run).path, epoch)
                display.look()
    (said,) = [line for line in file.getvalue().splitlines() if "left at this speed" in line]
    assert said.endswith("about 3 h 4 min left at this speed")  # 225 - 4 student-epochs, two in 100 s


def write_epoch(path: Path, epoch: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    event = EpochEnded(
        epoch=epoch, candidate=0, learning_rate=0.1, train_loss=1.0, train_top1=50.0, images_per_second=1.0,
        student_epochs=epoch, holdout=None,
    )  # fmt: skip
    with (path / "metrics.jsonl").open("a") as log:
        log.write(to_line(event, 1.0, 1) + "\n")

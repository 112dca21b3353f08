"""The log while it is written: its lines, its listeners, its clock, and what a run that goes on keeps of it."""

from pathlib import Path

import pytest

from tests.support.runs import recipe
from tfkd_fast import api
from tfkd_fast.errors import UserError
from tfkd_fast.events import Event, PathwaysWeighed, StepsCompiled
from tfkd_fast.runs.log import PARTS, Listener, RunLog, read_log, whole_bytes


class Hears(Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)


class Counts(Listener):
    """Hears of batches only."""

    def __init__(self) -> None:
        self.images = 0

    def batch(self, images: int) -> None:
        self.images += images


FIRST = StepsCompiled(epoch=1, seconds=0.5)
SECOND = PathwaysWeighed(epoch=1, names=("0>1",), weights=(0.25,))


def test_lines_and_listeners_get_the_same_events(tmp_path: Path) -> None:
    hears, counts = Hears(), Counts()
    log = RunLog(tmp_path / "metrics.jsonl", [hears, counts])
    log.write(FIRST, SECOND)
    log.batch(64)
    log.batch(32)
    log.close()
    lines = read_log(tmp_path / "metrics.jsonl")
    assert [line.event for line in lines] == hears.events == [FIRST, SECOND]
    assert 0 <= lines[0].seconds <= lines[1].seconds
    assert counts.images == 96


def test_a_log_is_cut_back_to_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RunLog(path, [])
    log.write(FIRST)
    kept, seconds = log.sync(), log.elapsed()
    log.write(FIRST)
    log.close()
    log = RunLog(path, [], keep=kept, earlier_seconds=1000.0 + seconds, seconds={"training": 7.0})
    log.write(SECOND)
    log.close()
    first, second = read_log(path)
    assert (first.event, second.event) == (FIRST, SECOND)
    assert second.seconds >= 1000.0
    assert log.seconds == dict.fromkeys(PARTS, 0.0) | {"training": 7.0}


def test_a_log_that_holds_its_run_twice_is_refused(tmp_path: Path) -> None:
    api.train(recipe("ce", epochs=1), tmp_path)
    path = tmp_path / "metrics.jsonl"
    once = path.read_bytes()
    path.write_bytes(once + once)
    second = once.count(b"\n") + 1
    with pytest.raises(UserError, match=f"line {second} of .* begins a run anew: delete it and all"):
        read_log(path)


def written(path: Path) -> list[bytes]:
    """The lines of a log of six events."""
    log = RunLog(path, [])
    log.write(*(StepsCompiled(epoch=epoch, seconds=0.5) for epoch in range(6)))
    log.close()
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("order", "fault"),
    [
        ((0, 1, 3, 4, 5), r"line 3 of .* is line 4 of the run"),  # lost
        ((0, 1, 1, 2, 3, 4, 5), r"line 3 of .* is line 2 of the run"),  # repeated
        ((0, 1, 2, 3, 4, 5, 4, 5), r"line 7 of .* is line 5 of the run"),  # the end repeated
        ((0, 2, 1, 3, 4, 5), r"line 2 of .* is line 3 of the run"),  # moved
        ((1, 2, 3, 4, 5), r"line 1 of .* is line 2 of the run"),  # the beginning lost
    ],
)
def test_lines_that_were_lost_repeated_or_moved_are_refused(tmp_path: Path, order: tuple[int, ...], fault: str) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines[place] for place in order))
    for read in (read_log, lambda path: whole_bytes(path, path.stat().st_size)):  # for a report, and for a resume
        with pytest.raises(UserError, match=f"{fault}: put every line back in its place"):
            read(path)


def test_an_empty_line_stands_for_one_that_was_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = written(path)
    path.write_bytes(b"".join([*lines[:2], b"\n", *lines[3:]]))
    assert [line.number for line in read_log(path)] == [1, 2, 4, 5, 6]
    log = RunLog(path, [], keep=whole_bytes(path, path.stat().st_size))
    log.write(FIRST)
    log.close()
    assert [line.number for line in read_log(path)] == [1, 2, 4, 5, 6, 7]


def test_a_new_log_replaces_an_old_one(tmp_path: Path) -> None:
    for _ in range(2):
        log = RunLog(tmp_path / "metrics.jsonl", [])
        log.write(FIRST)
        log.close()
    assert len(read_log(tmp_path / "metrics.jsonl")) == 1


def test_seconds_are_counted_by_part_also_where_a_block_fails(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl", [])
    with pytest.raises(KeyboardInterrupt), log.measure_seconds("saving"):
        raise KeyboardInterrupt
    with log.measure_seconds("steering"):
        pass
    log.close()
    assert log.seconds["saving"] > 0
    assert log.seconds["steering"] > 0
    assert log.seconds["evaluation"] == 0


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        UserError,
        match=r"cannot write .*metrics\.jsonl: .*what was there before is untouched: make it writable, then go on",
    ):
        RunLog(tmp_path / "metrics.jsonl", [])


def test_what_a_kill_or_a_power_cut_left_of_a_line_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert whole_bytes(path, 100) == 0
    log = RunLog(path, [])
    log.write(FIRST)
    first = log.sync()
    log.write(SECOND)
    both = log.sync()
    log.close()
    content = path.read_bytes()
    assert whole_bytes(path, both) == whole_bytes(path, both + 100) == both
    for limit in (first, both - 1):
        assert whole_bytes(path, limit) == first
    for damaged in (content[:-5], content[:first] + b"\0" * 20):
        path.write_bytes(damaged)
        assert whole_bytes(path, both) == first


def test_nothing_is_cut_off_behind_a_damaged_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = written(path)
    damaged = [*lines[:2], lines[2].replace(b"0.5", b"0.6"), *lines[3:]]
    path.write_bytes(b"".join(damaged))
    with pytest.raises(UserError, match=r"line 3 of .* is damaged \(its checksum is wrong\): empty it, but keep its"):
        whole_bytes(path, path.stat().st_size)
    damaged[2] = b"\n"  # as the sentence says
    path.write_bytes(b"".join(damaged))
    assert whole_bytes(path, path.stat().st_size) == len(b"".join(damaged))

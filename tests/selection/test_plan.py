"""When candidates run: intervals tile the run, and events begin where they should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfkd_fast.selection import SelectionSettings, next_interval

Tiles = list[tuple[int, int, int]]


def tile(epochs: int, warmup: int, settings: SelectionSettings, single_interval: int = 1) -> Tiles:
    """(first epoch, epochs, candidates) of every interval of a run."""
    epoch, tiles = 0, []
    while epoch < epochs:
        length, candidates = next_interval(epoch, epochs, warmup, settings, single_interval)
        tiles.append((epoch, length, candidates))
        epoch += length
    return tiles


def test_no_budget_trains_one_student() -> None:
    assert tile(10, 3, SelectionSettings(), 4) == [(0, 3, 1), (3, 4, 1), (7, 3, 1)]


def test_full_budget_selects_back_to_back_after_the_warmup() -> None:
    settings = SelectionSettings(budget="full", candidates=3, interval=4)
    assert tile(12, 2, settings) == [(0, 2, 1), (2, 4, 3), (6, 4, 3), (10, 2, 3)]
    assert tile(4, 0, settings) == [(0, 4, 3)]


def test_probe_budget_of_the_reference_recipe() -> None:
    tiles = tile(240, 5, SelectionSettings(budget="probe"))
    events = [(first, length) for first, length, candidates in tiles if candidates == 4]
    assert events == [(first, 5) for first in (30, 60, 90, 120, 145, 165, 195, 225)]
    assert sum(length * candidates for _, length, candidates in tiles) == 240 + 3 * 5 * 8  # 1.5 times one student
    assert all(length == 1 for first, length, candidates in tiles if candidates == 1 and first >= 5)


def test_probe_events_cut_single_intervals_short() -> None:
    settings = SelectionSettings(budget="probe", candidates=2, interval=3, events=(0.45, 0.9))
    assert tile(20, 2, settings, 4) == [(0, 2, 1), (2, 4, 1), (6, 3, 1), (9, 3, 2), (12, 4, 1), (16, 2, 1), (18, 2, 2)]


def test_probe_events_wait_for_the_warmup_and_for_each_other() -> None:
    settings = SelectionSettings(budget="probe", candidates=2, interval=3, events=(0.0, 0.1, 0.5))
    assert tile(20, 4, settings, 8) == [(0, 4, 1), (4, 3, 2), (7, 3, 2), (10, 3, 2), (13, 7, 1)]


def test_probe_event_begins_at_the_first_epoch_no_less_than_its_fraction() -> None:
    settings = SelectionSettings(budget="probe", candidates=2, interval=1, events=(0.34,))
    assert tile(10, 0, settings, 10) == [(0, 4, 1), (4, 1, 2), (5, 5, 1)]
    decimal = settings.model_copy(update={"events": (0.07,)})
    assert 0.07 * 100 > 7  # in floating point
    assert tile(100, 0, decimal, 100) == [(0, 7, 1), (7, 1, 2), (8, 92, 1)]


def test_a_warmup_longer_than_the_run_is_the_run() -> None:
    assert tile(3, 5, SelectionSettings(budget="full")) == [(0, 3, 1)]


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, SelectionSettings, int]:
    settings = SelectionSettings(
        budget=draw(st.sampled_from(["none", "full", "probe"])),
        candidates=draw(st.integers(2, 5)),
        interval=draw(st.integers(1, 12)),
        events=tuple(sorted(draw(st.sets(st.floats(0, 0.999), min_size=1, max_size=9)))),
    )
    return draw(st.integers(1, 300)), draw(st.integers(0, 20)), settings, draw(st.integers(1, 12))


@given(runs())
def test_intervals_tile_the_run(run: tuple[int, int, SelectionSettings, int]) -> None:
    epochs, warmup, settings, single_interval = run
    tiles = tile(epochs, warmup, settings, single_interval)
    assert all(length >= 1 for _, length, _ in tiles)
    assert [e for first, length, _ in tiles for e in range(first, first + length)] == list(range(epochs))
    for first, length, candidates in tiles:
        if first < warmup:
            assert candidates == 1
            assert first + length <= max(warmup, 1)
        elif candidates == 1:
            assert settings.budget != "full"
            assert length <= single_interval
        else:
            assert settings.budget != "none"
            assert candidates == settings.candidates
            assert length == min(settings.interval, epochs - first)
    assert sum(candidates > 1 for _, _, candidates in tiles) <= (
        len(settings.events) if settings.budget == "probe" else epochs
    )


@pytest.mark.parametrize(
    ("epoch", "warmup", "single_interval", "message"),
    [
        (10, 0, 1, r"epoch must be in \[0, 10\)"),
        (-1, 0, 1, "epoch"),
        (0, -1, 1, "warmup"),
        (0, 0, 0, "single_interval"),
    ],
)
def test_refuses_an_epoch_outside_the_run(epoch: int, warmup: int, single_interval: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next_interval(epoch, 10, warmup, SelectionSettings(), single_interval)

"""When candidates run: intervals tile the run, and events begin where they should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tables import make_table
from tfkd_fast.steering.selection import PlannedInterval, SelectionSettings, max_candidates, next_interval
from tfkd_fast.steering.selection.settings import HalvingSelectionSettings

Plan = list[tuple[int, PlannedInterval]]
Tiles = list[tuple[int, int, int]]


def follow(epochs: int, warmup: int, settings: SelectionSettings, single_interval: int = 1) -> Plan:
    """(first epoch, interval) of every interval of a run."""
    epoch, plan = 0, []
    while epoch < epochs:
        plan.append((epoch, next_interval(epoch, epochs, warmup, settings, single_interval)))
        epoch += plan[-1][1].epochs
    return plan


def tile(epochs: int, warmup: int, settings: SelectionSettings, single_interval: int = 1) -> Tiles:
    """(first epoch, epochs, candidates) of every interval of a run."""
    plan = follow(epochs, warmup, settings, single_interval)
    return [(first, interval.epochs, interval.candidates) for first, interval in plan]


def test_no_budget_trains_one_student() -> None:
    assert tile(10, 3, make_table(SelectionSettings), 4) == [(0, 3, 1), (3, 4, 1), (7, 3, 1)]


def test_full_budget_selects_back_to_back_after_the_warmup() -> None:
    settings = make_table(SelectionSettings, budget="full", candidates=3, interval=4)
    assert tile(12, 2, settings) == [(0, 2, 1), (2, 4, 3), (6, 4, 3), (10, 2, 3)]
    assert tile(4, 0, settings) == [(0, 4, 3)]


def test_full_budget_can_begin_later() -> None:
    settings = make_table(SelectionSettings, budget="full", candidates=3, interval=4, start=0.45)
    assert tile(20, 2, settings, 3) == [(0, 2, 1), (2, 3, 1), (5, 3, 1), (8, 1, 1), (9, 4, 3), (13, 4, 3), (17, 3, 3)]
    assert tile(4, 3, settings) == [(0, 3, 1), (3, 1, 3)]


def test_an_interval_of_0_lasts_to_the_end_of_the_run() -> None:
    full = make_table(SelectionSettings, budget="full", candidates=2, interval=0)
    assert tile(20, 2, full) == [(0, 2, 1), (2, 18, 2)]
    probe = make_table(SelectionSettings, budget="probe", candidates=3, interval=0, events=(0.2, 0.6))
    assert tile(20, 2, probe, 9) == [(0, 2, 1), (2, 2, 1), (4, 16, 3)]


def test_probe_budget_of_the_reference_recipe() -> None:
    tiles = tile(240, 5, make_table(SelectionSettings, budget="probe"))
    events = [(first, length) for first, length, candidates in tiles if candidates == 4]
    assert events == [(first, 5) for first in (30, 60, 90, 120, 145, 165, 195, 225)]
    assert sum(length * candidates for _, length, candidates in tiles) == 240 + 3 * 5 * 8  # 1.5 times one student
    assert all(length == 1 for first, length, candidates in tiles if candidates == 1 and first >= 5)


def test_probe_events_cut_single_intervals_short() -> None:
    settings = make_table(SelectionSettings, budget="probe", candidates=2, interval=3, events=(0.45, 0.9))
    assert tile(20, 2, settings, 4) == [(0, 2, 1), (2, 4, 1), (6, 3, 1), (9, 3, 2), (12, 4, 1), (16, 2, 1), (18, 2, 2)]


def test_probe_events_wait_for_the_warmup_and_for_each_other() -> None:
    settings = make_table(SelectionSettings, budget="probe", candidates=2, interval=3, events=(0.0, 0.1, 0.5))
    assert tile(20, 4, settings, 8) == [(0, 4, 1), (4, 3, 2), (7, 3, 2), (10, 3, 2), (13, 7, 1)]


def test_probe_event_begins_at_the_first_epoch_no_less_than_its_fraction() -> None:
    settings = make_table(SelectionSettings, budget="probe", candidates=2, interval=1, events=(0.34,))
    assert tile(10, 0, settings, 10) == [(0, 4, 1), (4, 1, 2), (5, 5, 1)]
    decimal = settings.model_copy(update={"events": (0.07,)})
    assert 0.07 * 100 > 7  # in floating point
    assert tile(100, 0, decimal, 100) == [(0, 7, 1), (7, 1, 2), (8, 92, 1)]


def test_a_warmup_longer_than_the_run_is_the_run() -> None:
    assert tile(3, 5, make_table(SelectionSettings, budget="full")) == [(0, 3, 1)]


def test_a_halving_round_of_four() -> None:
    """8 candidates for 1 epoch, 4 for 2, 2 for 4: 7 epochs and 24 student-epochs; then the next round begins."""
    plan = follow(14, 0, make_table(SelectionSettings, budget="halving", candidates=4))
    rungs = [PlannedInterval(1, 8, True, 4), PlannedInterval(2, 4, False, 2), PlannedInterval(4, 2, False, 1)]
    assert plan == [*zip((0, 1, 3), rungs, strict=True), *zip((7, 8, 10), rungs, strict=True)]
    assert sum(interval.epochs * interval.candidates for _, interval in plan) == 2 * 24


def test_the_first_rung_sets_the_length_of_all() -> None:
    settings = make_table(SelectionSettings, budget="halving", candidates=2, halving_epochs=3)
    assert tile(11, 2, settings) == [(0, 2, 1), (2, 3, 4), (5, 6, 2)]


@pytest.mark.parametrize(
    ("epochs", "end"),
    [
        (17, [(14, 1, 1), (15, 1, 1), (16, 1, 1)]),  # the last rung would begin with the end of the run
        (18, [(14, 1, 8), (15, 2, 4), (17, 1, 2)]),  # one of its four epochs is left
        (21, [(14, 1, 8), (15, 2, 4), (17, 4, 2)]),
        (22, [(14, 1, 8), (15, 2, 4), (17, 4, 2), (21, 1, 1)]),
    ],
)
def test_what_does_not_fit_a_halving_round(epochs: int, end: Tiles) -> None:
    tiles = tile(epochs, 0, make_table(SelectionSettings, budget="halving"))
    assert [interval for interval in tiles if interval[0] >= 14] == end


@pytest.mark.parametrize(("budget", "most"), [("none", 1), ("full", 4), ("probe", 4), ("halving", 8)])
def test_the_most_candidates_are_those_of_the_largest_interval(budget: str, most: int) -> None:
    settings = make_table(SelectionSettings, budget=budget)
    assert max_candidates(settings) == most == max(candidates for _, _, candidates in tile(240, 5, settings))


@st.composite
def halving_runs(draw: st.DrawFn) -> tuple[int, int, HalvingSelectionSettings, int]:
    settings = HalvingSelectionSettings(
        budget="halving",
        candidates=draw(st.sampled_from([2, 4, 8, 16])),
        halving_epochs=draw(st.integers(1, 5)),
    )
    return draw(st.integers(1, 300)), draw(st.integers(0, 20)), settings, draw(st.integers(1, 12))


@given(halving_runs())
def test_halving_tiles_the_run_with_rounds(run: tuple[int, int, HalvingSelectionSettings, int]) -> None:
    epochs, warmup, settings, single_interval = run
    plan = follow(epochs, warmup, settings, single_interval)
    assert [e for first, i in plan for e in range(first, first + i.epochs)] == list(range(epochs))
    rungs = [interval for first, interval in plan if first >= warmup and interval.candidates > 1]
    singles = [interval for first, interval in plan if first >= warmup and interval.candidates == 1]
    after = [interval for first, interval in plan if first >= warmup]
    assert after == rungs + singles  # rounds back to back, then what is left
    assert all(i.starts_round and i.survivors == 1 and i.epochs <= single_interval for i in singles)
    for number, rung in enumerate(rungs):
        assert rung.survivors == rung.candidates // 2
        if rung.starts_round:
            assert rung.candidates == 2 * settings.candidates
            assert rung.epochs == settings.halving_epochs
        else:
            assert rung.candidates == rungs[number - 1].survivors
            last_of_run = not singles and number == len(rungs) - 1
            assert rung.epochs == 2 * rungs[number - 1].epochs or last_of_run
            assert rung.epochs <= 2 * rungs[number - 1].epochs
    if rungs:
        assert rungs[-1].survivors == 1  # every round ends with a winner
    # a round is given up only where its last rung, candidates * halving_epochs long, could not begin
    assert sum(i.epochs for i in singles) <= settings.halving_epochs * (settings.candidates - 1)


@given(halving_runs(), st.data())
def test_a_plan_may_be_entered_at_any_epoch(run: tuple[int, int, SelectionSettings, int], data: st.DataObject) -> None:
    """The rest of a halving rung is the rung, but no new round."""
    epochs, warmup, settings, _ = run
    epoch = data.draw(st.integers(0, epochs - 1))
    first, whole = [entry for entry in follow(epochs, warmup, settings, 1) if entry[0] <= epoch][-1]
    entered = next_interval(epoch, epochs, warmup, settings, 1)
    starts_round = whole.starts_round and (epoch == first or whole.candidates == 1)
    assert entered == whole._replace(epochs=first + whole.epochs - epoch, starts_round=starts_round)


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, SelectionSettings, int]:
    values: dict[str, object] = {"budget": draw(st.sampled_from(["none", "full", "probe"]))}
    if values["budget"] != "none":
        values |= {"candidates": draw(st.integers(2, 5)), "interval": draw(st.integers(0, 12))}
    if values["budget"] == "probe":
        values["events"] = sorted(draw(st.sets(st.floats(0, 0.999), min_size=1, max_size=9)))
    settings = make_table(SelectionSettings, values)
    return draw(st.integers(1, 300)), draw(st.integers(0, 20)), settings, draw(st.integers(1, 12))


@given(runs())
def test_intervals_tile_the_run(run: tuple[int, int, SelectionSettings, int]) -> None:
    epochs, warmup, settings, single_interval = run
    tiles = tile(epochs, warmup, settings, single_interval)
    assert all(i.starts_round and i.survivors == 1 for _, i in follow(epochs, warmup, settings, single_interval))
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
            assert length == min(settings.interval or epochs, epochs - first)
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
        next_interval(epoch, 10, warmup, make_table(SelectionSettings), single_interval)

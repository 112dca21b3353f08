"""Times of selection: a pure function of the epoch, so that a resumed run finds the same intervals."""

import math
from typing import NamedTuple

from tfkd_fast.steering.selection.settings import (
    FullSelectionSettings,
    HalvingSelectionSettings,
    NoSelectionSettings,
    ProbeSelectionSettings,
    SelectionSettings,
)


class PlannedInterval(NamedTuple):
    """An interval: the epochs until candidates are compared or, for a single student, until the next decision."""

    epochs: int
    """Number of epochs of the interval."""
    candidates: int
    """Number of candidates that train in the interval."""
    starts_round: bool = True
    """Whether a new decision is taken at its start; later rungs of successive halving keep that of the first."""
    survivors: int = 1
    """Number of candidates that continue after its end."""


def max_candidates(settings: SelectionSettings) -> int:
    """Return the largest number of candidates that any interval trains."""
    match settings:
        case NoSelectionSettings():
            return 1
        case FullSelectionSettings() | ProbeSelectionSettings():
            return settings.candidates
        case HalvingSelectionSettings():
            return 2 * settings.candidates


def next_interval(
    epoch: int, epochs: int, warmup: int, settings: SelectionSettings, single_interval: int
) -> PlannedInterval:
    """Return the interval that begins at `epoch`; consecutive intervals cover the run without gaps.

    The warm-up is one interval of one student. After it, budget "full" trains one student in intervals of
    `single_interval` epochs up to its start, which is the first epoch that is no less than its fraction of the run, and
    then candidates in consecutive intervals.
    Budget "probe" trains one student in intervals of `single_interval` epochs, cut short where an event begins: at the
    first epoch that is no less than the event's fraction of the run, or later, as soon as the warm-up and the events
    before it have ended. The last interval ends with the run.

    Budget "halving" runs consecutive rounds: with 4 candidates and 1 epoch, 8 train for 1 epoch, the best 4 of them
    for 2 more and the best 2 of these for 4 more. The run may end within the last rung of the last round, which is
    then cut short. A round that would end before its last rung does not begin: one student trains the remaining
    epochs as under budget "none".

    Args:
        epoch: first epoch of the interval, counted from 0.
        epochs: number of epochs of the run.
        warmup: number of epochs of the warm-up.
        settings: the `[selection]` table of the recipe.
        single_interval: epochs of an interval with one student.

    Raises:
        ValueError: the epoch is outside the run, the warm-up is negative, or the single interval is below 1.
    """
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch must be in [0, {epochs}), got {epoch}")
    if warmup < 0 or single_interval < 1:
        raise ValueError(f"warmup must be >= 0 and single_interval >= 1, got {warmup} and {single_interval}")
    if epoch < warmup:
        return PlannedInterval(min(warmup, epochs) - epoch, 1)
    single = PlannedInterval(min(single_interval, epochs - epoch), 1)
    match settings:
        case NoSelectionSettings():
            return single
        case FullSelectionSettings():
            until_start = _first_epoch(settings.start, epochs) - epoch
            if until_start > 0:
                return PlannedInterval(min(single.epochs, until_start), 1)
            return PlannedInterval(min(settings.interval or epochs, epochs - epoch), settings.candidates)
        case ProbeSelectionSettings():
            starts = _event_starts(epochs, warmup, settings)
            until_event = min((start - epoch for start in starts if start >= epoch), default=epochs)
            if until_event == 0:
                return PlannedInterval(min(settings.interval or epochs, epochs - epoch), settings.candidates)
            return PlannedInterval(min(single.epochs, until_event), 1)
        case HalvingSelectionSettings():
            return _rung(epoch - warmup, epochs - warmup, settings) or single


def _first_epoch(share: float, epochs: int) -> int:
    """Return the first epoch, counted from 0, that is no less than a share of the run."""
    return math.ceil(share * epochs - 1e-9)  # 0.07 * 100 is a little more than 7


def _event_starts(epochs: int, warmup: int, settings: ProbeSelectionSettings) -> list[int]:
    """Return the first epoch of each event; the last events may lie beyond the run."""
    starts: list[int] = []
    free_from = warmup
    for fraction in settings.events:
        starts.append(max(_first_epoch(fraction, epochs), free_from))
        free_from = starts[-1] + (settings.interval or epochs)
    return starts


def _rung(epoch: int, epochs: int, settings: HalvingSelectionSettings) -> PlannedInterval | None:
    """Return the rung that holds `epoch`, from there on; None where no round fits. Epochs count from the warm-up."""
    first, last = settings.halving_epochs, settings.halving_epochs * settings.candidates
    before_last, round_epochs = last - first, 2 * last - first  # sums of first, 2 first, 4 first, ...
    within = epoch % round_epochs
    if epochs - (epoch - within) <= before_last:
        return None
    candidates, end = 2 * settings.candidates, first
    while within >= end:
        candidates, end = candidates // 2, 2 * end + first
    return PlannedInterval(min(end - within, epochs - epoch), candidates, within == 0, candidates // 2)

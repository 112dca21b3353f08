"""When several candidates run: a pure function of the epoch, so that a resumed run finds the same intervals."""

import math
from typing import NamedTuple

from tfkd_fast.selection.settings import SelectionSettings


class PlannedInterval(NamedTuple):
    """The epochs until the next decision, and how many candidates train them."""

    epochs: int
    candidates: int


def next_interval(
    epoch: int, epochs: int, warmup: int, settings: SelectionSettings, single_interval: int
) -> PlannedInterval:
    """The interval that begins at `epoch` (0-based) of a run of `epochs`; followed to the end, intervals tile the run.

    The warm-up is one interval of one student. After it, budget "full" trains candidates in intervals back to back.
    Budget "probe" trains one student in intervals of `single_interval` epochs, cut short where an event begins: at the
    first epoch that is no less than the event's fraction of the run, or later, as soon as the warm-up and the events
    before it have ended. The last interval ends with the run.

    Raises:
        ValueError: for an epoch outside the run, a negative warm-up, or a single interval below 1.
    """
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch must be in [0, {epochs}), got {epoch}")
    if warmup < 0 or single_interval < 1:
        raise ValueError(f"warmup must be >= 0 and single_interval >= 1, got {warmup} and {single_interval}")
    if epoch < warmup:
        return PlannedInterval(min(warmup, epochs) - epoch, 1)
    single = PlannedInterval(min(single_interval, epochs - epoch), 1)
    several = PlannedInterval(min(settings.interval, epochs - epoch), settings.candidates)
    match settings.budget:
        case "none":
            return single
        case "full":
            return several
        case "probe":
            starts = _event_starts(epochs, warmup, settings)
            until_event = min((start - epoch for start in starts if start >= epoch), default=epochs)
            return several if until_event == 0 else PlannedInterval(min(single.epochs, until_event), 1)


def _event_starts(epochs: int, warmup: int, settings: SelectionSettings) -> list[int]:
    """The epoch of each event; those of the last may lie beyond the run."""
    starts: list[int] = []
    free_from = warmup
    for fraction in settings.events:
        due = math.ceil(fraction * epochs - 1e-9)  # 0.07 * 100 is a little more than 7
        starts.append(max(due, free_from))
        free_from = starts[-1] + settings.interval
    return starts

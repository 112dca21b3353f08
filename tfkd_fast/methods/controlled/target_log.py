"""What candidates were taught since a decision, as the log tells it of the student that training continues from."""

from collections.abc import Sequence
from statistics import fmean

from tfkd_fast.events import TargetApplied
from tfkd_fast.methods.controlled.teaching import Teaching
from tfkd_fast.steering.control import Decision


def present_targets(
    first_epoch: int, end: int, number: int, decision: Decision | None, teaching: Teaching
) -> list[TargetApplied]:
    """Return the present target of each candidate as an event.

    Args:
        first_epoch: the first epoch of the decision, counted from 0.
        end: the epoch after the last one.
        number: number of the interval for the log.
        decision: the decision; None in the warm-up on one-hot labels.
        teaching: the targets.
    """
    return [
        TargetApplied(
            interval=number,
            first_epoch=first_epoch + 1,
            epochs=end - first_epoch,
            action=tuple(decision.actions[slot].tolist()) if decision else None,
            learning_rate_factor=decision.learning_rate_factor(slot) if decision else 1.0,
            true_mass=target["true_mass"],
            divergence=target["divergence"],
        )
        for slot, target in enumerate(teaching.describe())
    ]


def mean_target(candidates: Sequence[TargetApplied]) -> TargetApplied:
    """Return the event for the average of some candidates, which were taught since the same decision."""
    actions = [candidate.action for candidate in candidates if candidate.action is not None]
    return candidates[0].model_copy(
        update={
            "action": tuple(map(fmean, zip(*actions, strict=True))) if actions else None,
            "learning_rate_factor": fmean(candidate.learning_rate_factor for candidate in candidates),
            "true_mass": fmean(candidate.true_mass for candidate in candidates),
            "divergence": fmean(candidate.divergence for candidate in candidates),
        }
    )

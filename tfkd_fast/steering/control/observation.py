"""The observation of a policy: the state of training as numbers in -1..1."""

import math
from typing import Any

import torch
from torch import Tensor

from tfkd_fast.steering.control.controller import ACTION_LIMIT, Progress

PROGRESS_ENTRIES = 14
"""Entries of an observation that do not depend on the action space; A entries for the previous action follow them."""

EARLIER_ENTRIES = 13
"""The same of earlier versions, without the last of them, the least true mass."""


def observation(progress: Progress, previous_action: Tensor) -> Tensor:
    """Return the state of the decision process (our choice): (14+A,) float32, every entry within -1..1.

    ====  =====================================================================================================
    0     fraction of the run that has passed
    1     learning rate over the initial one
    2     decades that the learning rate has fallen, 0..3, over 3
    3     training loss over log C
    4, 5  training and held-out top-1
    6     held-out calibrated NLL over log C
    7, 8  change of held-out top-1 and of calibrated NLL over the latest interval: 1 is 10 points, 0.1 log C nats
    9     generalisation gap: training minus held-out top-1
    10    mean predictive entropy over log C
    11    mean probability of the true class
    12    true-class mass of the latest target
    13    least true-class mass of the targets so far
    14..  the latest action of the student that training continues from, over `ACTION_LIMIT` = 4
    ====  =====================================================================================================

    Fractions in 0..1 (entries 0, 1, 3-6 and 10-13) are mapped to -1..1; every entry is clipped to this interval.

    Args:
        progress: the state of training.
        previous_action: (A,) float32, zeros before the first decision.

    Raises:
        ValueError: a number of `progress` is not finite.
    """
    log_classes = math.log(progress.num_classes)
    decades = -math.log10(max(progress.learning_rate_ratio, 1e-3))
    entries = [
        2.0 * progress.epoch_fraction - 1.0,
        2.0 * progress.learning_rate_ratio - 1.0,
        decades / 3.0,
        2.0 * progress.train_loss / log_classes - 1.0,
        2.0 * progress.train_top1 - 1.0,
        2.0 * progress.holdout_top1 - 1.0,
        2.0 * progress.holdout_nll / log_classes - 1.0,
        10.0 * progress.delta_top1,
        10.0 * progress.delta_nll / log_classes,
        progress.train_top1 - progress.holdout_top1,
        2.0 * progress.entropy / log_classes - 1.0,
        2.0 * progress.true_probability - 1.0,
        2.0 * progress.true_mass - 1.0,
        2.0 * progress.least_true_mass - 1.0,
    ]
    if not all(map(math.isfinite, entries)):
        raise ValueError(f"a policy observes finite numbers only, got {progress}")
    return torch.cat([torch.tensor(entries), previous_action / ACTION_LIMIT]).clamp(-1.0, 1.0)


def with_every_entry(state: Any, action_size: int) -> Any:
    """Return the state of a controller or a decision for observations of today, if it is one of an earlier version.

    Its observations (...,13+A) get a least true mass of 1, and all other tensors of that size, which are weights of
    networks that read observations and moments of their gradients, a column of zeros: what they compute stays the same.
    """
    if isinstance(state, dict):
        return {
            name: _insert_entry(value, 1.0, action_size)
            if isinstance(value, Tensor) and "observation" in str(name)
            else with_every_entry(value, action_size)
            for name, value in state.items()
        }
    if isinstance(state, list):
        return [with_every_entry(value, action_size) for value in state]
    return _insert_entry(state, 0.0, action_size) if isinstance(state, Tensor) else state


def _insert_entry(values: Tensor, filling: float, action_size: int) -> Tensor:
    if values.ndim == 0 or values.shape[-1] != EARLIER_ENTRIES + action_size:
        return values
    column = values.new_full((*values.shape[:-1], 1), filling)
    return torch.cat([values[..., :EARLIER_ENTRIES], column, values[..., EARLIER_ENTRIES:]], dim=-1)

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

FILLINGS = {
    "observation": 1.0,
    "observations": 1.0,
    "hidden.0.weight": 0.0,
    "trend.weight": 0.0,
    "exp_avg": 0.0,
    "exp_avg_sq": 0.0,
}
"""What states call the tensors that have an entry for each of an observation, and what they get for the last one."""


def observation(progress: Progress, previous_action: Tensor) -> Tensor:
    """Return the state of the decision process (our choice): (14+A,) float32, every entry within -1..1.

    ====  =====================================================================================================
    0     how far the run is: the greater of the share of its epochs and that by its learning rates
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
        2.0 * max(progress.epoch_fraction, progress.phase) - 1.0,
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
    """Return a state of an earlier version, of a policy or of what it decided, for observations of today.

    Its observations (...,13+A) get a least true mass of 1, and weights (n,13+A) of networks that read observations, and
    the moments of their gradients, a column of zeros: what they compute stays the same.
    """
    if isinstance(state, dict):
        return {name: _with_entry(name, value, action_size) for name, value in state.items()}
    if isinstance(state, list):
        return [with_every_entry(value, action_size) for value in state]
    return state


def _with_entry(name: object, value: Any, action_size: int) -> Any:
    fillings = [filling for ending, filling in FILLINGS.items() if str(name).endswith(ending)]
    if not isinstance(value, Tensor) or not fillings or value.shape[-1:] != (EARLIER_ENTRIES + action_size,):
        return with_every_entry(value, action_size)
    column = value.new_full((*value.shape[:-1], 1), fillings[0])
    return torch.cat([value[..., :EARLIER_ENTRIES], column, value[..., EARLIER_ENTRIES:]], dim=-1)

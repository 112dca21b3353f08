"""The update of weights by their gradient: what the optimiser remembers, clipping, weight decay, and its rule.

All of it is in place and without host synchronisation on CUDA, so that a captured step can hold it.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from tfkd_fast.runs.optimizer import AdamWSettings, OptimizerSettings, SGDSettings
from tfkd_fast.training.adamw import adamw_step
from tfkd_fast.training.sgd import sgd_step


def zero_state(settings: OptimizerSettings, weight: Tensor, *, candidate_axis: bool = False) -> dict[str, Tensor]:
    """What an optimiser remembers of a weight before its first step, by name.

    Args:
        settings: the optimiser.
        weight: the weight, of any shape.
        candidate_axis: whether its first axis counts candidates, which each take steps of their own.
    """
    match settings:
        case SGDSettings():
            return {"momenta": torch.zeros_like(weight)}
        case AdamWSettings():
            return {
                "first_moments": torch.zeros_like(weight),
                "second_moments": torch.zeros_like(weight),
                "steps": torch.zeros(weight.shape[:1] if candidate_axis else (), device=weight.device),
            }


@torch.no_grad()
def update(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    state: Mapping[str, Sequence[Tensor]],
    learning_rate: Tensor,
    settings: OptimizerSettings,
) -> None:
    """Update the weights of one student in place.

    Args:
        weights: floating point, of any shapes.
        gradients: one for each weight; None for a weight that took no part in the loss, which stays as it is.
        state: what the optimiser remembers of each weight, by name; changed in place.
        learning_rate: one float32 value on the device of the weights.
        settings: the optimiser.
    """
    used = [number for number, gradient in enumerate(gradients) if gradient is not None]
    taken = [gradient for gradient in gradients if gradient is not None]
    if settings.clip_norm is not None:
        taken = _clip(taken, settings.clip_norm)
    row = dict(zip(used, taken, strict=True))
    if settings.decay_norms_and_biases:
        parts = [(settings, used)]
    else:
        parts = [
            (settings, [number for number in used if weights[number].dim() > 1]),
            (_without_decay(settings), [number for number in used if weights[number].dim() <= 1]),
        ]
    for rule, numbers in parts:
        changed = [weights[number] for number in numbers]
        own = [row[number] for number in numbers]
        remembered = {name: [tensors[number] for number in numbers] for name, tensors in state.items()}
        match rule:
            case SGDSettings():
                sgd_step(changed, own, remembered["momenta"], learning_rate, rule)
            case AdamWSettings():
                moments = remembered["first_moments"], remembered["second_moments"]
                adamw_step(changed, own, *moments, remembered["steps"], learning_rate, rule)


def _clip(gradients: list[Tensor], largest: float) -> list[Tensor]:
    """Return gradients scaled down to a norm over all of them, as `torch.nn.utils.clip_grad_norm_` does."""
    factor = largest / (torch.nn.utils.get_total_norm(gradients) + 1e-6)
    return list(torch._foreach_mul(gradients, factor.clamp(max=1.0)))


@cache
def _without_decay(settings: OptimizerSettings) -> OptimizerSettings:
    return settings.model_copy(update={"weight_decay": 0.0})

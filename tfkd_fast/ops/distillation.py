"""The distillation loss: a student learns from the predictions of one or several teachers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, checks, fused, losses
from tfkd_fast.ops.losses import Reduction

ALPHA = 0.9
"""Default weight of the teachers against the labels."""


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 4.0,
    alpha: float | Tensor | None = None,
    teacher_weights: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Knowledge distillation (Hinton, Vinyals, Dean, 2015), from M teachers with weights v. Per sample:

        alpha * sum_m v_m T^2 KL(softmax(t_m/T) || softmax(z/T)) + (1-alpha) * CE(y, softmax(z))

    A class to which a teacher gives probability 0 adds nothing, and neither does a term of weight 0, even where it is
    infinite. The gradient flows to the student's logits only, once: the fast backends return it with the loss, and it
    serves forward-mode differentiation (torch.func.jvp, jacfwd), too.

    Args:
        student_logits: z, (B,C) or (P,B,C) for P candidates: float32, float64, bfloat16 or float16.
        teacher_logits: t, (B,C) or (M,B,C) for all candidates, or (P,M,B,C) for each its own; floating point, computed
            with in the dtype of the loss.
        labels: y, (B,) or (P,B) int64, 0..C-1. Without labels there is no cross-entropy.
        temperature: T > 0, a number or a tensor () or (P,) on the device of the logits. Tensors are not checked: that
            would make the host wait for the device.
        alpha: 0..1, likewise. None is 0.9 with labels and 1 without.
        teacher_weights: v, (M,), (B,M) for each sample its own, or (P,B,M); floating point. None is 1/M for each.
        reduction: over the batch, never over classes or candidates: mean, sum or none. The mean of no samples is NaN.
        backend: an operator backend; None picks the fastest that serves the tensors.

    Returns:
        () or (P,), or (B,) or (P,B) with reduction="none": float32, or float64 for float64 student logits.

    Raises:
        ValueError: for shapes and values that do not fit, and for an alpha without labels; TypeError for dtypes.
        IndexError, or torch's own RuntimeError from the reference: for a label out of range, on the CPU. A CUDA device
            reports it by an assertion.
    """
    if losses.takes_one_call(backend) and isinstance(teacher_logits, Tensor) and (alpha is None or labels is not None):
        teachers = teacher_logits.unsqueeze(0) if teacher_logits.dim() == 2 else teacher_logits
        weight = _default_alpha(labels) if alpha is None else alpha
        results = _in_one_call(student_logits, teachers, labels, teacher_weights, temperature, weight, reduction)
        if results is not None:
            return results[0]
    call = _checked(student_logits, teacher_logits, labels, temperature, alpha, teacher_weights, reduction)
    loss: Tensor = backends.select("distillation_loss", backend, student_logits)(call)
    return loss


class _DistillationCall(NamedTuple):
    """The arguments of one call."""

    logits: Tensor
    teachers: Tensor
    """Teachers' logits (M,B,C) or (P,M,B,C)."""
    labels: Tensor | None
    weights: Tensor | None
    """Teachers' weights (B,M) or (P,B,M)."""
    temperature: float | Tensor
    alpha: float | Tensor
    reduction: Reduction


def _checked(
    logits: Tensor,
    teachers: Tensor,
    labels: Tensor | None,
    temperature: float | Tensor,
    alpha: float | Tensor | None,
    weights: Tensor | None,
    reduction: Reduction,
) -> _DistillationCall:
    checks.check_tensors(student_logits=logits, teacher_logits=teachers)
    checks.check_optional_tensors(labels=labels, teacher_weights=weights)
    losses.check_logits(logits, labels)
    losses.check_temperature(temperature, logits)
    losses.check_reduction(reduction)
    if alpha is None:
        alpha = _default_alpha(labels)
    elif labels is None:
        raise ValueError("alpha weighs the teachers against the labels: give labels too")
    losses.check_weight("alpha", alpha, logits)

    if not teachers.is_floating_point():
        raise TypeError(f"teacher_logits must be floating point, got {teachers.dtype}")
    checks.check_device("teacher_logits", teachers, "the logits", logits)
    batch, classes = logits.shape[-2:]
    if teachers.dim() == 2:
        teachers = teachers.unsqueeze(0)
    count = teachers.shape[-3] if teachers.dim() > 2 else 0
    own = (*logits.shape[:-2], count, batch, classes)
    if count < 1 or teachers.shape not in ((count, batch, classes), own):
        raise ValueError(
            f"teacher_logits must be (B,C), (M,B,C) or (P,M,B,C) for student_logits {tuple(logits.shape)}, "
            f"got {tuple(teachers.shape)}"
        )
    if weights is not None:
        if not weights.is_floating_point():
            raise TypeError(f"teacher_weights must be floating point, got {weights.dtype}")
        checks.check_device("teacher_weights", weights, "the logits", logits)
        if weights.shape == (count,):
            weights = weights.expand(batch, count)
        if weights.shape not in ((batch, count), (*logits.shape[:-2], batch, count)):
            raise ValueError(
                f"teacher_weights must be (M,), (B,M) or (P,B,M) for M = {count} teachers and B = {batch} samples, "
                f"got {tuple(weights.shape)}"
            )
    return _DistillationCall(logits, teachers, labels, weights, temperature, alpha, reduction)


def _default_alpha(labels: Tensor | None) -> float:
    return 1.0 if labels is None else ALPHA


def _reference(call: _DistillationCall) -> Tensor:
    logits = call.logits.to(losses.loss_dtype(call.logits))
    temperature = losses.as_tensor(call.temperature, logits)  # () or (P,)
    softened = logits / temperature.reshape(*temperature.shape, 1, 1)
    teachers = losses.as_tensor(call.teachers, logits)
    if call.weights is None:
        weights = logits.new_full((), 1.0 / teachers.shape[-3])
    else:
        weights = losses.as_tensor(call.weights, logits).transpose(-1, -2)  # (M,B) or (P,M,B)
        teachers = teachers.masked_fill(weights.unsqueeze(-1) == 0.0, 0.0)  # or a NaN would reach the gradient
    targets = (teachers / temperature.reshape(*temperature.shape, 1, 1, 1)).softmax(-1)
    divergences = losses.kl_divergence(targets, softened.unsqueeze(-3))
    divergence = losses.safe_product(weights, divergences).sum(-2)

    alpha = losses.as_tensor(call.alpha, logits).unsqueeze(-1)
    loss = losses.safe_product(alpha, temperature.square().unsqueeze(-1) * divergence)
    if call.labels is not None:
        loss = loss + losses.safe_product(1.0 - alpha, losses.cross_entropy(logits, call.labels))
    return losses.reduce_loss(loss, call.reduction)


def _fused(operator: OpOverload, call: _DistillationCall) -> Tensor:
    logits, teachers = call.logits, call.teachers
    if (teachers.dtype == torch.float64) != (logits.dtype == torch.float64):
        teachers = teachers.to(losses.loss_dtype(logits))
    loss, _ = losses.loss_with_gradient(
        operator,
        logits,
        teachers.detach(),
        call.labels,
        None if call.weights is None else losses.as_tensor(call.weights, logits),
        losses.as_tensor(call.temperature, logits),
        losses.as_tensor(call.alpha, logits),
        reduction=call.reduction,
    )
    return loss


def _vmap(operator: OpOverload, info: Any, in_dims: Any, *args: Any) -> tuple[Any, ...]:
    folded, lead = fused.fold_candidates(info, in_dims, args, (2, 3, 1, 2, 0, 0, None))
    return fused.unfold_candidates(operator(*folded), lead)


fused.define(
    "distillation_loss",
    "distillation",
    "(Tensor logits, Tensor teachers, Tensor? labels, Tensor? weights, Tensor temperature, Tensor alpha, "
    "str reduction) -> (Tensor loss, Tensor gradient)",
    losses.fake_loss_and_gradient,
    _vmap,
)
backends.register("distillation_loss", "reference", _reference)
fused.register("distillation_loss", _fused)
_in_one_call = losses.in_one_call("distillation_loss")

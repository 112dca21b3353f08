"""The loss that teaches a student with target distributions, and its training statistics."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tfkd_fast.ops import backends

Rows = Literal["class", "sample"]
Reduction = Literal["mean", "sum", "none"]


class SoftTargetStats(NamedTuple):
    """Sums over the batch, () or (P,) float32, of the softmax at temperature 1. No gradient."""

    correct: Tensor
    """Samples whose label is the argmax, of equal logits the first; a row that is not a number does not count."""
    true_probability: Tensor
    """Probability of the label."""
    entropy: Tensor
    """Entropy of the prediction, nats."""


def soft_target_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    hard_weight: float | Tensor = 0.0,
    rows: Rows = "class",
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Distillation from a target distribution q (Hinton, Vinyals, Dean, 2015), without a teacher network. Per sample:

        (1-w) * T^2 * KL(q || softmax(z/T)) + w * CE(y, softmax(z))

    A class of target 0 adds nothing, and neither does a term of weight 0, even where it is infinite. The gradient flows
    to the logits only, once: the fast backends return it with the loss.

    Args:
        logits: z, (B,C) or (P,B,C) for P candidates: float32, float64, bfloat16 or float16.
        labels: y, (B,) or (P,B) int64, 0..C-1.
        targets: q, floating point; computed with in the dtype of the loss.
            rows="class": a class table (C,C) or (P,C,C), row y teaches label y.
            rows="sample": one row a sample, (B,C) or (P,B,C).
            Explicit, because B may equal C.
        temperature: T > 0, a number or a tensor () or (P,) on the device of the logits. Tensors are not checked: that
            would make the host wait for the device.
        hard_weight: w, 0..1, likewise.
        reduction: over the batch, never over classes or candidates: mean, sum or none. The mean of no samples is NaN.
        backend: an operator backend; None picks the fastest that serves the tensors.

    Returns:
        () or (P,), or (B,) or (P,B) with reduction="none": float32, or float64 for float64 logits.

    Raises:
        ValueError: for shapes and values that do not fit; TypeError for dtypes.
        IndexError: for a label out of range, on the CPU.
    """
    _check(logits, labels, targets, temperature, hard_weight, rows, reduction)
    function = backends.select("soft_target_loss", backend, logits)
    loss: Tensor = function(logits, labels, targets, temperature, hard_weight, rows, reduction)
    return loss


def soft_target_loss_with_stats(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    similarity: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    hard_weight: float | Tensor = 0.0,
    rows: Rows = "class",
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> tuple[Tensor, SoftTargetStats]:
    """`soft_target_loss`, and what one wants to know about a training step, without waiting for the device.

    Args:
        similarity: (C,C), or (P,C,C) for P candidates, float32. In place, each sample adds softmax(z) to row y.
        logits, labels, targets, temperature, hard_weight, rows, reduction, backend: see `soft_target_loss`.
    """
    _check(logits, labels, targets, temperature, hard_weight, rows, reduction)
    _check_similarity(similarity, logits)
    function = backends.select("soft_target_loss_with_stats", backend, logits)
    result: tuple[Tensor, SoftTargetStats] = function(
        logits, labels, targets, similarity, temperature, hard_weight, rows, reduction
    )
    return result


# The definition.


def _reference(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    hard_weight: float | Tensor,
    rows: Rows,
    reduction: Reduction,
) -> Tensor:
    logits = logits.to(_loss_dtype(logits))
    labels = _labels_in_range(labels, logits)
    target = targets.detach().to(logits.dtype)
    if rows == "class":
        table = target.expand(*logits.shape[:-2], *target.shape[-2:])
        target = table.gather(-2, labels.unsqueeze(-1).expand(logits.shape))
    temperature, hard_weight = _column(temperature, logits), _column(hard_weight, logits)

    log_softened = (logits / temperature.unsqueeze(-1)).log_softmax(-1)
    divergence = _weighted(target, target.log() - log_softened).sum(-1)
    cross_entropy = -logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    loss = _weighted(1.0 - hard_weight, temperature.square() * divergence) + _weighted(hard_weight, cross_entropy)
    return loss if reduction == "none" else loss.mean(-1) if reduction == "mean" else loss.sum(-1)


def _reference_with_stats(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    similarity: Tensor | None,
    temperature: float | Tensor,
    hard_weight: float | Tensor,
    rows: Rows,
    reduction: Reduction,
) -> tuple[Tensor, SoftTargetStats]:
    loss = _reference(logits, labels, targets, temperature, hard_weight, rows, reduction)
    with torch.no_grad():
        logits = logits.to(_loss_dtype(logits))
        index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
        probabilities = logits.softmax(-1)
        true_probability = probabilities.gather(-1, index).squeeze(-1)
        correct = (logits.argmax(-1) == index.squeeze(-1)) & ~true_probability.isnan()
        entropy = torch.special.entr(probabilities).sum(-1)
        if similarity is not None:
            similarity.scatter_add_(-2, index.expand(logits.shape), probabilities.to(similarity.dtype))
        stats = SoftTargetStats(*(value.sum(-1).float() for value in (correct, true_probability, entropy)))
    return loss, stats


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _column(value: float | Tensor, logits: Tensor) -> Tensor:
    """One value, or one a candidate, to meet losses (...,B): (1,) or (P,1)."""
    value = value.detach().to(logits.dtype) if isinstance(value, Tensor) else logits.new_full((), value)
    return value.unsqueeze(-1)


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    return torch.where(weight == 0.0, 0.0, weight * value)


def _labels_in_range(labels: Tensor, logits: Tensor) -> Tensor:
    """The labels in the shape (...,B). On the CPU a label is checked here; a device reports it by an assertion."""
    classes = logits.shape[-1]
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        for label in (int(bound) for bound in labels.aminmax()):
            if not 0 <= label < classes:
                raise IndexError(f"label {label} is not one of the C = {classes} classes")
    return labels.expand(logits.shape[:-1])


# The C++ library: it returns the loss together with its gradient.


def _cpp(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    hard_weight: float | Tensor,
    rows: Rows,
    reduction: Reduction,
) -> Tensor:
    loss, gradient = torch.ops.tfkd_fast.soft_target_loss.default(
        logits.detach(),
        labels,
        targets.detach().to(_loss_dtype(logits)),
        _unless(1.0, temperature, logits),
        _unless(0.0, hard_weight, logits),
        rows == "class",
        reduction,
    )
    return _attach(loss, gradient, logits, reduction)


def _cpp_with_stats(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    similarity: Tensor | None,
    temperature: float | Tensor,
    hard_weight: float | Tensor,
    rows: Rows,
    reduction: Reduction,
) -> tuple[Tensor, SoftTargetStats]:
    loss, gradient, *stats = torch.ops.tfkd_fast.soft_target_loss_with_stats.default(
        logits.detach(),
        labels,
        targets.detach().to(_loss_dtype(logits)),
        similarity,
        _unless(1.0, temperature, logits),
        _unless(0.0, hard_weight, logits),
        rows == "class",
        reduction,
    )
    return _attach(loss, gradient, logits, reduction), SoftTargetStats(*stats)


def _unless(default: float, value: float | Tensor, logits: Tensor) -> Tensor | None:
    """The value as a tensor; none for the operator's default, which so costs no tensor."""
    if isinstance(value, Tensor):
        return value.detach().to(_loss_dtype(logits))
    return None if value == default else torch.full((), value, dtype=_loss_dtype(logits), device=logits.device)


def _attach(loss: Tensor, gradient: Tensor, logits: Tensor, reduction: Reduction) -> Tensor:
    if not logits.requires_grad:
        return loss
    attached: Tensor = _AttachGradient.apply(logits, loss, gradient, reduction)
    return attached


class _AttachGradient(torch.autograd.Function):
    """Gives a loss the gradient that was computed with it: d(loss of a sample) / d(its logits).

    torch.library.register_autograd takes no operator that writes to an argument, so the operators have no autograd of
    their own, and this function, made of aten operators alone, stands after both.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, gradient: Tensor, reduction: Reduction) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.reduction = reduction
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: what depends on the gradient would silently get none
            raise RuntimeError('this backend of soft_target_loss has no second derivative: use backend="reference"')
        (gradient,) = ctx.saved_tensors
        scale = upstream[0].unsqueeze(-1)
        if ctx.reduction != "none":
            scale = scale.unsqueeze(-1)
        if ctx.reduction == "mean":
            scale = scale / gradient.shape[-2]
        # Half-precision gradients meet the scale in float32: a loss scale may exceed float16.
        return (gradient * scale).to(gradient.dtype), None, None, None


def _cpp_refuses(logits: Tensor) -> str | None:
    if backends.native_library.missing is not None:
        return backends.native_library.missing
    if logits.device.type != "cpu":
        return f"it serves CPU tensors, not {logits.device.type} tensors"
    return None


def _empty_loss(logits: Tensor, reduction: str) -> Tensor:
    shape = logits.shape[:-1] if reduction == "none" else logits.shape[:-2]
    return logits.new_empty(shape, dtype=_loss_dtype(logits))


def _fake(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    temperature: Tensor | None,
    hard_weight: Tensor | None,
    class_rows: bool,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    return _empty_loss(logits, reduction), logits.new_empty(logits.shape)


def _fake_with_stats(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    similarity: Tensor | None,
    temperature: Tensor | None,
    hard_weight: Tensor | None,
    class_rows: bool,
    reduction: str,
) -> tuple[Tensor, ...]:
    stats = (logits.new_empty(logits.shape[:-2], dtype=torch.float32) for _ in SoftTargetStats._fields)
    return _empty_loss(logits, reduction), logits.new_empty(logits.shape), *stats


def _check(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    hard_weight: float | Tensor,
    rows: Rows,
    reduction: Reduction,
) -> None:
    if logits.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(f"logits must be float32, float64, bfloat16 or float16, got {logits.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if not targets.is_floating_point():
        raise TypeError(f"targets must be floating point, got {targets.dtype}")
    if rows not in ("class", "sample"):
        raise ValueError(f'rows must be "class" or "sample", got {rows!r}')
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if logits.dim() not in (2, 3) or logits.shape[-1] < 1:
        raise ValueError(f"logits must be (B,C) or (P,B,C) with C >= 1, got {tuple(logits.shape)}")
    *candidates, batch, classes = logits.shape
    _check_shape("labels", labels, candidates, (batch,))
    _check_shape("targets", targets, candidates, (classes if rows == "class" else batch, classes))
    for name, value, highest in (("temperature", temperature, math.inf), ("hard_weight", hard_weight, 1.0)):
        if isinstance(value, Tensor):
            _check_shape(name, value, candidates, ())
        elif not 0.0 <= value <= highest or value == math.inf or (name == "temperature" and value == 0.0):
            raise ValueError(f"{name} must be {'positive and finite' if highest > 1 else 'in 0..1'}, got {value}")


def _check_shape(name: str, tensor: Tensor, candidates: list[int], shape: tuple[int, ...]) -> None:
    """`shape`, or one of it a candidate."""
    if tensor.shape != shape and tensor.shape != (*candidates, *shape):
        own = f" or {(*candidates, *shape)}" if candidates else ""
        raise ValueError(f"{name} must be {shape}{own} for these logits, got {tuple(tensor.shape)}")


def _check_similarity(similarity: Tensor | None, logits: Tensor) -> None:
    if similarity is None:
        return
    wanted = (*logits.shape[:-2], logits.shape[-1], logits.shape[-1])
    if similarity.dtype != torch.float32:
        raise TypeError(f"similarity must be float32, got {similarity.dtype}")
    if similarity.shape != wanted:
        raise ValueError(f"similarity must be {wanted} for these logits, got {tuple(similarity.shape)}")


backends.register("soft_target_loss", "reference", _reference)
backends.register("soft_target_loss_with_stats", "reference", _reference_with_stats)
_ABOUT = backends.native_library.about
backends.register("soft_target_loss", "cpp", _cpp, refuses=_cpp_refuses, about=_ABOUT)
backends.register("soft_target_loss_with_stats", "cpp", _cpp_with_stats, refuses=_cpp_refuses, about=_ABOUT)
if backends.native_library.missing is None:
    torch.library.register_fake("tfkd_fast::soft_target_loss", _fake)
    torch.library.register_fake("tfkd_fast::soft_target_loss_with_stats", _fake_with_stats)

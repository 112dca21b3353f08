"""The soft-target loss: a student learns from target distributions; and its training statistics."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, checks, fused, losses
from tfkd_fast.ops.losses import Reduction

Rows = Literal["class", "sample"]
"""Rows of a table of targets: one for each class, or one for each sample."""
ROWS = get_args(Rows)


class SoftTargetStats(NamedTuple):
    """Sums over the batch, () or (P,) float32, of the softmax at temperature 1. No gradient."""

    correct: Tensor
    """Number of samples whose label is the argmax, the first one of equal logits; a row with NaN does not count."""
    true_probability: Tensor
    """Sum of the predicted probabilities of the labels."""
    entropy: Tensor
    """Sum of the entropies of the predictions, nats."""


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
    to the logits only, once: the fast backends return it with the loss, and it serves forward-mode differentiation
    (torch.func.jvp, jacfwd), too.

    Args:
        logits: z, (B,C) or (P,B,C) for P candidates: float32, float64, bfloat16 or float16.
        labels: y, (B,) or (P,B) int64, 0..C-1.
        targets: q, floating point; computed with in the dtype of the loss. Every row must sum to 1, which is
            not checked: it would cost a pass over the table in every step.
            rows="class": a class table (C,C) or (P,C,C), whose row y is the target of samples of label y.
            rows="sample": one row for each sample, (B,C) or (P,B,C).
        temperature: T > 0, a number or a tensor () or (P,) on the device of the logits. Tensors are not checked: that
            would make the host wait for the device.
        hard_weight: w, 0..1, a number or a tensor like the temperature.
        rows: "class" or "sample", what a row of `targets` belongs to; it is explicit because B may equal C.
        reduction: over the batch, never over classes or candidates: mean, sum or none. The mean of no samples is NaN.
        backend: an operator backend; None picks the fastest that serves the tensors.

    Returns:
        () or (P,), or (B,) or (P,B) with reduction="none": float32, or float64 for float64 logits.

    Raises:
        ValueError: for shapes and values that do not fit; TypeError for dtypes and for arguments that are no tensors.
        IndexError, or torch's own RuntimeError from the reference: for a label out of range, on the CPU. A CUDA device
            reports it by an assertion.
    """
    if losses.takes_one_call(backend) and rows in ROWS:
        args = logits, labels, targets, temperature, hard_weight, rows == "class", reduction
        if (results := _in_one_call(*args)) is not None:
            return results[0]
    call = _SoftTargetCall(logits, labels, targets, temperature, hard_weight, rows, reduction)
    _check(call)
    loss: Tensor = backends.select("soft_target_loss", backend, logits)(call)
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
    """Compute `soft_target_loss` and statistics of the training step, without waiting for the device.

    Args:
        similarity: (C,C), or (P,C,C) for P candidates, float32. In place, each sample adds softmax(z) to row y.
        logits, labels, targets, temperature, hard_weight, rows, reduction, backend: see `soft_target_loss`.
    """
    if losses.takes_one_call(backend) and rows in ROWS:
        args = logits, labels, targets, similarity, temperature, hard_weight, rows == "class", reduction
        if (results := _in_one_call_with_stats(*args)) is not None:
            return results[0], SoftTargetStats(*results[1:])
    call = _SoftTargetCall(logits, labels, targets, temperature, hard_weight, rows, reduction)
    _check(call)
    _check_similarity(similarity, logits)
    if backend is None and similarity is not None and logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        backend = "reference"  # the kernels add to the similarities in any order
    function = backends.select("soft_target_loss_with_stats", backend, logits)
    result: tuple[Tensor, SoftTargetStats] = function(call, similarity)
    return result


class _SoftTargetCall(NamedTuple):
    """The arguments of one call."""

    logits: Tensor
    labels: Tensor
    targets: Tensor
    temperature: float | Tensor
    hard_weight: float | Tensor
    rows: Rows
    reduction: Reduction


def _check(call: _SoftTargetCall) -> None:
    logits = call.logits
    checks.check_tensors(labels=call.labels, targets=call.targets)
    losses.check_logits(logits, call.labels)
    if not call.targets.is_floating_point():
        raise TypeError(f"targets must be floating point, got {call.targets.dtype}")
    if call.rows not in ROWS:
        raise ValueError(f'rows must be "class" or "sample", got {call.rows!r}')
    batch, classes = logits.shape[-2:]
    losses.check_shape("targets", call.targets, logits, (classes if call.rows == "class" else batch, classes))
    losses.check_temperature(call.temperature, logits)
    losses.check_weight("hard_weight", call.hard_weight, logits)
    losses.check_reduction(call.reduction)


def _check_similarity(similarity: Tensor | None, logits: Tensor) -> None:
    if similarity is None:
        return
    checks.check_tensors(similarity=similarity)
    checks.check_device("similarity", similarity, "the logits", logits)
    wanted = (*logits.shape[:-2], logits.shape[-1], logits.shape[-1])
    if similarity.dtype != torch.float32:
        raise TypeError(f"similarity must be float32, got {similarity.dtype}")
    if similarity.shape != wanted:
        raise ValueError(f"similarity must be {wanted} for these logits, got {tuple(similarity.shape)}")
    checks.check_written(similarity=similarity)


# The definition.


def _reference(call: _SoftTargetCall) -> Tensor:
    logits = call.logits.to(losses.loss_dtype(call.logits))
    target = call.targets.detach().to(logits.dtype)
    if call.rows == "class":
        table = target.expand(*logits.shape[:-2], *target.shape[-2:])
        target = table.gather(-2, call.labels.expand(logits.shape[:-1]).unsqueeze(-1).expand(logits.shape))
    temperature = losses.as_tensor(call.temperature, logits).unsqueeze(-1)  # (1,) or (P,1), to meet losses (...,B)
    hard_weight = losses.as_tensor(call.hard_weight, logits).unsqueeze(-1)
    soft = temperature.square() * losses.kl_divergence(target, logits / temperature.unsqueeze(-1))
    hard = losses.cross_entropy(logits, call.labels)
    loss = losses.safe_product(1.0 - hard_weight, soft) + losses.safe_product(hard_weight, hard)
    return losses.reduce_loss(loss, call.reduction)


def _reference_with_stats(call: _SoftTargetCall, similarity: Tensor | None) -> tuple[Tensor, SoftTargetStats]:
    loss = _reference(call)
    with torch.no_grad():
        logits = call.logits.detach().to(losses.loss_dtype(call.logits))
        index = call.labels.expand(logits.shape[:-1]).unsqueeze(-1)
        probabilities = logits.softmax(-1)
        true_probability = probabilities.gather(-1, index).squeeze(-1)
        correct = (logits.argmax(-1) == index.squeeze(-1)) & ~true_probability.isnan()
        entropy = torch.special.entr(probabilities).sum(-1)
        if similarity is not None:
            similarity.scatter_add_(-2, index.expand(logits.shape), probabilities.to(similarity.dtype))
        stats = SoftTargetStats(*(value.sum(-1).float() for value in (correct, true_probability, entropy)))
    return loss, stats


# The fused backends.

_SETTINGS = "Tensor? temperature, Tensor? hard_weight, bool class_rows, str reduction"


def _fused(operator: OpOverload, call: _SoftTargetCall) -> Tensor:
    loss, _ = losses.loss_with_gradient(operator, *_inputs(call), *_settings(call), reduction=call.reduction)
    return loss


def _fused_with_stats(
    operator: OpOverload, call: _SoftTargetCall, similarity: Tensor | None
) -> tuple[Tensor, SoftTargetStats]:
    loss, stats = losses.loss_with_gradient(
        operator, *_inputs(call), similarity, *_settings(call), reduction=call.reduction
    )
    return loss, SoftTargetStats(*stats)


def _inputs(call: _SoftTargetCall) -> tuple[Tensor, Tensor, Tensor]:
    return call.logits, call.labels, losses.as_tensor(call.targets, call.logits)


def _settings(call: _SoftTargetCall) -> tuple[Tensor | None, Tensor | None, bool]:
    temperature, hard_weight = (
        # The operator's own default costs no tensor.
        None if not isinstance(value, Tensor) and value == default else losses.as_tensor(value, call.logits)
        for value, default in ((call.temperature, 1.0), (call.hard_weight, 0.0))
    )
    return temperature, hard_weight, call.rows == "class"


def _fake_with_stats(logits: Tensor, *others: Any) -> tuple[Tensor, ...]:
    stats = (logits.new_empty(logits.shape[:-2], dtype=torch.float32) for _ in SoftTargetStats._fields)
    return *losses.fake_loss_and_gradient(logits, *others), *stats


def _vmap(operator: OpOverload, info: Any, in_dims: Any, *args: Any) -> tuple[Any, ...]:
    folded, lead = fused.fold_candidates(info, in_dims, args, (2, 1, 2, 0, 0, None, None))
    return fused.unfold_candidates(operator(*folded), lead)


fused.define(
    "soft_target_loss",
    "soft_target",
    f"(Tensor logits, Tensor labels, Tensor targets, {_SETTINGS}) -> (Tensor loss, Tensor gradient)",
    losses.fake_loss_and_gradient,
    _vmap,
)
fused.define(
    "soft_target_loss_with_stats",
    "soft_target",
    f"(Tensor logits, Tensor labels, Tensor targets, Tensor(a!)? similarity, {_SETTINGS}) "
    "-> (Tensor loss, Tensor gradient, Tensor correct, Tensor true_probability, Tensor entropy)",
    _fake_with_stats,
)
backends.register("soft_target_loss", "reference", _reference)
backends.register("soft_target_loss_with_stats", "reference", _reference_with_stats)
fused.register("soft_target_loss", _fused)
fused.register("soft_target_loss_with_stats", _fused_with_stats)
_in_one_call = losses.in_one_call("soft_target_loss")
_in_one_call_with_stats = losses.in_one_call("soft_target_loss_with_stats")

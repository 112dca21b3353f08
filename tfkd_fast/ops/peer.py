"""The peer loss: the candidates of a population learn from each other's predictions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, checks, fused, losses
from tfkd_fast.ops.losses import Reduction


def peer_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 3.0,
    alpha: float | Tensor = 0.5,
    include_self: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Each of P candidates learns from the mean softened prediction of all of them, or of the others. Per sample:

        (1-alpha) * CE(y, softmax(z_i)) + alpha * T^2 KL(m_i || softmax(z_i/T)),   m_i = mean_j softmax(z_j/T)

    With the others' predictions this is deep mutual learning with the mean of the peers as teacher (Zhang et al., CVPR
    2018, section 3.4, which also takes m_i as a constant); with all of them the target is the ensemble's (Lan, Zhu,
    Gong, NeurIPS 2018, without its gate). A term of weight 0 adds nothing, even where it is infinite.

    Args:
        logits: z, (P,B,C), predictions for the same batch: float32, float64, bfloat16 or float16.
        labels: y, (B,) or (P,B) int64, 0..C-1.
        temperature: T > 0, a number or a tensor () on the device of the logits: one for all, because they share the
            mean. Tensors are not checked: that would make the host wait for the device.
        alpha: 0..1, a number or a tensor () or (P,), likewise.
        include_self: whether a candidate's own prediction is in its m_i. Without it P must be at least 2.
        reduction: over the batch, never over classes or candidates: mean, sum or none. The mean of no samples is NaN.
        backend: an operator backend; None picks the fastest that serves the tensors.

    Returns:
        (P,), or (P,B) with reduction="none": float32, or float64 for float64 logits. The gradient of candidate i's loss
        flows to its own logits only, once: the fast backends return it with the loss.

    Raises:
        ValueError: for shapes and values that do not fit; TypeError for dtypes.
        IndexError, or torch's own RuntimeError from the reference: for a label out of range, on the CPU. A CUDA device
            reports it by an assertion.
    """
    if losses.takes_one_call(backend):
        results = _in_one_call(logits, labels, temperature, alpha, include_self, reduction)
        if results is not None:
            return results[0]
    call = _PeerCall(logits, labels, temperature, alpha, include_self, reduction)
    _check(call)
    loss: Tensor = backends.select("peer_loss", backend, logits)(call)
    return loss


class _PeerCall(NamedTuple):
    """The arguments of one call."""

    logits: Tensor
    labels: Tensor
    temperature: float | Tensor
    alpha: float | Tensor
    include_self: bool
    reduction: Reduction


def _check(call: _PeerCall) -> None:
    logits = call.logits
    checks.check_tensors(labels=call.labels)
    checks.check_flags(include_self=call.include_self)
    losses.check_logits(logits, call.labels)
    fewest = 1 if call.include_self else 2
    if logits.dim() != 3 or logits.shape[0] < fewest:
        without = "" if call.include_self else " without include_self"
        raise ValueError(f"logits must be (P,B,C) with P >= {fewest}{without}, got {tuple(logits.shape)}")
    if isinstance(call.temperature, Tensor) and call.temperature.dim() > 0:
        raise ValueError(f"temperature must be (), one for all candidates, got {tuple(call.temperature.shape)}")
    losses.check_temperature(call.temperature, logits)
    losses.check_weight("alpha", call.alpha, logits)
    losses.check_reduction(call.reduction)


def _reference(call: _PeerCall) -> Tensor:
    logits = call.logits.to(losses.loss_dtype(call.logits))
    temperature = losses.as_tensor(call.temperature, logits)
    alpha = losses.as_tensor(call.alpha, logits).unsqueeze(-1)
    softened = logits / temperature
    predictions = softened.detach().softmax(-1)
    peers = 1.0 - torch.eye(len(logits), dtype=logits.dtype, device=logits.device) * (not call.include_self)
    target = torch.einsum("ij,jbc->ibc", peers / peers.sum(1, keepdim=True), predictions)
    divergence = temperature.square() * losses.kl_divergence(target, softened)
    hard = losses.cross_entropy(logits, call.labels)
    return losses.reduce_loss(
        losses.safe_product(1.0 - alpha, hard) + losses.safe_product(alpha, divergence),
        call.reduction,
    )


def _fused(operator: OpOverload, call: _PeerCall) -> Tensor:
    loss, _ = losses.loss_with_gradient(
        operator,
        call.logits,
        call.labels,
        losses.as_tensor(call.temperature, call.logits),
        losses.as_tensor(call.alpha, call.logits),
        call.include_self,
        reduction=call.reduction,
    )
    return loss


def _vmap(operator: OpOverload, info: Any, in_dims: Any, *args: Any) -> tuple[Any, ...]:
    """Map by one call each, because the peer loss has no axis beside that of the population."""
    calls = [
        [arg if dim is None else arg.select(dim, v) for arg, dim in zip(args, in_dims, strict=True)]
        for v in range(info.batch_size)
    ]
    results = zip(*(operator(*call) for call in calls), strict=True)
    return tuple(torch.stack(result) for result in results), (0, 0)


fused.define(
    "peer_loss",
    "peer",
    "(Tensor logits, Tensor labels, Tensor temperature, Tensor alpha, bool include_self, str reduction) "
    "-> (Tensor loss, Tensor gradient)",
    losses.fake_loss_and_gradient,
    _vmap,
)
backends.register("peer_loss", "reference", _reference)
fused.register("peer_loss", _fused)
_in_one_call = losses.in_one_call("peer_loss")

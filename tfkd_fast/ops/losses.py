"""Shared parts of the losses: terms, the gradient that a kernel returns with a loss, and checks of arguments."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils.weak import WeakIdKeyDictionary

from tfkd_fast.ops import backends, checks, fused
from tfkd_fast.ops.scale_gradient import scale_gradient

Reduction = Literal["mean", "sum", "none"]
"""Reductions of a loss over the batch."""

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""Dtypes of logits that a loss accepts."""


def loss_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype of a loss: float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def as_tensor(value: float | Tensor, logits: Tensor) -> Tensor:
    """Return a setting as a tensor without gradient, on the device of the logits and in the dtype of the loss."""
    if isinstance(value, Tensor):
        value = value.detach()  # from a tangent of forward-mode differentiation, too
        return value if value.dtype == loss_dtype(logits) else value.to(loss_dtype(logits))
    return torch.scalar_tensor(value, dtype=loss_dtype(logits), device=logits.device)


def safe_product(weight: Tensor, value: Tensor) -> Tensor:
    """Return weight * value, and 0 for a weight of 0 even if the value is infinite or NaN."""
    return torch.where(weight == 0.0, 0.0, weight * value)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy (...,B) of each sample, from logits (...,B,C) and labels (B,) or (...,B)."""
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    return -logits.log_softmax(-1).gather(-1, index).squeeze(-1)


def kl_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(target || softmax(logits)) of each sample, (...,B), in nats. A class of target 0 adds nothing."""
    return safe_product(target, target.log() - logits.log_softmax(-1)).sum(-1)


def reduce_loss(loss: Tensor, reduction: Reduction) -> Tensor:
    """Reduce losses (...,B) over the batch, the last axis."""
    return loss if reduction == "none" else loss.mean(-1) if reduction == "mean" else loss.sum(-1)


def loss_with_gradient(operator: OpOverload, logits: Tensor, *args: Any, reduction: str) -> tuple[Tensor, list[Tensor]]:
    """Call an operator whose last argument is its reduction and whose results are (loss, gradient, ...).

    Args:
        operator: the operator of a backend.
        logits: its first argument, which receives the gradient.
        args: all arguments between logits and reduction.
        reduction: mean, sum or none.

    Returns:
        The loss, with the gradient attached, and all results after the gradient.
    """
    # float16 has too little range for a gradient divided by B: there the mean is taken in the backward pass.
    late_mean = reduction == "mean" and logits.dtype == torch.float16
    loss, gradient, *others = operator(logits.detach(), *args, "sum" if late_mean else reduction)
    if torch.compiler.is_compiling():
        if fused.forward_mode():  # torch.compile then leaves the call to Python, unless it must make one graph
            raise RuntimeError('this backend compiles no forward-mode derivative: use backend="reference"')
        if logits.requires_grad:
            loss = _AttachLossGradientCompiled.apply(logits, loss, gradient)
    elif fused.inside_torch_func():
        loss = _AttachLossGradientMapped.apply(logits, loss, gradient)
    elif logits.requires_grad or fused.has_tangent(logits):
        loss = _AttachLossGradient.apply(logits, loss, gradient)
    return (loss / logits.shape[-2] if late_mean else loss), others


OneCall = Callable[..., tuple[Tensor, ...] | None]
"""Takes the arguments of an operator, but for `temperature` and weights numbers as well. Returns what
`loss_with_gradient` does, or None for a call that it does not serve: one that is not eager, or has a mistake in it."""


def in_one_call(operator: str) -> OneCall:
    """Return a function that does for C++ what `loss_with_gradient` does, in one call from Python.

    Args:
        operator: a defined operator.
    """
    extension = backends.autograd_extension.module
    return (
        (lambda *args: None) if extension is None else extension.LossOperator(f"{fused.NAMESPACES['cpp']}::{operator}")
    )


def takes_one_call(backend: str | None) -> bool:
    """Whether a call that names this backend, or none, should be tried `in_one_call`."""
    return backends.is_for_cpp(backend) and not torch.compiler.is_compiling()


class _AttachLossGradientCompiled(torch.autograd.Function):
    """Attaches to a loss the gradient that was computed with it: d(loss of a sample) / d(its logits).

    torch.library.register_autograd takes no operator that writes to an argument, so the operators have no autograd of
    their own, and this function, made of aten operators alone, stands after all of them. It is for torch.compile, which
    takes no function with a forward derivative.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        return loss.view_as(loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, _, gradient = inputs
        ctx.save_for_backward(logits, gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, gradient = ctx.saved_tensors
        scaled = _scale_gradient(gradient, upstream[0])
        # create_graph=True, torch.func.grad, or forward mode over the backward pass
        if torch.is_grad_enabled() or fused.has_tangent(logits):
            scaled = fused.NoSecondDerivative.apply(scaled, logits)
        return scaled, None, None


class _AttachLossGradientMapped(_AttachLossGradientCompiled):
    """`_AttachLossGradientCompiled` with a forward derivative, in the form that torch.func needs."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, loss, gradient = inputs
        ctx.save_for_backward(logits, gradient)
        ctx.save_for_forward(logits, gradient)
        ctx.summed = tuple(range(loss.dim() - gradient.dim(), 0))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *others: Any) -> Tensor:
        """Return the derivative of the loss along a tangent of the logits: the sum of gradient times tangent."""
        logits, gradient = ctx.saved_tensors
        gradient = fused.NoSecondDerivative.apply(gradient, logits).to(loss_dtype(gradient))
        return (gradient * tangent.to(gradient.dtype)).sum(ctx.summed)


class _AttachLossGradient(_AttachLossGradientMapped):
    """`_AttachLossGradientMapped` in the form that saves an eager call 10 us."""

    generate_vmap_rule = False

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:  # type: ignore[override]
        _AttachLossGradientMapped.setup_context(ctx, (logits, loss, gradient), None)
        return loss.view_as(loss)

    setup_context = torch.autograd.Function.setup_context  # torch's own stands for the form with a context


_known_ones = WeakIdKeyDictionary()


def ones_for(loss: Tensor) -> Tensor:
    """Return ones, expanded to the shape of a loss, to begin its backward pass with (`grad_outputs`).

    The backward pass of a loss of this package then knows them, and returns the gradient that it has: on CUDA it would
    read and write all of it again, because a look at what comes from above would make the host wait.
    """
    ones = loss.new_ones(()).expand_as(loss)
    _known_ones[ones] = None
    return ones


def are_known_ones(upstream: Tensor) -> bool:
    """Whether a tensor is one that `ones_for` returned."""
    return upstream in _known_ones


def _scale_gradient(gradient: Tensor, upstream: Tensor) -> Tensor:
    plain = not torch.compiler.is_compiling() and not torch._C._functorch.is_functorch_wrapped_tensor(upstream)
    plain = plain and not fused.has_tangent(upstream)
    if plain and are_known_ones(upstream):
        return gradient
    # `loss.backward()` sends a 1. On the CPU, where a look costs no wait, that saves reading and writing the gradient.
    if plain and upstream.is_cpu and (upstream.item() == 1.0 if upstream.dim() == 0 else bool((upstream == 1.0).all())):
        return gradient
    if plain and not gradient.is_cpu and not torch._C._autograd._get_current_graph_task_keep_graph():
        scale_gradient(gradient, upstream)  # in place: nobody asks for this backward pass again
        return gradient
    scale = upstream.reshape(upstream.shape + (1,) * (gradient.dim() - upstream.dim()))
    if plain and not gradient.is_cpu:  # in float32 to the last rounding, in one launch
        return torch.mul(gradient, scale, out=torch.empty_like(gradient))
    return (gradient * scale).to(gradient.dtype)


def fake_loss_and_gradient(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Return fake results (loss, gradient) of an operator whose last argument is its reduction."""
    shape = logits.shape[:-1] if others[-1] == "none" else logits.shape[:-2]
    return logits.new_empty(shape, dtype=loss_dtype(logits)), logits.new_empty(logits.shape)


def check_reduction(reduction: str) -> None:
    """Raise ValueError for a reduction that does not exist."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')


def check_logits(logits: Tensor, labels: Tensor | None) -> None:
    """Raise TypeError or ValueError for logits that no loss accepts, and for labels that do not fit them."""
    checks.check_tensors(logits=logits)
    checks.check_optional_tensors(labels=labels)
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits must be float32, float64, bfloat16 or float16, got {logits.dtype}")
    if logits.dim() not in (2, 3) or logits.shape[-1] < 1:
        raise ValueError(f"logits must be (B,C) or (P,B,C) with C >= 1, got {tuple(logits.shape)}")
    if labels is None:
        return
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    check_shape("labels", labels, logits, (logits.shape[-2],))


def check_shape(name: str, tensor: Tensor, logits: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a tensor has `shape`, or (P, *shape) for P candidates, on the device of the logits."""
    checks.check_device(name, tensor, "the logits", logits)
    if tensor.shape == shape:
        return
    own = (*logits.shape[:-2], *shape)
    if tensor.shape != own:
        either = f"{shape} or {own}" if own != shape else f"{shape}"
        raise ValueError(f"{name} must be {either} for these logits, got {tuple(tensor.shape)}")


def check_temperature(temperature: float | Tensor, logits: Tensor) -> None:
    """Raise ValueError unless a temperature is positive and finite; a tensor must have the shape () or (P,)."""
    if isinstance(temperature, Tensor):
        check_shape("temperature", temperature, logits, ())
        return
    checks.check_numbers(temperature=temperature)
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_weight(name: str, weight: float | Tensor, logits: Tensor) -> None:
    """Raise ValueError unless a weight is in 0..1; a tensor must have the shape () or (P,)."""
    if isinstance(weight, Tensor):
        check_shape(name, weight, logits, ())
        return
    checks.check_numbers(**{name: weight})
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"{name} must be in 0..1, got {weight}")

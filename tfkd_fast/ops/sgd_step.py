"""The update of weights by stochastic gradient descent with momentum."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tfkd_fast.ops import backends, checks, fused

OneOrMore = Tensor | Sequence[Tensor]


@torch.no_grad()
def sgd_step(
    weight: OneOrMore,
    gradient: OneOrMore,
    momentum: OneOrMore,
    *,
    rate: float,
    decay: float = 0.0,
    factor: float = 0.9,
    nesterov: bool = False,
    backend: str | None = None,
) -> None:
    """Update a weight and its momentum in place, as `torch.optim.SGD` does without dampening; or several in one call.

        d = gradient + decay * weight;  momentum = factor * momentum + d;  weight -= rate * v

    where v is the new momentum, or d + factor * momentum with `nesterov` (Sutskever et al., ICML 2013). A momentum of
    zero stands for torch's first step.

    Args:
        weight: floating point, any shape; or a list or tuple of such tensors, which takes cpp one call for all.
        gradient, momentum: of the shape and dtype of the weight; or as many as there are weights, in their order.
        rate: the learning rate.
        decay: the weight decay.
        factor: the momentum coefficient.
        backend: an operator backend; None picks the fastest that serves the tensors: cpp for float32 without gaps in
            memory.

    Raises:
        ValueError: for shapes, dtypes or numbers of tensors that differ, and from cpp, named as the backend, for
            tensors that it does not serve; TypeError for arguments of other types.
        RuntimeError: from cpp, named as the backend, for forward-mode differentiation; None takes the reference for it.
    """
    checks.check_numbers(rate=rate, decay=decay, factor=factor)
    checks.check_flags(nesterov=nesterov)
    if isinstance(weight, Sequence):
        lists = weight, _list_of("gradient", gradient, len(weight)), _list_of("momentum", momentum, len(weight))
        if backend is None and _step_all(*lists, rate, decay, factor, nesterov):
            return
        for row in zip(*lists, strict=True):
            sgd_step(*row, rate=rate, decay=decay, factor=factor, nesterov=nesterov, backend=backend)
        return
    checks.check_tensors(weight=weight, gradient=gradient, momentum=momentum)
    assert isinstance(gradient, Tensor)
    assert isinstance(momentum, Tensor)
    _check(weight, gradient, momentum)
    differentiated = fused.has_tangent(weight, gradient, momentum)  # cpp has no forward derivative
    if backend is None and (differentiated or not _fits_cpp(weight, momentum)):
        backend = "reference"
    backends.select("sgd_step", backend, weight)(weight, gradient, momentum, rate, decay, factor, nesterov)


def _list_of(name: str, tensors: OneOrMore, count: int) -> Sequence[Tensor]:
    if not isinstance(tensors, Sequence):
        raise TypeError(f"{name} must be a list of tensors as weight is, got {type(tensors).__name__}")
    if len(tensors) != count:
        raise ValueError(f"{name} must have {count} tensors as weight has, got {len(tensors)}")
    return tensors


def _check(weight: Tensor, gradient: Tensor, momentum: Tensor) -> None:
    for name, tensor in (("gradient", gradient), ("momentum", momentum)):
        if tensor.shape != weight.shape or tensor.dtype != weight.dtype:
            raise ValueError(
                f"{name} must be {tuple(weight.shape)} {weight.dtype} as the weight is, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )
        checks.check_device(name, tensor, "weight", weight)
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}")
    checks.check_written(weight=weight, momentum=momentum)
    if momentum is weight:
        raise ValueError("momentum must be another tensor than weight: both are written to")


# The definition.


def _reference(
    weight: Tensor, gradient: Tensor, momentum: Tensor, rate: float, decay: float, factor: float, nesterov: bool
) -> None:
    direction = gradient.add(weight, alpha=decay)
    momentum.mul_(factor).add_(direction)
    if nesterov:
        direction.add_(momentum, alpha=factor)
    weight.add_(direction if nesterov else momentum, alpha=-rate)


# The compiled backend.


def _step_all(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], momenta: Sequence[Tensor], *settings: float
) -> bool:
    """Update all weights in one call, and return whether that was done. Where an argument is not what the operator
    takes, nothing is written: one after the other, they are served or refused in words."""
    if not backends.is_for_cpp(None) or fused.forward_mode():
        return False
    try:
        _operator(weights, list(map(match_layout, weights, gradients)), momenta, *settings)
    except (RuntimeError, TypeError, AttributeError):
        return False
    return True


def _fits_cpp(weight: Tensor, momentum: Tensor) -> bool:
    strides = weight.stride()
    gapless = (  # the last way is the rule, and takes longer than a small update
        weight.is_contiguous()
        or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))
        or torch.empty_like(weight, device="meta").stride() == strides  # as torch lays out what has no gaps
    )
    return weight.dtype == torch.float32 and gapless and momentum.stride() == strides


def _cpp(weight: Tensor, gradient: Tensor, momentum: Tensor, *settings: float) -> None:
    fused.refuse_tangent("sgd_step", weight, gradient, momentum)
    if not _fits_cpp(weight, momentum):
        raise ValueError(
            "backend 'cpp' cannot serve sgd_step: it serves float32 without gaps in memory, laid out alike"
        )
    _operator([weight], [match_layout(weight, gradient)], [momentum], *settings)


def match_layout(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient in the memory layout of its weight, which a fused update needs; a copy if it differs."""
    return gradient if gradient.stride() == weight.stride() else torch.empty_like(weight).copy_(gradient)


def _fake(weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], *settings: float) -> None:
    return None


fused.define(
    "sgd_steps",
    None,
    "(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] momenta, float rate, float decay, float factor, "
    "bool nesterov) -> ()",
    _fake,
)
_operator = fused.overload(fused.NAMESPACES["cpp"], "sgd_steps")
backends.register("sgd_step", "reference", _reference)
backends.register("sgd_step", "cpp", _cpp, refuses=fused.cpp_refuses, about=backends.native_library.about)

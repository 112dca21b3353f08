"""Batch norm over a batch of which several processes have a part each: with the mean and variance of the whole batch.

torch's `SyncBatchNorm` computes the same on GPUs alone, and only where it is the layer of a network. This is any call
of `F.batch_norm`, on any device.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class Sharers(Protocol):
    """The processes that have a part of the batch."""

    def stack(self, tensor: Tensor) -> Tensor:
        """Return the tensors (R,...) of all R processes, in the same order for all of them."""

    def add(self, tensor: Tensor) -> None:
        """Sum a tensor over the processes, in place."""


class SynchronisedNorms(TorchFunctionMode):
    """Context manager in which batch norms in training take part in one another's statistics.

    Every process has to run the same layers in the same order, forward and backward, and sum the gradients of the
    weights over the processes itself. The loss whose gradient is taken is the sum of theirs.
    """

    are_active: ClassVar[bool] = False
    """Whether a process is in the context; it may be so on one thread only."""

    def __init__(self, sharers: Sharers) -> None:
        super().__init__()
        self._sharers = sharers

    def __enter__(self) -> Any:
        SynchronisedNorms.are_active = True
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        SynchronisedNorms.are_active = False
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (self._batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        y, mean, var, count = _BatchNorm.apply(x, weight, bias, eps, self._sharers)
        with torch.no_grad():
            if running_mean is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            if running_var is not None:
                running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
        return y


class _BatchNorm(torch.autograd.Function):
    """Batch norm of a part of a batch; beside it mean (C,) and biased variance (C,) of the whole batch, and the number
    of its values () in each channel. bfloat16 is computed in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, sharers: Sharers
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        own_var, own_mean = torch.var_mean(_wide(x), _other_dims(x), correction=0)
        own = torch.cat([own_mean, own_var, own_mean.new_tensor([x.numel() // channels])])
        means, variances, counts = sharers.stack(own).split([channels, channels, 1], dim=1)
        count = counts.sum()
        shares = counts / count
        mean = (shares * means).sum(0)
        var = (shares * (variances + (means - mean).square())).sum(0)
        ctx.sharers = sharers
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, count = ctx.saved_tensors
        dims, shape = _other_dims(x), (1, -1, *[1] * (x.dim() - 2))
        gradient, normal = _wide(upstream), (_wide(x) - mean.view(shape)) * invstd.view(shape)
        sums = torch.stack([gradient.sum(dims), (gradient * normal).sum(dims)])
        of_bias, of_weight = sums.clone()  # of this part: they are summed with all other gradients
        ctx.sharers.add(sums)
        means = sums / count
        scale = invstd if weight is None else invstd * weight
        of_x = (gradient - means[0].view(shape) - normal * means[1].view(shape)) * scale.view(shape)
        needs = ctx.needs_input_grad
        return of_x.to(x.dtype), of_weight if needs[1] else None, of_bias if needs[2] else None, None, None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _other_dims(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]

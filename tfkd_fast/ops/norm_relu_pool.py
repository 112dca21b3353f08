"""Batch norm in training, ReLU and max-pooling as one operator: the layers between two convolutions."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, checks, fused

DTYPES = {torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
"""Dtype of x -> dtype of the parameters and of the running statistics."""

TENSORS = ("x", "weight", "bias", "running_mean", "running_var")


def norm_relu_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    momentum: float,
    eps: float = 1e-5,
    pool: bool = True,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Batch norm with the statistics of the batch, then ReLU, then max-pooling of 2x2 windows with stride 2.

    With a residual it is the end of a block of a ResNet (He et al., 2016, eq. 1), relu(norm(x) + residual).

    Result and running statistics are those of torch's three functions; from cpp to the last bit for channels-last
    images in float32 with more positions than threads. An autocast region changes nothing.

    Args:
        x: (B,C,H,W) bfloat16, float32 or float64, best channels-last in memory: a copy is made of others.
        weight, bias: (C,) float32, or float64 for float64 x.
        running_mean, running_var: (C,) likewise; they are updated in place, with the unbiased variance.
        momentum: the weight of this batch in the running statistics.
        eps: added to the variance.
        pool: whether there is max-pooling; an odd row or column at the end is left out, as in torch.
        residual: None, or what is added before the ReLU, of shape and dtype of x, without pooling.
        backend: an operator backend; None picks the fastest that serves the tensors: the reference inside of
            torch.func's transforms and for forward-mode differentiation; on the CPU in float32 without pooling and for
            positions of less than 16 bytes; on CUDA inside of torch.compile, which fuses it, unless a backend is
            forced, and in float64.

    Returns:
        (B,C,H//2,W//2), or (B,C,H,W) without pooling, in the dtype of x; channels-last but from the reference.

    Raises:
        ValueError: for shapes that do not fit, and for a batch of one position.
        TypeError: for dtypes, and for arguments that are no tensors.
        RuntimeError: from a backend that is named, but the reference, for forward-mode differentiation.
    """
    call = _NormReluPoolCall(x, weight, bias, running_mean, running_var, momentum, eps, pool, residual)
    _check(call)
    # the kernels write to tensors, which vmap cannot map, and have no forward derivative
    needs_reference = fused.inside_torch_func() or fused.has_tangent(x, weight, bias, residual)
    if backend is None and (needs_reference or _torch_is_faster(x, pool)):
        backend = "reference"
    result: Tensor = backends.select("norm_relu_pool", backend, x)(call)
    return result


def _torch_is_faster(x: Tensor, pool: bool) -> bool:
    """Whether the reference is faster than the kernels; on CUDA that is an estimate for torch.compile, see
    `benchmarks.engine_step --ops`."""
    if x.is_cpu:
        return (x.dtype == torch.float32 and not pool) or x.shape[1] * x.itemsize < 16
    return torch.compiler.is_compiling() and backends.forced() == "auto"


class _NormReluPoolCall(NamedTuple):
    """The arguments of one call, in the order of the operator's."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float
    pool: bool
    residual: Tensor | None


def _check(call: _NormReluPoolCall) -> None:
    x, pool, residual = call.x, call.pool, call.residual
    checks.check_tensors(**{name: getattr(call, name) for name in TENSORS})
    checks.check_optional_tensors(residual=residual)
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be bfloat16, float32 or float64, got {x.dtype}")
    checks.check_numbers(momentum=call.momentum, eps=call.eps)
    checks.check_flags(pool=pool)
    if not 0 < call.eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {call.eps}")
    smallest = 2 if pool else 1
    if x.dim() != 4 or x.shape[1] < 1 or min(x.shape[2:]) < smallest:
        raise ValueError(f"x must be (B,C,H,W) with C >= 1 and H, W >= {smallest}, got {tuple(x.shape)}")
    if x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"x must have more than one value a channel, got {tuple(x.shape)}")
    for name in TENSORS[1:]:
        tensor: Tensor = getattr(call, name)
        if tensor.shape != x.shape[1:2]:
            raise ValueError(f"{name} must be ({x.shape[1]},) for this x, got {tuple(tensor.shape)}")
        if tensor.dtype != DTYPES[x.dtype]:
            raise TypeError(f"{name} must be {DTYPES[x.dtype]} for {x.dtype} x, got {tensor.dtype}")
        checks.check_device(name, tensor, "x", x)
    if residual is not None:
        if pool:
            raise ValueError("a residual is added without pooling: pool=False")
        if residual.shape != x.shape:
            raise ValueError(f"residual must be {tuple(x.shape)} as x is, got {tuple(residual.shape)}")
        if residual.dtype != x.dtype:
            raise TypeError(f"residual must be {x.dtype} as x is, got {residual.dtype}")
        checks.check_device("residual", residual, "x", x)
    checks.check_written(running_mean=call.running_mean, running_var=call.running_var)


# The definition.


def _reference(call: _NormReluPoolCall) -> Tensor:
    x, weight, bias, running_mean, running_var, momentum, eps, pool, residual = call
    # torch.func maps no batch norm of one dtype with parameters of another; inside, torch computes in theirs anyway
    wide = x.to(weight.dtype) if fused.inside_torch_func() else x
    weight, bias = weight.contiguous(), bias.contiguous()  # torch 2.14 returns wrong gradients where weight has gaps
    y = F.batch_norm(wide, running_mean, running_var, weight, bias, training=True, momentum=momentum, eps=eps)
    y = y.to(x.dtype)
    y = F.relu(y if residual is None else y + residual)
    return F.max_pool2d(y, 2) if pool else y


# The fused backends.


def _fused(operator: OpOverload, call: _NormReluPoolCall) -> Tensor:
    x, weight, bias, *settings, residual = call
    fused.refuse_tangent("norm_relu_pool", x, weight, bias, residual)
    x = x.contiguous(memory_format=torch.channels_last)
    detached = None
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
        detached = residual.detach()
    y, *saved = operator(x.detach(), weight.detach(), bias.detach(), *settings, detached)
    leaves = (x, weight, bias) if residual is None else (x, weight, bias, residual)
    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves):
        return _AttachImageGradient.apply(operator.namespace, call.pool, y, x, weight, bias, residual, *saved)
    return y


class _AttachImageGradient(torch.autograd.Function):
    """Gives the result its gradient. (torch.library.register_autograd takes no operator that writes to an argument.)"""

    @staticmethod
    def forward(
        ctx: Any,
        namespace: str,
        pool: bool,
        y: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        *saved: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *saved)
        ctx.namespace, ctx.settings = namespace, (pool, residual is not None)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        fused.refuse_tangent("norm_relu_pool", upstream[0])
        gradient = upstream[0].contiguous(memory_format=torch.channels_last)
        operator = fused.overload(ctx.namespace, "norm_relu_pool_backward")
        gradients = operator(gradient, x, weight, *saved, *ctx.settings)
        if torch.is_grad_enabled():  # create_graph=True
            gradients = [fused.NoSecondDerivative.apply(one, gradient, x, weight) for one in gradients]
        *of_inputs, of_residual = gradients
        return None, None, None, *of_inputs, of_residual if ctx.settings[1] else None, None, None, None


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    pool: bool,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    if pool:
        height, width = height // 2, width // 2
    rows, windows = (batch * height, width) if pool else (batch, height * width)
    if x.device.type == "cuda":
        vector = 16 // x.itemsize if channels % (16 // x.itemsize) == 0 else 1
        shape = batch, height, width, channels // vector * max(1, vector * (4 if pool else 1) // 8)
    else:
        of_pack = 64 // x.itemsize
        factor = of_pack // math.gcd(channels, of_pack)
        if pool or windows % factor or channels * factor > 1024:  # as `with_whole_packs` of cpu.cpp
            factor = 1
        shape = rows, -(-windows // (2 * x.itemsize * factor)), -(-channels * factor // of_pack), 64
    return (
        torch.empty(
            (batch, channels, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        ),
        x.new_empty(shape, dtype=torch.uint8),
        torch.empty_like(weight),
        torch.empty_like(weight),
    )


def _fake_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    places: Tensor,
    mean: Tensor,
    invstd: Tensor,
    pool: bool,
    residual: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_x, of_added = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last) for _ in range(2)
    )
    of_residual = of_added if residual else x.new_empty((0,))
    return of_x, torch.empty_like(mean), torch.empty_like(mean), of_residual


fused.define(
    "norm_relu_pool",
    "norm_relu_pool",
    "(Tensor x, Tensor weight, Tensor bias, Tensor(a!) running_mean, Tensor(b!) running_var, float momentum, "
    "float eps, bool pool, Tensor? residual=None) -> (Tensor y, Tensor places, Tensor mean, Tensor invstd)",
    _fake,
)
fused.define(
    "norm_relu_pool_backward",
    "norm_relu_pool",
    "(Tensor gradient, Tensor x, Tensor weight, Tensor places, Tensor mean, Tensor invstd, bool pool, "
    "bool residual=False) -> (Tensor of_x, Tensor of_weight, Tensor of_bias, Tensor of_residual)",
    _fake_backward,
)
backends.register("norm_relu_pool", "reference", _reference)
fused.register("norm_relu_pool", _fused, on_gpu=(torch.float32, torch.bfloat16))

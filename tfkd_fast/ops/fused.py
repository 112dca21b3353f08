"""Fused operators, which a kernel computes in one pass: their schemas, their backends and their vmap rules.

A fused operator is one schema in two namespaces. `tfkd_fast` is implemented by the compiled libraries, for CPU and CUDA
tensors; `tfkd_fast_triton` by the Triton kernels, which are imported when one is first called. An operator without a
Triton kernel is in the first one alone.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from tfkd_fast.ops import backends

NAMESPACES = {"cpp": "tfkd_fast", "cuda": "tfkd_fast", "triton": "tfkd_fast_triton"}
"""Backend name -> the torch.library namespace of its operators."""


class Definition(NamedTuple):
    """The definition of an operator, which all its backends share."""

    schema: str
    """Arguments and results, as in `torch.library.define`."""
    fake: Callable[..., Any]
    """Returns results of the right shapes and dtypes for fake tensors."""
    vmap: Callable[..., Any] | None
    """The vmap rule `vmap(operator, info, in_dims, *args)`, see `torch.library.register_vmap`.

    None for an operator that writes to an argument, and for one whose mapped calls are left to the reference."""


DEFINITIONS: dict[str, Definition] = {}
"""Definition of every operator by name."""

OLDEST_CAPABILITY = (8, 0)
"""Lowest CUDA compute capability that the kernels support."""

TRITON_MISSING = None if importlib.util.find_spec("triton") else "Triton is not installed: pip install triton"
TRITON_INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"  # on CPU tensors, slowly; Triton reads it when imported


def define(
    operator: str, module: str | None, schema: str, fake: Callable[..., Any], vmap: Callable[..., Any] | None = None
) -> None:
    """Define an operator in its namespaces.

    Args:
        operator: its name, and that of its Triton function.
        module: the module of `tfkd_fast.kernels` that has the function; None where there is no Triton kernel.
        schema, fake, vmap: see `Definition`.
    """
    DEFINITIONS[operator] = Definition(schema, fake, vmap)
    define_in(NAMESPACES["cpp"], operator)
    if module is None:
        return

    def triton_function(*args: Any) -> Any:
        return getattr(importlib.import_module(f"tfkd_fast.kernels.{module}"), operator)(*args)

    define_in(NAMESPACES["triton"], operator)
    torch.library.impl(f"{NAMESPACES['triton']}::{operator}", "default", triton_function)


def define_in(namespace: str, operator: str) -> None:
    """Define the operator in one namespace, without an implementation."""
    name, definition = f"{namespace}::{operator}", DEFINITIONS[operator]
    torch.library.define(name, definition.schema, tags=[torch.Tag.pt2_compliant_tag])
    torch.library.register_fake(name, definition.fake)
    if definition.vmap is not None:
        torch.library.register_vmap(name, partial(definition.vmap, overload(namespace, operator)))


def overload(namespace: str, operator: str) -> OpOverload:
    """Return the callable overload of an operator in a namespace."""
    found: OpOverload = getattr(getattr(torch.ops, namespace), operator).default
    return found


def register(
    operator: str,
    call: Callable[..., Any],
    only: Sequence[str] = tuple(NAMESPACES),
    *,
    on_gpu: Sequence[torch.dtype] | None = None,
) -> None:
    """Register the backends cpp, cuda and triton of an operator.

    Args:
        operator: a defined operator, of the same name as the public function.
        call: `call(overload, *args)` does with a backend's operator what the reference does with `args`.
        only: the backends that the operator has.
        on_gpu: the dtypes of the main input that the kernels for a GPU serve; None for all of the operator's.
    """
    for backend, refuses, about in (
        ("cpp", cpp_refuses, backends.native_library.about),
        ("cuda", _cuda_refuses, backends.cuda_library.about),
        ("triton", _triton_refuses, "compiled when it is first called"),
    ):
        if backend in only:
            if backend != "cpp" and on_gpu is not None:
                refuses = partial(_refuses_dtype, refuses, on_gpu)
            function = partial(call, overload(NAMESPACES[backend], operator))
            backends.register(operator, backend, function, refuses=refuses, about=about)


def cpp_refuses(tensor: Tensor) -> str | None:
    """Return why the compiled library for the CPU cannot serve a tensor, or None; see `backends.register`."""
    if backends.native_library.missing is not None:
        return backends.native_library.missing
    return None if tensor.is_cpu else f"it serves CPU tensors, not {tensor.device.type} tensors"


def _cuda_refuses(tensor: Tensor) -> str | None:
    return backends.cuda_library.missing or refuses_device(tensor)


def _triton_refuses(tensor: Tensor) -> str | None:
    if TRITON_MISSING or (tensor.is_cpu and TRITON_INTERPRETS):
        return TRITON_MISSING
    return refuses_device(tensor)


def _refuses_dtype(
    otherwise: Callable[[Tensor], str | None], served: Sequence[torch.dtype], tensor: Tensor
) -> str | None:
    if tensor.dtype not in served:
        return f"it serves {' and '.join(str(dtype).removeprefix('torch.') for dtype in served)}, not {tensor.dtype}"
    return otherwise(tensor)


def refuses_device(tensor: Tensor) -> str | None:
    """Return why kernels for a GPU cannot serve a tensor on its device, or None."""
    if not tensor.is_cuda:
        return f"it serves CUDA tensors, not {tensor.device.type} tensors"
    major, minor = torch.cuda.get_device_capability(tensor.device)
    if (major, minor) < OLDEST_CAPABILITY:
        return f"it needs compute capability 8.0, {torch.cuda.get_device_name(tensor.device)} has {major}.{minor}"
    return None


def inside_torch_func() -> bool:
    """Whether the caller runs inside of a transform of torch.func, as vmap and grad are.

    Torch has no public function for it. This private one is what its own autograd.Function asks in every call.
    """
    inside: bool = torch._C._are_functorch_transforms_active()
    return inside


def forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open.

    Torch has no public function for it. torch.compile follows this one without leaving its graph.
    """
    level: int = forward_ad._current_level
    return level >= 0


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether a tensor carries a tangent of forward-mode differentiation (forward_ad.dual_level, torch.func.jvp)."""
    return forward_mode() and any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def refuse_tangent(operator: str, *tensors: Tensor | None, remedy: str = 'backend="reference"') -> None:
    """Raise RuntimeError for a tensor with a tangent, which an operator without a forward derivative would lose."""
    if has_tangent(*tensors):
        raise RuntimeError(f"this backend of {operator} has no forward-mode derivative: use {remedy}")


class NoSecondDerivative(torch.autograd.Function):
    """Makes the derivative of a gradient raise an error: it depends on the inputs, but its derivative is not known."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError('this backend has no second derivative: use backend="reference"')

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        """Refuse forward mode over a gradient, as `backward` does the reverse mode."""
        raise RuntimeError('this backend has no second derivative: use backend="reference"')


# Rules of torch.func.vmap.


def fold_candidates(
    info: Any, in_dims: Sequence[int | None], args: Sequence[Any], core_axes: Sequence[int | None]
) -> tuple[list[Any], tuple[int, ...]]:
    """Return the arguments of one call that replaces `info.batch_size` mapped calls: the mapped axis joins the P axis.

    Args:
        info, in_dims, args: as torch passes them to a vmap rule.
        core_axes: for each argument its number of axes without the P axis; None for an argument that is no tensor. The
            first argument shows whether the mapped calls have a P axis.

    Returns:
        The arguments, in which a tensor with neither axis is unchanged, and the axes that replace P in the results:
        (V,) or (V,P).
    """
    first = args[0] if in_dims[0] is None else args[0].movedim(in_dims[0], -1)[..., 0]
    candidates = first.shape[: first.dim() - core_axes[0]]
    lead = (info.batch_size, *candidates)

    folded = []
    for position, (tensor, dim, axes) in enumerate(zip(args, in_dims, core_axes, strict=True)):
        if tensor is None or axes is None:
            folded.append(tensor)
            continue
        mapped = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
        has_candidates = mapped.dim() - 1 > axes
        if position > 0 and dim is None and not has_candidates:
            folded.append(tensor)
            continue
        if candidates and not has_candidates:
            mapped = mapped.unsqueeze(1)
        folded.append(mapped.expand(*lead, *mapped.shape[len(lead) :]).flatten(0, len(lead) - 1))
    return folded, lead


def fold_any_candidates(
    info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor], core_axes: Sequence[int]
) -> tuple[list[Tensor], tuple[int, ...]]:
    """Do what `fold_candidates` does for tensors any of which may have the P axis.

    Args:
        info, in_dims: as torch passes them to a vmap rule.
        tensors: the arguments.
        core_axes: for each tensor its number of axes without the P axis.

    Returns:
        The tensors, of which one with neither axis is unchanged, and the axes that replace P: (V,) or (V,P).
    """
    shapes = []  # mapped axis, P axis, own axes
    folded = list(tensors)
    for position, (dim, axes) in enumerate(zip(in_dims, core_axes, strict=True)):
        if dim is not None:
            folded[position] = folded[position].movedim(dim, 0)
        shape = folded[position].shape
        at_own = len(shape) - axes
        shapes.append((shape[: dim is not None], shape[dim is not None : at_own], shape[at_own:]))

    lead = (info.batch_size, *max(candidates for _, candidates, _ in shapes))
    for position, (mapped, candidates, own) in enumerate(shapes):
        if mapped or candidates:
            with_all = (*(mapped or (1,)), *(candidates or (1,) * (len(lead) - 1)), *own)
            folded[position] = folded[position].reshape(with_all).expand(*lead, *own).flatten(0, len(lead) - 1)
    return folded, lead


def unfold_candidates(results: Any, lead: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the result of a vmap rule: results with axes `lead` in place of P, and positions of the mapped axis."""
    if isinstance(results, Tensor):
        return results.unflatten(0, lead), 0
    return tuple(result.unflatten(0, lead) for result in results), (0,) * len(results)

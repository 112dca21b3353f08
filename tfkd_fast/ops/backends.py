"""Backends: the choice of the implementation of an operator that serves a call, and why others cannot serve it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tfkd_fast.errors import UserError, nearest
from tfkd_fast.ops import native

BACKENDS = {"cuda": "CUDA", "cpp": "C++", "triton": "Triton", "reference": "PyTorch"}
"""Backend name -> its language, the fastest first. On the CPU Triton is an interpreter, which is slower than C++."""

DEVICES = {"cuda": "cuda", "cpp": "cpu", "triton": "cuda"}
"""Backend name -> the type of device that it is for."""


class Implementation(NamedTuple):
    """One backend of one operator."""

    function: Callable[..., Any]
    """The function that computes the operator."""
    refuses: Callable[[Tensor], str | None]
    """Returns why the backend cannot serve a tensor; None if it can."""
    about: str
    """A description of the implementation for people."""


class BackendStatus(NamedTuple):
    """The status of one backend of an operator on this machine."""

    name: str
    """Name of the backend."""
    state: str
    """One of "chosen", "present" and "refused"."""
    reason: str
    """Why it is refused, or a description of the implementation."""


class OperatorStatus(NamedTuple):
    """The status of all backends of an operator on this machine."""

    name: str
    """Name of the operator."""
    backends: tuple[BackendStatus, ...]
    """One entry for each backend, the fastest first."""


native_library = native.load_cpp()
cuda_library = native.load_cuda()
autograd_extension = native.load_autograd()

operators: dict[str, dict[str, Implementation]] = {}
"""Operator -> backend -> its implementation; `register` fills it."""
_forced = os.environ.get("TFKD_FAST_OPS", "auto")


def register(
    operator: str,
    backend: str,
    function: Callable[..., Any],
    *,
    refuses: Callable[[Tensor], str | None] = lambda tensor: None,
    about: str = "plain PyTorch, the definition",
) -> None:
    """Add a backend to an operator. Every operator has the backend `reference`, which refuses nothing.

    Args:
        operator: name of the operator.
        backend: name of the backend.
        function: computes the operator.
        refuses: returns why the backend cannot serve a tensor; None if it can.
        about: a description of the implementation for people.
    """
    if backend == "reference":
        function = partial(_outside_autocast, function)
    operators.setdefault(operator, {})[backend] = Implementation(function, refuses, about)


def select(operator: str, backend: str | None, tensor: Tensor) -> Callable[..., Any]:
    """Return the implementation that serves `tensor`.

    Args:
        operator: a registered operator.
        backend: the backend to use. None takes the one forced by `using_backend`, else the one forced by the
            environment variable TFKD_FAST_OPS, else the fastest that serves. A forced backend applies to tensors on the
            device that it is for; other tensors, such as a few numbers on the CPU, and operators without that backend
            are served as if none were forced.
        tensor: the operator's main input: its device and dtype decide.

    Raises:
        ValueError: `backend` cannot serve the tensor.
        UserError: the forced backend cannot serve the tensor.
    """
    return operators[operator][_choose(operator, backend, tensor)].function


def backend_of(operator: str, device: torch.device) -> str:
    """Return the backend that serves float32 tensors on `device` if a call names none.

    Raises:
        UserError: the forced backend cannot serve them, or is for another device.
    """
    tensor = torch.empty(0, device=device)
    if _forced != "auto":
        _check_forced(_forced)
        _refuse_forced(operator, tensor)
    return _choose(operator, None, tensor)


def forced() -> str:
    """Return the backend that is forced on the process; "auto" if none is."""
    return _forced


def is_for_cpp(backend: str | None) -> bool:
    """Whether a call that names this backend, or none, is served by C++ where its tensors are on the CPU."""
    return _forced in ("auto", "cpp") if backend is None else backend == "cpp"


def why_slow() -> str | None:
    """Return a sentence where plain PyTorch serves because the C++ library is missing; None if it is loaded."""
    if native_library.missing is None:
        return None
    return f"The slow operators serve (plain PyTorch), because {native_library.missing}"


@contextmanager
def using_backend(name: str) -> Iterator[None]:
    """Force a backend on the whole process while the context is open, see `select`; "auto" changes nothing.

    Raises:
        UserError: no operator has this backend.
    """
    global _forced
    if name != "auto":
        _check_forced(name)
    previous, _forced = _forced, _forced if name == "auto" else name
    try:
        yield
    finally:
        _forced = previous


def status(device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> list[OperatorStatus]:
    """Return the status of every backend of every operator.

    Args:
        device: device of the tensors; by default the GPU if there is one.
        dtype: dtype of the tensors.
    """
    tensor = torch.empty(0, dtype=dtype, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return [
        OperatorStatus(operator, tuple(_backend_status(operator, backend, tensor) for backend in BACKENDS))
        for operator in operators
    ]


def _outside_autocast(function: Callable[..., Any], *args: Any) -> Any:
    """Call a reference, which chooses its precision itself, as the other backends do."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return _outside_autocast(function, *args)
    return function(*args)


def _backend_status(operator: str, backend: str, tensor: Tensor) -> BackendStatus:
    refusal = _refusal(operator, backend, tensor)
    if refusal is not None:
        return BackendStatus(backend, "refused", refusal)
    try:
        chosen = _choose(operator, None, tensor)
    except UserError:  # a forced backend that cannot serve: its own line says why
        chosen = None
    state = "chosen" if backend == chosen else "present"
    return BackendStatus(backend, state, operators[operator][backend].about)


def _choose(operator: str, backend: str | None, tensor: Tensor) -> str:
    if backend is not None:
        refusal = _refusal(operator, backend, tensor)
        if refusal is not None:
            raise ValueError(f"backend {backend!r} cannot serve {operator}: {refusal}")
        return backend
    if _forced != "auto":
        _check_forced(_forced)
        if _forced in operators[operator] and DEVICES.get(_forced, tensor.device.type) == tensor.device.type:
            _refuse_forced(operator, tensor)
            return _forced
    implementations = operators[operator]
    for name in BACKENDS:
        if name in implementations and implementations[name].refuses(tensor) is None:
            return name
    raise AssertionError(f"the reference of {operator} is not registered")


def _refuse_forced(operator: str, tensor: Tensor) -> None:
    refusal = _refusal(operator, _forced, tensor)
    if refusal is not None:
        raise UserError(f"operator backend {_forced!r} cannot serve {operator}: {refusal}; choose auto")


def _refusal(operator: str, backend: str, tensor: Tensor) -> str | None:
    if backend not in BACKENDS:
        return f"there is no such backend, {nearest(backend, BACKENDS)}"
    if backend not in operators[operator]:
        return f"this operator has no {BACKENDS[backend]} kernel"
    return operators[operator][backend].refuses(tensor)


def _check_forced(name: str) -> None:
    """Raise UserError for a forced backend that no operator has: it would otherwise be ignored silently."""
    if name not in BACKENDS:
        raise UserError(f"operator backend {name!r} does not exist: {nearest(name, ['auto', *BACKENDS])}")
    if not any(name in implementations for implementations in operators.values()):
        raise UserError(f"operator backend {name!r} serves no operator yet: choose auto")

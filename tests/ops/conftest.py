"""Every test of an operator runs with every backend: on a GPU where there is one, or else as far as the processor can.

Without a GPU the Triton kernels run in Triton's interpreter and the CUDA kernels as C++ (tests/cuda_on_host).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.cuda_on_host import build
from tests.ops.interpreter import make_types_once, replace_once, round_to_nearest
from tfkd_fast.ops import backends, fused

GPU = torch.cuda.is_available()
if fused.TRITON_INTERPRETS and not fused.TRITON_MISSING:
    round_to_nearest()
    replace_once()
    make_types_once()
DEVICE = torch.device("cuda" if GPU else "cpu")
on_gpu = [pytest.mark.gpu] if GPU else []


class Backend(NamedTuple):
    """A backend under test."""

    name: str
    device: torch.device
    slow: bool
    """It runs in an interpreter: a test may do less with it."""


KERNELS_FOR_GPU = [pytest.param("cuda", marks=on_gpu), pytest.param("triton", marks=on_gpu)]


@pytest.fixture(scope="module", params=["reference", "cpp", *KERNELS_FOR_GPU])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend that this machine can run."""
    with backend_under_test(request.param) as one:
        yield one


@pytest.fixture(scope="module", params=KERNELS_FOR_GPU)
def kernel(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each backend for a GPU."""
    with backend_under_test(request.param) as one:
        yield one


@contextmanager
def backend_under_test(name: str) -> Iterator[Backend]:
    """A backend, as far as this machine can run it; the test is skipped where it cannot."""
    if name == "cpp" and backends.native_library.missing is not None:
        pytest.skip(backends.native_library.missing)
    if name == "triton" and fused.TRITON_MISSING:
        pytest.skip(fused.TRITON_MISSING)
    if name == "cuda" and GPU and backends.cuda_library.missing is not None:
        pytest.skip(backends.cuda_library.missing)
    if name != "cuda" or GPU:
        yield Backend(name, DEVICE if name in ("cuda", "triton") else torch.device("cpu"), name == "triton" and not GPU)
        return
    if (reason := build.missing()) is not None:
        pytest.skip(reason)
    with cuda_on_host():
        yield Backend(name, DEVICE, slow=True)


@contextmanager
def cuda_on_host() -> Iterator[None]:
    """While it is active, the backend "cuda" of every operator runs on CPU tensors."""
    failures = build.load()
    assert not failures, "\n".join(failures.values())
    before = {operator: of["cuda"] for operator, of in backends.operators.items() if "cuda" in of}
    for operator, cuda in before.items():
        function = partial(cuda.function.func, fused.overload(build.NAMESPACE, operator))
        backends.register(operator, "cuda", function, refuses=cuda.refuses, about="on the processor")
    with pytest.MonkeyPatch.context() as patch:  # what a kernel refuses for its dtype, it refuses here, too
        patch.setattr(backends, "cuda_library", backends.cuda_library._replace(missing=None))
        patch.setattr(fused, "refuses_device", _serves_the_processor)
        try:
            yield
        finally:
            for operator, cuda in before.items():
                backends.operators[operator]["cuda"] = cuda


def _serves_the_processor(tensor: Tensor) -> str | None:
    return None if tensor.is_cpu else "it serves CPU tensors"

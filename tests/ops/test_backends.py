"""Which backend serves a call: the order of preference, forced backends and refusals."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tfkd_fast import ops
from tfkd_fast.errors import UserError
from tfkd_fast.ops import backends

CPU = torch.device("cpu")
needs_cpp = pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))


def in_a_new_process(code: str, **environment: str) -> Any:
    """The JSON that `code` prints."""
    process = subprocess.run(
        [sys.executable, "-c", f"import json, torch\nfrom tfkd_fast import ops\n{code}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


@pytest.fixture
def operator() -> Any:
    """An operator whose fast backend serves float32 only; each implementation returns its name."""
    name = "test_operator"
    backends.register(name, "reference", lambda: "reference")
    backends.register(
        name,
        "cpp",
        lambda: "cpp",
        refuses=lambda tensor: None if tensor.dtype == torch.float32 else f"no kernel for {tensor.dtype}",
        about="a test",
    )
    yield name
    del backends.operators[name]


def test_the_fastest_that_serves_is_chosen(operator: str) -> None:
    assert backends.select(operator, None, torch.zeros(1))() == "cpp"
    assert backends.select(operator, None, torch.zeros(1).double())() == "reference"
    assert backends.select(operator, "reference", torch.zeros(1))() == "reference"


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("cpp", "no kernel for torch.float64"),
        ("cuda", "this operator has no CUDA kernel"),
        ("tritno", "there is no such backend, did you mean 'triton'"),
    ],
)
def test_a_named_backend_that_cannot_serve_says_why(operator: str, backend: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        backends.select(operator, backend, torch.zeros(1).double())


def test_a_forced_backend_is_strict_on_its_device_and_ends_with_its_block(operator: str) -> None:
    with ops.using_backend("cpp"):
        assert backends.select(operator, None, torch.zeros(1))() == "cpp"
        assert backends.select(operator, None, torch.zeros(1, device="meta"))() == "cpp"  # not the CPU: the fastest
        assert backends.select(operator, "reference", torch.zeros(1))() == "reference"
        with pytest.raises(UserError, match=r"'cpp' cannot serve test_operator: no kernel for torch\.float64"):
            backends.select(operator, None, torch.zeros(1).double())
        with ops.using_backend("auto"):
            assert backends.select(operator, None, torch.zeros(1))() == "cpp"
    assert backends.select(operator, None, torch.zeros(1).double())() == "reference"


def test_a_backend_forced_for_another_device_is_refused_when_asked_for(operator: str) -> None:
    with ops.using_backend("cuda"):
        assert backends.select(operator, None, torch.zeros(1))() == "cpp"
        with pytest.raises(UserError, match="'cuda' cannot serve soft_target_loss"):
            ops.backend_of("soft_target_loss", CPU)


def test_a_block_ends_on_errors_too() -> None:
    before = ops.backend_of("soft_target_loss", CPU)
    block = ops.using_backend("reference")
    with pytest.raises(ZeroDivisionError), block:
        1 / 0  # noqa: B018
    assert ops.backend_of("soft_target_loss", CPU) == before


def test_forcing_a_backend_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="did you mean 'reference'"), ops.using_backend("referense"):
        pass


def test_status_lists_every_backend_of_every_operator(operator: str) -> None:
    table = {row.name: {backend.name: backend for backend in row.backends} for row in ops.status()}
    assert {"soft_target_loss", "soft_target_loss_with_stats", "rank_candidates", operator} <= set(table)
    for row in table.values():
        assert set(row) == {"reference", "cpp", "cuda", "triton"}
        assert [backend.state for backend in row.values()].count("chosen") == 1
        assert all(backend.reason for backend in row.values())
    states = {name: backend.state for name, backend in table[operator].items()}
    assert states == {"cpp": "chosen", "reference": "present", "triton": "refused", "cuda": "refused"}


@needs_cpp
def test_the_library_serves_cpu_tensors() -> None:
    assert ops.backend_of("soft_target_loss", CPU) == "cpp"
    assert ops.backend_of("soft_target_loss", torch.device("meta")) == "reference"
    with pytest.raises(ValueError, match="it serves CPU tensors, not meta tensors"):
        backends.select("soft_target_loss", "cpp", torch.empty(0, device="meta"))


def test_the_environment_variable_forces_a_backend() -> None:
    code = 'print(json.dumps(ops.backend_of("soft_target_loss", torch.device("cpu"))))'
    assert in_a_new_process(code, TFKD_FAST_OPS="reference") == "reference"


def test_an_environment_variable_that_names_nothing_is_refused_at_the_first_call_not_at_import() -> None:
    code = """
from tfkd_fast.errors import UserError
try:
    ops.soft_target_loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), torch.eye(2))
except UserError as error:
    print(json.dumps(str(error)))
"""
    message = "operator backend 'cp' does not exist: did you mean 'cpp'?"
    assert in_a_new_process(code, TFKD_FAST_OPS="cp") == message


def operator_arguments() -> dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]]:
    """The tensors and the other arguments of a call of every operator."""
    z, y, one = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(3)
    logits = {"logits": z, "labels": y}
    table = {**logits, "targets": torch.eye(3)}
    students = {"student_logits": z, "teacher_logits": z, "labels": y, "teacher_weights": torch.ones(1)}
    x, statistics = torch.zeros(2, 3, 4, 4), {"running_mean": one, "running_var": one}
    masses = {"similarity": torch.eye(3), "true_mass": torch.tensor(0.5), "bin_masses": torch.ones(1)}
    images = {"images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "indices": y, "draw": y[:3]}
    options = {"pad": 1, "flip": False, "dtype": torch.float32}
    return {
        "soft_target_loss": (ops.soft_target_loss, table, {}),
        "soft_target_loss_with_stats": (ops.soft_target_loss_with_stats, {**table, "similarity": torch.eye(3)}, {}),
        "distillation_loss": (ops.distillation_loss, students, {}),
        "peer_loss": (ops.peer_loss, {"logits": z.expand(2, 4, 3), "labels": y}, {}),
        "norm_relu_pool": (ops.norm_relu_pool, {"x": x, "weight": one, "bias": one, **statistics}, {"momentum": 0.1}),
        "conv3x3": (ops.conv3x3, {"x": x, "weight": torch.zeros(5, 3, 3, 3), "bias": torch.zeros(5)}, {}),
        "sgd_step": (ops.sgd_step, {"weight": one, "gradient": one, "momentum": torch.zeros(3)}, {"rate": 0.1}),
        "candidate_metrics": (ops.candidate_metrics, {"logits": z.expand(2, 4, 3), "labels": y}, {}),
        "rank_candidates": (ops.rank_candidates, {"criteria": z}, {"higher_is_better": [True] * 3}),
        "rank_binned_targets": (ops.rank_binned_targets, masses, {"bin_starts": [1]}),
        "augment": (ops.augment, {**images, "mean": one, "std": one}, options),
    }


@pytest.mark.parametrize("name", list(operator_arguments()))
def test_a_number_in_place_of_a_tensor_is_refused_in_one_sentence(name: str) -> None:
    function, tensors, others = operator_arguments()[name]
    function(**tensors, **others)
    for argument in tensors:
        with pytest.raises(TypeError, match=rf"^{argument} must be a tensor, got float: use torch\.as_tensor$"):
            function(**{**tensors, argument: 0.5}, **others)

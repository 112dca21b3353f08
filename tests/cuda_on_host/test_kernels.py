"""What holds for every CUDA kernel, whatever it computes. That the results are right is tested with the operators."""

import pytest
import torch
from torch import Tensor

from tests.cuda_on_host import build, calls

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

ORDERS = ["descending", "1"]


@pytest.fixture(scope="module", autouse=True)
def compiled():
    assert build.load() == {}


@pytest.mark.parametrize("name", calls.OPERATORS)
def test_the_order_of_threads_and_blocks_does_not_matter(name: str):
    """A race between threads or blocks would show, and so would a result that is not summed in a fixed order."""
    operator = getattr(getattr(torch.ops, build.NAMESPACE), name)
    for arguments in calls.OPERATORS[name]():
        wanted, updated = run(operator, arguments)
        for order in ORDERS:
            with build.order(order):
                got, got_updated = run(operator, arguments)
            for a, b in zip(got, wanted, strict=True):
                assert equal(a, b)
            # Samples add to the similarity in the order in which they come.
            torch.testing.assert_close(got_updated, updated)


@pytest.mark.parametrize("name", calls.OPERATORS)
def test_every_result_is_written_and_no_input(name: str):
    operator = getattr(getattr(torch.ops, build.NAMESPACE), name)
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN or the largest integer
    try:
        for arguments in calls.OPERATORS[name]():
            before = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
            for result in results_of(operator(*arguments)):
                if result.is_floating_point():
                    assert not result.isnan().any() or 0 in arguments[0].shape
                else:
                    assert (result < 1_000_000).all()
            for position, (a, b) in enumerate(zip(arguments, before, strict=True)):
                if isinstance(a, Tensor) and not updates(operator, position):
                    assert equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", calls.OPERATORS)
def test_a_tensor_of_another_device_is_refused(name: str):
    """Each tensor in turn is on the meta device, which no kernel can read; torch's choice of a kernel by the devices of
    the arguments, which would take such a call elsewhere, is left out."""
    operator = getattr(getattr(torch.ops, build.NAMESPACE), name).default
    met = set()
    for arguments in calls.OPERATORS[name]():
        places = [place for place, argument in enumerate(arguments) if isinstance(argument, Tensor)]
        for place in places if len(places) > 1 else ():
            moved = [argument.to("meta") if at == place else argument for at, argument in enumerate(arguments)]
            with pytest.raises(RuntimeError, match=r"must be on the device of (the logits|similarity|images)"):
                operator._op_dk(torch._C.DispatchKey.CPU, *moved)
            met.add(place)
    tensors = {place for place, one in enumerate(operator._schema.arguments) if "Tensor" in str(one.type)}
    assert met == (tensors if len(tensors) > 1 else set())


def test_foreign_memory_is_not_touched():
    """The same calls under the address sanitizer, which knows where each tensor ends."""
    script = f"""
from tests.cuda_on_host import build, calls
assert build.load(address_sanitizer=True) == {{}}
calls.make_all("{build.NAMESPACE}", "cpu")
"""
    result = build.run_under_address_sanitizer(script)
    met = result.stdout.split()
    assert result.returncode == 0, f"{met[-1:]}: {result.stderr}"
    assert met == list(calls.OPERATORS)


def run(operator, arguments: calls.Call) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and what the operator writes to, which is copied first."""
    arguments = tuple(
        argument.clone() if isinstance(argument, Tensor) and updates(operator, position) else argument
        for position, argument in enumerate(arguments)
    )
    results = results_of(operator(*arguments))
    updated = [
        argument for k, argument in enumerate(arguments) if isinstance(argument, Tensor) and updates(operator, k)
    ]
    return results, updated


def results_of(returned: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else list(returned)


def updates(operator, position: int) -> bool:
    alias = operator.default._schema.arguments[position].alias_info
    return alias is not None and alias.is_write


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit; NaN equals NaN."""
    return torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)) and torch.equal(a.isnan(), b.isnan())

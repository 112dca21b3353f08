"""What holds for every CUDA kernel, whatever it computes. That the results are right is tested with the operators."""

import pytest
import torch
from torch import Tensor

from tests.cuda_on_host import build, calls

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

ORDERS = ["descending", "1"]
OWNERS = "the logits|similarity|images|the gradient|x"


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
                elif result.dtype != torch.uint8:  # whose every value may be one that was written
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
            with pytest.raises(RuntimeError, match=rf"must be on the device of ({OWNERS})"):
                operator._op_dk(torch._C.DispatchKey.CPU, *moved)
            met.add(place)
    tensors = {place for place, one in enumerate(operator._schema.arguments) if "Tensor" in str(one.type)}
    assert met == (tensors if len(tensors) > 1 else set())


def logits_of(*shape: int) -> Tensor:
    return torch.zeros(*shape, 100)


def launched_by(operator: str, folder: str, *arguments) -> int:
    before = build.launches(folder)
    getattr(getattr(torch.ops, build.NAMESPACE), operator)(*arguments)
    return build.launches(folder) - before


@pytest.mark.parametrize(("lead", "batch", "count"), [((), 128, 1), ((), 256, 1), ((8,), 128, 1), ((), 512, 2)])
def test_launches_of_a_loss(lead: tuple[int, ...], batch: int, count: int):
    """One up to 256 samples of 100 classes; those of more are shared by blocks, whose sums a second kernel adds."""
    z, y, one = logits_of(*lead, batch), torch.zeros(batch, dtype=torch.int64), torch.ones(())
    q = torch.full((100, 100), 0.01)
    assert launched_by("soft_target_loss", "soft_target", z, y, q, one, None, True, "mean") == count
    assert launched_by("distillation_loss", "distillation", z, logits_of(1, batch), y, None, one, one, "mean") == count
    assert launched_by("scale_gradient", "scale_gradient", z, torch.ones(lead)) == 1


def test_launches_of_norm_relu_pool():
    """Statistics, their sum, and the result; sums over the gradient, their sum, and the gradients."""
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    numbers, operator = [torch.ones(16) for _ in range(4)], "norm_relu_pool"
    y, *saved = getattr(torch.ops, build.NAMESPACE).norm_relu_pool(x, *numbers, 0.1, 1e-5, True)
    assert launched_by(operator, operator, x, *numbers, 0.1, 1e-5, True) == 3
    assert launched_by(f"{operator}_backward", operator, y, x, numbers[0], *saved, True) == 3


@pytest.mark.parametrize("edge", ["before", "behind"])
def test_foreign_memory_is_not_touched(edge: str):
    """The same calls with tensors beside pages that nobody may touch."""
    script = f"""
from tests.cuda_on_host import build, calls
assert build.load() == {{}}
calls.make_all("{build.NAMESPACE}", "cpu")
"""
    result = build.run_between_guard_pages(script, edge)
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


def results_of(returned: Tensor | tuple[Tensor, ...] | None) -> list[Tensor]:
    return [returned] if isinstance(returned, Tensor) else list(returned or ())


def updates(operator, position: int) -> bool:
    alias = operator.default._schema.arguments[position].alias_info
    return alias is not None and alias.is_write


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit; NaN equals NaN."""
    return torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)) and torch.equal(a.isnan(), b.isnan())

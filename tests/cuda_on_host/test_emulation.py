"""The emulation of CUDA on the processor: right kernels give what they give on a device, wrong ones an error."""

import signal

import pytest
import torch
from torch import Tensor

from tests.cuda_on_host import build

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

SOURCE = build.HERE / "emulation.cu"
ORDERS = ["ascending", "descending", "1", "2"]


@pytest.fixture(scope="module")
def run():
    torch.library.define(f"{build.NAMESPACE}::emulation", "(Tensor input, str kernel, int threads) -> Tensor")
    torch.ops.load_library(build.library(SOURCE))
    return getattr(torch.ops, build.NAMESPACE).emulation


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest):
    with build.order(request.param):
        yield request.param


def test_the_kernels_of_the_library_compile():
    assert build.load() == {}


@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_sum_over_a_block(run, order: str, threads: int):
    values = torch.randn(1000)
    sums = run(values, "sum", threads)[:threads]
    # A thread adds at most 32 values and a tree of 10 levels follows: 42 roundings of partial sums.
    torch.testing.assert_close(sums, values.sum().expand(threads), rtol=0, atol=42 * 2**-24 * values.abs().sum().item())
    assert sums.unique().numel() == 1


def test_exchange_between_lanes(run, order: str):
    values = torch.randn(32)
    lane = torch.arange(32)
    down = torch.where(lane % 8 + 2 < 8, lane + 2, lane)
    wanted = [
        values[lane ^ 5],
        values[torch.where(lane >= 3, lane - 3, lane)],
        values[down],
        values[lane // 16 * 16 + 9],
        (values > 0).sum().expand(32),
        (values > 0).any().expand(32),
        (values > 0).all().expand(32),
        values[lane ^ 1],
    ]
    got = run(values, "lanes", 32).view(32, 8)
    assert torch.equal(got, torch.stack([column.float() for column in wanted], dim=1))


def test_exchange_through_shared_memory(run, order: str):
    values = torch.randn(4, 64)
    assert torch.equal(rotated(run, values, "rotate"), values.roll(-1, 1))


def test_a_missing_barrier_shows(run, order: str):
    values = torch.randn(4, 64)
    assert not torch.equal(rotated(run, values, "rotate without barrier"), values.roll(-1, 1))


def rotated(run, values: Tensor, kernel: str) -> Tensor:
    return run(values.flatten(), kernel, values.shape[1])[: values.numel()].view_as(values)


def test_shared_memory_begins_as_garbage(run, order: str):
    got = run(torch.zeros(64), "uninitialised", 64)[:64]
    assert got[0] == 1.0
    assert got[1:].isnan().all()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("returns before barrier", r"waits at __syncthreads .*, but thread \(7,0,0\) of block \(0,0,0\) has returned"),
        ("divergent barrier", r"waits at __syncthreads .* while thread .* waits at __syncthreads"),
        ("half a warp", r"waits in __shfl_xor_sync with mask 0xffffffff .*, but thread \(16,0,0\) .* has returned"),
        ("foreign lane", r"reads lane \d+, which its mask does not name"),
        ("misaligned", r"type_mismatch"),
        ("overflow", r"mul_overflow"),
        ("beyond shared", r"wrote beyond its 256 bytes of dynamic shared memory"),
        ("much shared", r"CUDA: invalid argument"),
        ("no blocks", r"CUDA: invalid configuration argument"),
    ],
)
def test_wrong_kernels(run, order: str, kernel: str, message: str):
    with pytest.raises(RuntimeError, match=message):
        run(torch.zeros(64), kernel, 64)
    assert run(torch.ones(64), "sum", 64)[0] == 64.0  # and the next one runs


def test_a_device_assertion_is_an_index_error(run, order: str):
    labels = torch.zeros(64)
    labels[5] = 10.0
    with pytest.raises(IndexError, match=r"thread \(5,0,0\) .*: assertion failed: 0 <= label"):
        run(labels, "label", 64)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("edge", ["before", "behind"])
def test_a_guard_page_stops_what_leaves_a_tensor(run, edge: str, reads: bool):
    script = f"""
import torch
from tests.cuda_on_host import build
torch.library.define("{build.NAMESPACE}::emulation", "(Tensor input, str kernel, int threads) -> Tensor")
torch.ops.load_library(build.library(build.HERE / "emulation.cu"))
run = torch.ops.{build.NAMESPACE}.emulation
run(torch.ones(256), "rotate", 64)
print("right kernel passed", flush=True)
run(torch.ones(256), "{"reads" if reads else "writes"} {edge}", 64)
"""
    result = build.run_between_guard_pages(script, edge)
    assert "right kernel passed" in result.stdout, result.stderr
    assert result.returncode == -signal.SIGSEGV

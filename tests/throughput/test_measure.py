"""What `tfkd-fast bench` measures: that it is what it says, not how fast it is."""

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tfkd_fast import device, ops
from tfkd_fast import throughput as bench
from tfkd_fast.cli.app import app
from tfkd_fast.cli.bench import workloads
from tfkd_fast.device import Compute
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.throughput import measure as measurements
from tfkd_fast.throughput import measure_interleaved, plain_loop
from tfkd_fast.throughput.plain_networks import WRITTEN_OUT, plain_network
from tfkd_fast.throughput.workload import engine_epoch

SMALL = bench.Workload(Compute(torch.device("cpu"), torch.float32), ModelSettings(width=0.125), batch_size=32, steps=2)


def test_variants_take_turns_and_the_median_counts() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    rows = measure_interleaved(variants, work=10, rounds=3)
    assert calls == list("abcabcbcacab")  # the first of each is not counted
    assert [row.variant for row in rows] == list("abc")
    for row in rows:
        assert row.images_per_second == pytest.approx(10 / sorted(row.seconds)[1])


def test_a_ratio_is_the_median_of_the_ratios_within_a_turn() -> None:
    ours = bench.Measurement("ours", 1.0, 0.0, [1.0, 10.0, 1.0])  # a slow turn, for both
    rival = bench.Measurement("rival", 1.0, 0.0, [2.0, 30.0, 1.5])
    assert bench.ratio(ours, rival).median == pytest.approx(2.0)  # of 2, 3 and 1.5
    assert bench.ratio(ours, rival).spread == pytest.approx((3.0 - 1.5) / 2 / 2.0)


def test_a_sweep_looks_twice_at_what_seems_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds_of: list[int] = []

    def measure(variants: dict[str, Callable[[], object]], work: int, rounds: int) -> list[bench.Measurement]:
        rounds_of.append(rounds)
        ours = [2.0, 2.0] if len(rounds_of) == 2 else [1.0, 1.0]  # the second workload, at the first look
        return [bench.Measurement("", 1.0, 0.0, seconds) for seconds in (ours, [1.5, 1.5])]

    monkeypatch.setattr(measurements, "measure_interleaved", measure)
    cells = list(bench.sweep([SMALL, SMALL], rounds=4))
    assert rounds_of == [4, 4, 12]
    assert [cell.ratio.median for cell in cells] == [1.5, 1.5]


def test_processors_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def named(family: int, model: int) -> str:
        one = f"model name\t: AMD EPYC\ncpu family\t: {family}\nmodel\t\t: {model}\nflags\t\t: fpu\n\n"
        (tmp_path / "cpuinfo").write_text(2 * one)
        return device.processor_name()

    monkeypatch.setattr(device, "Path", lambda path: tmp_path / Path(path).name)
    assert named(25, 17) == "AMD EPYC (family 25, model 17)"
    assert named(26, 2) == "AMD EPYC (family 26, model 2)"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert "family" not in device.processor_name()
    assert device.processor_name()


FAULTS_OF_A_TENSOR = """
import resource
import torch
from tfkd_fast.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(3)))
keep_freed_memory()
print(min(faults() for _ in range(30)))  # glibc before 2.38 takes fresh memory for some of the first
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept() -> None:
    """The system clears a page, or a large one of 2 MiB, where a process first touches it: a fault."""
    program = [sys.executable, "-c", FAULTS_OF_A_TENSOR]
    returned, kept = map(int, subprocess.run(program, check=True, capture_output=True, text=True).stdout.split())
    assert returned >= 16  # of 64 MiB, at least one for each two large pages
    assert kept == 0


@pytest.mark.parametrize("name", WRITTEN_OUT)
@pytest.mark.parametrize("training", [True, False])
def test_a_plain_network_computes_the_same(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_model(ModelSettings(name=name, width=0.25), 10, 3, seed=0).double().train(training)
    for index, norm in enumerate(module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.add_(0.01 * index)  # so that a norm at another place shows
    plain = plain_network(network).train(training)
    assert not [module for module in plain.modules() if type(module).__module__.startswith("tfkd_fast.models")]
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    for operator in ("conv3x3", "norm_relu_pool"):
        monkeypatch.delattr(ops, operator)  # by hand without ours
    torch.testing.assert_close(plain(images), expected)


def test_the_loss_of_a_teacher_by_hand_is_that_of_the_textbook() -> None:
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = torch.softmax(teacher / 4, 1)
    expected = 16 * (q * (q.log() - torch.softmax(student / 4, 1).log())).sum() / 5
    torch.testing.assert_close(plain_loop.divergence(student, teacher), expected)


def test_an_evaluation_by_hand_counts_every_image() -> None:
    pixels = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10)
    model = plain_network(build_model(ModelSettings(width=0.125), 10, 3, seed=0))
    accuracy, entropy = plain_loop.evaluate(model, pixels, labels, 4, bf16=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plain_loop.MEAN, plain_loop.STD))
    logits = model((pixels / 255 - mean) / std)
    assert accuracy == (logits.argmax(1) == labels).double().mean()
    assert entropy == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_operations_of_an_image() -> None:
    convolutions = [(3, 8, 32), (8, 16, 16), (16, 32, 8), (32, 64, 4), (64, 64, 4)]
    forward = 2 * sum(9 * a * b * side**2 for a, b, side in convolutions) + 2 * 64 * 100
    first = 2 * 9 * 3 * 8 * 32**2  # its input needs no gradient
    assert bench.flops_per_image(SMALL) == 3 * forward - first


@pytest.mark.parametrize("way", ["sequential", "streams", "stacked"])
def test_an_epoch_of_the_engine_trains_every_candidate(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    loss = ops.soft_target_loss_with_stats

    def spy(logits: torch.Tensor, *rest: object) -> object:
        seen.append(tuple(logits.shape))
        return loss(logits, *rest)

    monkeypatch.setattr(ops, "soft_target_loss_with_stats", spy)
    engine_epoch(SMALL, 3, way)()
    assert sum(shape[0] * shape[1] for shape in seen) == 3 * SMALL.images
    assert all(shape[2] == 100 for shape in seen)


@pytest.mark.parametrize("batches", [plain_loop.dataloader, plain_loop.whole_batches])
def test_loops_by_hand_see_every_image_normalised(batches: Callable[..., Callable[[], plain_loop.Batches]]) -> None:
    pixels = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    labels = torch.arange(64)
    seen = list(batches(pixels, labels, 16, torch.device("cpu"))())
    assert sorted(torch.cat([batch_labels for _, batch_labels in seen]).tolist()) == list(range(64))
    for images, _ in seen:
        assert images.shape == (16, 3, 32, 32)
        for channel, (mean, std) in enumerate(zip(plain_loop.MEAN, plain_loop.STD, strict=True)):
            values = images[:, channel].unique()
            expected = torch.tensor([-mean / std, (1 - mean) / std])  # the border, and white
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_the_command_prints_tables_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "matrix_rate", partial(bench.matrix_rate, rounds=2, size=256))  # is 40 s on a CPU
    arguments = "bench --device cpu --precision fp32 --width 0.125 --batch-size 32 --steps 2 --rounds 2 --no-compiled"
    result = CliRunner().invoke(app, [*arguments.split(), "--candidates", "2", "--out", str(tmp_path / "bench.json")])
    assert result.exit_code == 0, result.output
    assert "of the matrix rate" in result.output
    assert "candidates side by side" in result.output
    ours = json.loads((tmp_path / "bench.json").read_text())["training"][0]["images_per_second"]
    assert f"{240 * 50_000 / ours:,.0f} s" in " ".join(result.output.split())
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert [row["variant"].split(",")[0] for row in figures["training"]] == ["tfkd-fast", "by hand", "by hand"]
    saving = figures["saving"]
    assert min(saving.values()) > 0
    assert f"holds training up for {1e3 * saving['wait']:,.1f} ms" in " ".join(result.output.split())
    assert list(figures["population"]) == ["2"]
    *ways, processes = [row["variant"] for row in figures["population"]["2"]]
    assert ways == ["sequential", "streams", "stacked"]
    assert processes.endswith("a process each")
    assert [row["variant"].split(",")[0] for row in figures["evaluation"]] == ["tfkd-fast", "by hand"]


def test_a_sweep_has_every_network_at_every_width_and_batch_size() -> None:
    cells = workloads(SMALL.compute, ["all"], [0.5, 1.0], [16, 512], "ce", None, steps=None)
    found = {(cell.model.name, cell.model.width, cell.batch_size, cell.steps) for cell in cells}
    assert found == {
        (name, width, *batch) for name in WRITTEN_OUT for width in (0.5, 1.0) for batch in ((16, 16), (512, 1))
    }
    with pytest.raises(UserError, match="method kd and a teacher go together"):
        workloads(SMALL.compute, ["vgg8"], [1.0], [16], "kd", None, steps=None)


NET = """
from torch import nn


def net(num_classes):
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(16, num_classes))
"""


def test_a_network_of_others_is_measured_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(NET)
    (workload,) = workloads(SMALL.compute, [f"{tmp_path}/net.py:net"], [0.25, 1.0], [2], "ce", None, steps=1)
    network = workload.build()
    assert {type(module) for module in plain_network(network).modules()} == {
        nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Linear
    }  # fmt: skip
    assert all(map(torch.equal, plain_network(network).state_dict().values(), network.state_dict().values()))
    (cell,) = bench.sweep([workload], rounds=2)
    assert cell.ours.images_per_second > 0
    monkeypatch.setattr(measurements, "plain_processes", lambda *_: nullcontext(lambda: None))  # they start slowly
    with pytest.warns(Notice, match="candidates are not measured streams: candidates whose layers draw random numbers"):
        assert len(bench.measure_populations(workload, [2], ["streams"], rounds=2)[2]) == 1


@pytest.mark.parametrize(
    ("name", "widths", "said"),
    [
        ("resnet17", [1.0], "unknown model 'resnet17': did you mean 'resnet18'"),
        ("resnet50", [1.0], "resnet50 is measured beside the same network in torch's own layers, which is not written"),
        ("timm/resnet18", [0.5], "width is read only where name is a network of tfkd_fast"),
    ],
)
def test_what_cannot_be_measured_is_said(name: str, widths: list[float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        workloads(SMALL.compute, [name], widths, [16], "ce", None, steps=None)


def test_the_command_sweeps_over_workloads(tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    arguments = "bench --device cpu --precision fp32 --width 0.125 --batch-size 2 --batch-size 3 --steps 1 --rounds 2"
    result = CliRunner().invoke(
        app, [*arguments.split(), "--model", "resnet8x4", "--teacher", "vgg8", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    cells = json.loads(out.read_text())["cells"]
    assert [(cell["model"]["name"], cell["batch_size"]) for cell in cells] == [("resnet8x4", 2), ("resnet8x4", 3)]
    assert all((cell["method"], cell["teacher"]["name"]) == ("kd", "vgg8") for cell in cells)
    lines = result.output.splitlines()
    worst = min(cells, key=lambda cell: cell["ratio"])
    (line,) = [line for line in lines if line.startswith("the worst of 2: ")]
    assert f"batch {worst['batch_size']}," in line
    below = sum(cell["ratio"] < 1 for cell in cells)
    assert sum(line.startswith("slower than by hand: ") and "none" not in line for line in lines) == below

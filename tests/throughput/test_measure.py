"""What `tfkd-fast bench` measures: that it is what it says, not how fast it is."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tfkd_fast import ops
from tfkd_fast import throughput as bench
from tfkd_fast.cli.app import app
from tfkd_fast.device import Compute
from tfkd_fast.models import ModelSettings
from tfkd_fast.throughput import plain_loop
from tfkd_fast.throughput.measure import engine_epoch, measure_interleaved

SMALL = bench.Workload(Compute(torch.device("cpu"), torch.float32), ModelSettings(width=0.125), batch_size=32, steps=2)


def test_variants_take_turns_and_the_median_counts() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    rows = measure_interleaved(variants, work=10, rounds=3)
    assert calls == list("abcabcbcacab")  # the first of each is not counted
    assert [row.variant for row in rows] == list("abc")
    for row in rows:
        assert row.images_per_second == pytest.approx(10 / sorted(row.seconds)[1])


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
    assert list(figures["population"]) == ["2"]
    assert {row["variant"] for row in figures["population"]["2"]} == {"sequential", "streams", "stacked"}

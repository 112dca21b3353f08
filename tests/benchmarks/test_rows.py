"""The arithmetic of the benchmarks' rows, the comparison with stored results, and one suite for real."""

import json
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch

from benchmarks import run
from benchmarks.harness import ALONE, CLONE, COMPILED, COPY, EAGER, Case, Timing
from benchmarks.rows import LEAST_SHARE_OF_STORED_RATIO, Row, as_json, from_json, make_rows, regressions, rows_of

CASE = Case("some_loss", "B=2 C=3", torch.bfloat16, 2_000_000, lambda case, device: {})


def timing(*microseconds: float, launches: int | None = None) -> Timing:
    return Timing([value * 1e-6 for value in microseconds], launches)


COPIES = {COPY: timing(50, 50), CLONE: timing(200, 200)}  # 2 MB at 40 and at 10 GB/s


def rows(ours: float, eager: float = 600.0, compiled: float = 300.0) -> list[Row]:
    timings = {"cpp": timing(ours, ours, ours), EAGER: timing(eager, eager), COMPILED: timing(compiled, compiled)}
    return make_rows(CASE, timings | COPIES)


def test_rate_shares_and_ratios() -> None:
    timings = {
        "cuda": timing(90, 100, 400, launches=1),
        EAGER: timing(500, 500, 700, launches=9),
        COMPILED: timing(300, 300),
    }
    ours, eager, _ = make_rows(CASE, timings | COPIES)
    assert (ours.operator, ours.shape, ours.dtype, ours.variant) == ("some_loss", "B=2 C=3", "bf16", "cuda")
    assert ours.microseconds == pytest.approx(100)  # the median: one slow round does not count
    assert ours.gigabytes_per_second == pytest.approx(2e6 / 100e-6 / 1e9)
    assert (ours.copy_gigabytes_per_second, ours.clone_gigabytes_per_second) == pytest.approx((40, 10))
    assert ours.share_of_copy == pytest.approx(0.5)
    assert ours.ratios == pytest.approx({EAGER: 5.0, COMPILED: 3.0})
    assert (ours.launches, eager.launches) == (1, 9)
    assert eager.ratios == {}


def test_an_operator_alone_is_no_rival() -> None:
    timings = {"cuda": timing(100, 100), f"cuda{ALONE}": timing(50, 50), EAGER: timing(300, 300)}
    ours, alone, _ = make_rows(CASE, timings | COPIES)
    assert ours.ratios == pytest.approx({EAGER: 3.0})
    assert alone.ratios == pytest.approx({EAGER: 6.0})
    assert alone.share_of_copy == pytest.approx(1.0)


def test_stored_rows_are_the_same_when_read() -> None:
    assert from_json(json.loads(json.dumps(as_json(rows(100.0))))) == rows(100.0)


def test_a_ratio_that_falls_is_a_regression_and_a_slower_machine_is_none() -> None:
    stored = rows(100.0)
    assert regressions(rows(1000.0, eager=6000.0, compiled=3000.0), stored) == []  # all is ten times as slow
    assert regressions(rows(101.0 / LEAST_SHARE_OF_STORED_RATIO), stored) == [
        "some_loss B=2 C=3 bf16 cpp: 3.86 times as fast as eager, and 6.00 times in the stored results",
        "some_loss B=2 C=3 bf16 cpp: 1.93 times as fast as torch.compile, and 3.00 times in the stored results",
    ]
    assert regressions(rows(99.0 / LEAST_SHARE_OF_STORED_RATIO), stored) == []
    assert regressions(rows(500.0), []) == []  # nothing to compare with


@pytest.mark.parametrize("suite", run.SUITES)
def test_bytes_that_must_move(suite: str) -> None:
    """At least the logits, or what stands for them; at most four times as much, with gradients, teachers and tables."""
    for case in import_module(f"benchmarks.test_{suite}").CASES:
        size = {name: int(value) for name, value in (part.split("=") for part in case.shape.split() if "=" in part)}
        numbers = 1
        for name, value in size.items():
            numbers *= value if name not in ("M", "pad") else 1
        if suite == "rank_binned_targets":
            numbers *= size["C"]
        if suite == "conv3x3":
            numbers = size["B"] * size["S"] ** 2 * (size["C"] + size["K"])
        if suite == "norm_relu_pool":
            numbers = size["B"] * size["C"] * size["S"] ** 2
        assert numbers * case.dtype.itemsize <= case.bytes_moved <= 6 * numbers * 4 * (1 + size.get("M", 0)), case.name
        assert case.sets * case.bytes_moved <= 4 << 30


def test_a_suite_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile would make takes half a minute; here its graphs run as they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    case, *_ = import_module("benchmarks.test_rank_candidates").CASES
    found = {row.variant: row for row in rows_of(case, torch.device("cpu"), 0.0)}
    assert {EAGER, COMPILED} <= set(found)
    assert all(row.microseconds > 0 for row in found.values())
    assert all(set(row.ratios) == {EAGER, COMPILED} for name, row in found.items() if name not in (EAGER, COMPILED))


def test_the_command_compares_with_the_stored_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "STORED", tmp_path)
    monkeypatch.setattr(run, "rows_of", lambda case, device, seconds, compiled: rows(measured_now))
    monkeypatch.setattr(run, "device_name", lambda device: "Some Processor, 2 threads")

    def command(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["run", "--device", "cpu", "--operator", "peer_loss", *arguments])
        return run.main()

    measured_now = 100.0
    assert command("--out", str(tmp_path)) == 0
    assert "No stored results of Some Processor, 2 threads" in capsys.readouterr().out
    assert json.loads((tmp_path / "some-processor-2-threads.json").read_text())["rows"]
    assert command() == 0
    measured_now = 1000.0
    assert command() == 1
    assert "0.60 times as fast as eager, and 6.00 times in the stored results" in capsys.readouterr().out

"""The figures of whole steps, runs and commands: how they are compared and kept, not how large they are."""

import json
from pathlib import Path

import pytest

from benchmarks import end_to_end
from benchmarks.end_to_end import Row, describe, ratios, workload, worse
from tfkd_fast import throughput as bench
from tfkd_fast.models import ModelSettings


def row(figure: float, unit: str, group: str = "steps") -> Row:
    return Row(group, "a network", "by hand", figure, 0.02, unit)


def test_the_first_is_compared_with_each_other() -> None:
    rows = [bench.Measurement(name, 1.0, 0.0, [seconds] * 3) for name, seconds in (("us", 2.0), ("a", 3.0), ("b", 1.0))]
    found = [(row.beside, row.figure) for row in ratios("steps", "a network", rows)]
    assert found == [("a", 1.5), ("b", 0.5)]


def test_workloads_in_words() -> None:
    assert describe(workload("vgg8", 64, 0.25)) == "vgg8 x0.25, batch 64"
    taught = workload("vgg8", 64, method="kd", teacher=ModelSettings(name="vgg13"))
    assert describe(taught) == "vgg13 -> vgg8, batch 64"
    assert describe(workload("resnet20", 512, method="label-smoothing")) == "resnet20, label-smoothing, batch 512"


@pytest.mark.parametrize(("unit", "better", "worst"), [("x", 2.0, 0.7), ("%", 0.7, 2.0), ("x the time", 0.7, 2.0)])
def test_a_figure_is_worse_where_a_ratio_fell_or_a_share_grew(unit: str, better: float, worst: float) -> None:
    stored = [row(1.0, unit)]
    assert worse([row(better, unit)], stored) == []
    (sentence,) = worse([row(worst, unit)], stored)
    assert sentence == f"steps: a network, by hand: {worst:.2f} {unit}, and 1.00 in the stored results"
    assert worse([row(worst, unit, "start")], stored) == []  # nothing to compare with


def test_groups_that_were_not_measured_stay_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(end_to_end, "STORED", tmp_path)
    monkeypatch.setattr(end_to_end, "device_name", lambda device: "Some Processor, 2 threads")
    figures = {"steps": 1.5, "start": 0.1}
    groups = {name: lambda effort, name=name: [row(figures[name], "x", name)] for name in figures}
    monkeypatch.setattr(end_to_end, "GROUPS", groups)

    def command(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["end_to_end", *arguments])
        return end_to_end.main()

    assert command("--out", str(tmp_path)) == 0
    assert "No stored results of Some Processor, 2 threads to compare with." in capsys.readouterr().out
    figures["start"] = 0.2
    assert command("start", "--out", str(tmp_path)) == 0
    stored = json.loads((tmp_path / "end-to-end-some-processor-2-threads.json").read_text())["rows"]
    assert [(kept["group"], kept["figure"]) for kept in stored] == [("steps", 1.5), ("start", 0.2)]
    figures["steps"] = 1.0
    assert command("steps") == 1
    assert "| a network | by hand | 1.00 x | ± 2% |" in capsys.readouterr().out
    monkeypatch.setattr(end_to_end, "device_name", lambda device: "Another Processor, 2 threads")
    assert command("steps") == 0  # it is not compared with another processor

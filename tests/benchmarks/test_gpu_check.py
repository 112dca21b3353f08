"""The parts of the check on a GPU: each writes its result, and one that is killed loses nothing of the others."""

import json
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu_check import PARTS, WITH_DATA, Part, run_parts, wheels

WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1], sys.argv[2]).write_text(sys.argv[3])"
SLEEP = "import subprocess, time; child = subprocess.Popen(['sleep', '60']); print(child.pid); time.sleep(60)"


def is_running(process: int) -> bool:
    try:
        return "(sleep) Z" not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_part_that_is_killed_loses_itself_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [
        Part("first", 50, ("-c", WRITE, "{out}", "first.json", "{device}")),
        Part("endless", 12, ("-c", f"{WRITE}; {SLEEP}", "{out}", "endless.json", "a case")),
        Part("broken", 50, ("-c", "raise SystemExit(3)")),
        Part("last", 50, ("-c", WRITE, "{out}", "last.json", "done")),
    ]
    out = tmp_path / "out"
    outcomes = run_parts(parts, out, "cpu", shorten=0.25, archive=tmp_path / "out.tar.gz")
    assert [one.exit_code for one in outcomes] == [0, None, 3, 0]
    assert [one.limit for one in outcomes] == [12.5, 3.0, 12.5, 12.5]
    assert 3.0 <= outcomes[1].seconds < 12.5
    assert [row["part"] for row in json.loads((out / "parts.json").read_text())] == [part.name for part in parts]
    assert {name: (out / f"{name}.json").read_text() for name in ("first", "endless", "last")} == {
        "first": "cpu",
        "endless": "a case",
        "last": "done",
    }
    with tarfile.open(tmp_path / "out.tar.gz") as kept:
        assert {"out/parts.json", "out/last.json", "out/endless.log"} <= set(kept.getnames())
    child = int((out / "endless.log").read_text())
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)
    assert (out / "first.log").read_text() == ""
    printed = capsys.readouterr().out
    assert "endless (at most 3 s): killed after" in printed
    assert f"broken (at most 12.5 s): failed, see {out / 'broken'}.log" in printed


def test_all_parts_fit_a_quarter_of_an_hour() -> None:
    """A machine is lent for 15 minutes; its start and the transfers take three of them."""
    parts = PARTS + WITH_DATA
    assert sum(part.seconds for part in PARTS) <= 12 * 60
    assert len({part.name for part in parts}) == len(parts)
    for part in parts:
        module = part.command[part.command.index("-m") + 1]
        assert module in ("pytest", "tfkd_fast") or Path(*module.split(".")).with_suffix(".py").is_file()


def test_wheels_are_what_is_required_beside_torch() -> None:
    names = {wheel.partition("==")[0] for wheel in wheels()}
    assert {"pydantic", "pydantic-core", "typer", "safetensors"} <= names  # pydantic-core is required by pydantic
    assert not {"torch", "numpy", "tfkd-fast"} & names

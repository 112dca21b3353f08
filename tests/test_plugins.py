"""A distribution that adds a method, a data set, a network, a target family, a controller and a criterion is found
everywhere.

It is the example of the documentation, installed into a folder of the import path as pip leaves it, in files alone.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import command, refusal, run
from tests.support.runs import without_clocks

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
PROJECT, GARDEN = (
    re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0] for kind in ("toml", "python")
)
OFFERS = {
    group: [f"{name} = {value}" for name, value in offers.items()]
    for group, offers in tomllib.loads(PROJECT)["project"]["entry-points"].items()
}
"""Group -> the entry points of the package that the documentation has as its example."""

STUDY = """
seeds = [0]
baseline = "halved"
[base]
epochs = 3
device = "cpu"
precision = "fp32"
data = {dataset = "seeds", batch_size = 64, loader = "resident"}
model.name = "sprout"
[rows.halved]
method = "halved"
loss.share = 0.4
[rows.tidal]
method = "tfkd-mrs"
target = {family = "flat", mass = 0.7}
controller = {name = "tides"}
selection = {candidates = 2, interval = 1, criteria = ["lowest", "holdout-nll"]}
"""

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs the distribution with these entry points, in this process and in those that it starts."""
    site = tmp_path / "site"

    def write(offers: dict[str, list[str]]) -> Path:
        information = site / "gardener-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: gardener\nVersion: 1.0\n")
        groups = [f"[{group}]\n" + "\n".join(lines) for group, lines in offers.items()]
        (information / "entry_points.txt").write_text("\n".join(groups) + "\n")
        (site / "garden.py").write_text(GARDEN + "\nnumber = 3\n")
        (site / "script.py").write_text("raise SystemExit(0)\n")
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
        return site

    yield write
    sys.modules.pop("garden", None)


def alone(*arguments: str | Path) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_of_each_is_found_by_every_command(install: Install, tmp_path: Path) -> None:
    install(OFFERS)
    (tmp_path / "study.toml").write_text(STUDY)
    table = alone("study", tmp_path / "study.toml", "--out", tmp_path / "study")
    assert "halved" in table
    assert "tidal" in table
    for name in ("halved", "tidal"):
        folder = tmp_path / "study" / "runs" / f"{name}-seed0"
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["dataset"] == "seeds"
        assert f'"test_top1": {summary["test_top1"]}'[:20] in run("eval", folder, "--device", "cpu").stdout
        whole, before = (folder / "student.safetensors").read_bytes(), without_clocks(folder)
        for file in ("summary.json", "student.safetensors", "checkpoints/epoch-00003.ckpt"):
            (folder / file).unlink()
        assert "which runs its code" not in run("train", "--resume", folder).stderr  # it was installed to be run
        assert (folder / "student.safetensors").read_bytes() == whole
        assert without_clocks(folder) == before
    decisions = [event for event in before if event["event"] == "decision"]
    masses = [event["candidates"][0]["true_mass"] for event in decisions]
    assert masses == pytest.approx([0.65, 0.75, 0.65])
    assert next(event for event in before if event["event"] == "selection")["criteria"] == ["lowest", "holdout-nll"]
    assert "halved" in run("methods").stdout
    assert "a gardener" in run("methods", "halved").stdout
    schema = json.loads(run("options", "--schema").stdout)
    assert "halved" in schema["properties"]["method"]["enum"]
    (steered,) = (
        rule["then"]["properties"] for rule in schema["allOf"] if '{"const": "tfkd"}' in json.dumps(rule["if"])
    )
    for table, key, name, form in (("target", "family", "flat", "Flat"), ("controller", "name", "tides", "Tides")):
        assert f'{{"$ref": "#/$defs/{form}Settings"}}' in json.dumps(steered[table])
        assert schema["$defs"][f"{form}Settings"]["properties"][key]["const"] == name
    assert "0.6 <= number <= 0.9" in run("options", "target").stdout.partition("Where family is flat:")[2]


@pytest.mark.parametrize(
    ("offers", "arguments", "sentence"),
    [
        (
            {"tfkd_fast.methods": ["ce = garden:halved"]},
            ["--method", "ce"],
            "method 'ce' of {gardener} has the name of one of tfkd",
        ),
        (
            {"tfkd_fast.datasets": ["npz = garden:open_seeds"]},
            ["--dataset", "npz"],
            "data set 'npz' of {gardener} has the name of",
        ),
        (
            {"tfkd_fast.models": ["vgg8 = garden:Sprout"]},
            ["--model", "vgg8"],
            "network 'vgg8' of {gardener} has the name of one of tfkd_fast: uninstall it",
        ),
        (
            {"tfkd_fast.models": ["odd = garden:nothing"]},
            ["--model", "odd"],
            "network 'odd' of {gardener} cannot be imported (AttributeError: module 'garden' has no",
        ),
        (
            {"tfkd_fast.models": ["odd = script:main"]},
            ["--model", "odd"],
            "network 'odd' of {gardener} cannot be imported (SystemExit: 0",
        ),
        (
            {"tfkd_fast.models": ["odd = garden:number"]},
            ["--model", "odd"],
            "network 'odd' of {gardener} must be a function or class that makes it, is of type int",
        ),
        (
            {"tfkd_fast.targets": ["scalar = garden:flat"]},
            ["--set", "target.family=scalar"],
            "target family 'scalar' of {gardener} has the name of one of tfkd_fast: uninstall it",
        ),
        (
            {"tfkd_fast.controllers": ["fixed = garden:tides"]},
            ["--set", "controller.name=fixed"],
            "controller 'fixed' of {gardener} has the name of one of tfkd_fast: uninstall it",
        ),
        (
            {"tfkd_fast.methods": ["odd = garden:number"]},
            ["--method", "odd"],
            "method 'odd' of {gardener} must be a tfkd_fast.methods.MethodEntry, is of type int",
        ),
        (
            {"tfkd_fast.controllers": ["odd = garden:nothing"]},
            ["--set", "controller.name=odd"],
            "controller 'odd' of {gardener} cannot be imported (AttributeError: module 'garden' has no attribute",
        ),
        (
            {"tfkd_fast.datasets": ["odd = garden:halved"]},
            ["--dataset", "odd"],
            "data set 'odd' of {gardener} must be a function that opens it",
        ),
        (OFFERS, ["--set", "target.family=flt"], "recipe key 'target.family': did you mean 'flat'? (got 'flt')"),
        (
            OFFERS,
            ["--set", "target.family=flat", "--set", "target.mass=2"],
            "recipe key 'target': mass: Input should be less",
        ),
    ],
)
def test_a_fault_is_one_sentence_that_names_distribution_and_entry_point(
    offers: dict[str, list[str]], arguments: list[str], sentence: str, install: Install, tmp_path: Path
) -> None:
    install(offers)
    (offer,) = next(iter(offers.values()))
    expected = sentence.replace("{gardener}", f"gardener (entry point {offer})")
    assert expected in refusal("train", "digits", "--device", "cpu", "--out", tmp_path / "run", *arguments)


def test_a_broken_package_hinders_no_run_that_does_not_name_it(install: Install, tmp_path: Path) -> None:
    install({"tfkd_fast.methods": ["odd = garden:nothing"], "tfkd_fast.targets": ["odd = garden:nothing"]})
    short = ("train", "digits", "--method", "ce", "--epochs", "1", "--device", "cpu", "--set", "model.width=0.125")
    for _ in range(2):
        run(*short, "--out", tmp_path / "run", "--overwrite")
    assert "method 'odd' of gardener" in refusal("methods")

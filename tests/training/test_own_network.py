"""Networks of one's own in whole runs: that of docs/own-network.md, and others of timm and torchvision."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import tfkd_fast
from tests.support.command import run, run_alone
from tests.support.runs import without_clocks
from tfkd_fast.api import replay
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.methods import METHODS, MethodEntry
from tfkd_fast.methods.base import Context, Loss, SingleStudent, StepBatch
from tfkd_fast.models import foreign
from tfkd_fast.runs.log import Listener
from tfkd_fast.settings import Settings

NET, PROGRAM, NAMES = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "own-network.md").read_text(), re.DOTALL
)
SMALL: dict[str, Any] = {
    "epochs": 4,
    "device": "cpu",
    "data": {"dataset": "digits", "batch_size": 256, "per_class": 30},
}


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def train(out: Path, model: str, method: str = "ce", **tables: Any) -> dict[str, Any]:
    return tfkd_fast.train(SMALL | {"method": method, "model": {"name": model}} | tables, out, overwrite=True)


def test_a_network_that_changes_the_current_folder_takes_no_run_with_it(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    net.write_text(f"import os\n\nos.chdir({str(elsewhere)!r})\n{NET}")
    monkeypatch.chdir(tmp_path)
    few = ["--device", "cpu", "--method", "ce", "--epochs", "1", "--set", "data.per_class=30"]
    said = run("train", "digits", "--model", f"{net}:Net", *few, "--out", "new").stdout
    assert Path.cwd() == elsewhere
    assert said.splitlines()[-1] == f"report {Path('new', 'report.html')}"
    assert (tmp_path / "new" / "report.html").exists()
    assert not list(elsewhere.iterdir())


def test_the_page_runs(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program, and what another process does with the runs that the program leaves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(foreign, "from_programs", {})  # as in a process of its own
    short = PROGRAM.replace('"epochs": 8', '"epochs": 1').replace('"digits"}', '"digits", "per_class": 30}')
    names: dict[str, Any] = {}
    exec(compile(short, "own-network.md", "exec"), names)
    assert type(names["student"]) is names["Net"]
    network = names["Net"](10, 1)
    exec(NAMES, {"network": network})
    assert network.get_submodule(network.classifier) is network.head[1]
    assert [network.get_submodule(name) for name in network.stages] == [network.stem, network.middle, network.last]
    assert 'name = "net:Net"' in Path("runs/factory/recipe.toml").read_text()
    assert 'name = "python/Net"' in Path("runs/module/recipe.toml").read_text()
    monkeypatch.setattr(foreign, "from_programs", {})  # as in another process
    monkeypatch.setattr(foreign, "from_imports", {})
    with pytest.warns(Notice, match="runs/factory has the network net:Net: net is imported, which runs its code"):
        assert type(tfkd_fast.load_run("runs/factory").student()) is names["Net"]
    foreign.from_imports.clear()
    with pytest.warns(Notice, match="runs/factory has the network net:Net: net is imported, which runs its code"):
        replay("runs/factory", "runs/replayed")
    with pytest.raises(UserError, match=r"python/Net was given to tfkd_fast.train as an object, .*: give it again"):
        tfkd_fast.evaluate("runs/module")
    with pytest.raises(UserError, match=r"python/Net was given to tfkd_fast.train as an object, .*: give it again"):
        replay("runs/module", "runs/again")
    assert replay("runs/module", "runs/again", model=names["Net"](10, 1))["test_images"] > 0
    assert tfkd_fast.evaluate("runs/module", model=names["Net"](10, 1))["test_images"] > 0


def test_another_process_evaluates_what_it_is_told_to_import(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = train(out, f"{net}:Net")
    ended = run_alone("eval", out)
    assert f"{out} has the network {net}:Net: {net} is imported, which runs its code" in " ".join(ended.stderr.split())
    assert json.loads(ended.stdout)["test_top1"] == trained["test_top1"]
    net.unlink()
    assert f"there is no file {net}" in run_alone("eval", out, ok=False).stderr.replace("\n", " ")


def test_candidates_side_by_side(net: Path, tmp_path: Path) -> None:
    """In float32 they are the same students: the same candidates win, and roundings of 1e-7 a step grow, by what was
    seen, to 1e-3 of a tensor at most; another winner, or weights that are not trained, would be off by 0.1 and more."""
    ends = {}
    for population in ("sequential", "streams", "stacked"):
        out = tmp_path / population
        tables = {"population": population, "precision": "fp32", "selection": {"candidates": 2}}
        tables["data"] = SMALL["data"] | {"per_class": 60}
        train(out, f"{net}:without_dropout", "tfkd-mrs", **tables)
        ends[population] = tfkd_fast.load_run(out).student().state_dict()
    for name, expected in ends.pop("sequential").items():
        for other in ends.values():
            assert (other[name] - expected).float().norm() <= 0.01 * expected.float().norm(), name


def test_dropout_on_threads_is_refused_and_auto_does_without(net: Path, tmp_path: Path) -> None:
    two = {"selection": {"candidates": 2}}
    with pytest.raises(UserError, match=r"would share one generator on the CPU, .*: use --population sequential or"):
        train(tmp_path / "run", f"{net}:Net", "tfkd-mrs", population="streams", **two)
    assert train(tmp_path / "run", f"{net}:Net", "tfkd-mrs", **two)["population"] == "sequential"


@pytest.mark.parametrize("population", ["sequential", "stacked"])
def test_a_killed_run_with_dropout_goes_on_to_the_same_bits(net: Path, tmp_path: Path, population: str) -> None:
    """Beside dropout the network draws from the generators of Python and of numpy."""
    noise = "        x = x * (1 + random.random() + numpy.random.random()) if self.training else x\n"
    forward = "    def forward(self, x):\n"
    assert forward in NET
    net.write_text("import random\nimport numpy\n" + NET.replace(forward, forward + noise))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    tables = {"population": population, "selection": {"candidates": 2}}
    train(whole, f"{net}:Net", "tfkd-mrs", **tables)

    class Kill(Listener):
        def event(self, event: Any) -> None:
            if event.kind == "epoch" and event.epoch == 3:
                raise KeyboardInterrupt

    values = SMALL | {"method": "tfkd-mrs", "model": {"name": f"{net}:Net"}} | tables
    with pytest.raises(KeyboardInterrupt):
        tfkd_fast.train(values, killed, listeners=[Kill()])
    torch.manual_seed(123)  # as another process has another state
    tfkd_fast.resume(killed)
    assert (killed / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    assert without_clocks(killed) == without_clocks(whole)


def test_an_export_gives_the_same_classes(net: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", f"{net}:Net")
    run("export", tmp_path / "run")
    images = torch.randn(64, 1, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "run" / "student.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    expected = tfkd_fast.load_run(tmp_path / "run").student()(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(logits.argmax(1), expected.argmax(1).numpy())


class Partly(torch.nn.Module):
    """A frozen layer, a part that takes no part in the loss, and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Conv2d(1, 4, 3).requires_grad_(False)
        self.body = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        self.head, self.unused = torch.nn.Linear(16, 10), torch.nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        return self.head(self.body(self.frozen(x)))


@pytest.mark.parametrize("population", ["streams", "stacked"])
def test_frozen_and_unused_weights_stay(tmp_path: Path, population: str) -> None:
    module = Partly()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    tables = {"population": population, "selection": {"candidates": 2}}
    values = SMALL | {"method": "tfkd-mrs"} | tables
    tfkd_fast.train(values, tmp_path, model=module)
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())
    after = tfkd_fast.load_run(tmp_path).student().state_dict()
    changed = {name.partition(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {"head"}


class Scales(Partly):
    """What it multiplies its logits with changes in training and is in no state_dict."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 + self.calls) * super().forward(x)


def test_what_a_student_would_lose_in_its_file_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the network python/Scales computes with more than its state_dict\(\) holds"):
        tfkd_fast.train(SMALL | {"method": "ce"}, tmp_path / "none", model=Scales())
    assert not (tmp_path / "none").exists()


def test_features_of_others_are_read_where_a_method_reads_them(net: Path, tmp_path: Path) -> None:
    train(tmp_path / "uskd", f"{net}:Net", "uskd")
    flat = tmp_path / "flat.py"
    flat.write_text(
        "from torch import nn\ndef net(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(1024, num_classes))\n"
    )
    train(tmp_path / "ce", f"{flat}:net")
    with pytest.raises(UserError, match=r"has no module that gives maps \(B,C,H,W\), which this method reads"):
        train(tmp_path / "none", f"{flat}:net", "uskd")


class Pixel(SingleStudent):
    """The loss of logits after batch norm, each for itself."""

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.adapters = torch.nn.BatchNorm2d(context.num_classes)

    def loss(self, logits: torch.Tensor, batch: StepBatch) -> Loss:
        hard, statistics = self.cross_entropy(
            batch.adapt(self.adapters, logits[..., None, None]).flatten(2), batch.labels
        )
        return Loss({"hard": hard}, statistics)


def test_a_last_batch_of_one_image_is_trained_on_or_refused(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """9 of 10 images of each of 10 classes are fitted: a batch of 89 leaves one."""
    one = {"epochs": 1, "data": SMALL["data"] | {"per_class": 10, "batch_size": 89}}
    assert train(tmp_path / "run", f"{net}:Net", **one)["epochs"] == 1
    net.write_text(NET.replace("nn.Linear(32, num_classes))", "nn.BatchNorm1d(32), nn.Linear(32, num_classes))"))
    assert net.read_text() != NET
    refused = f"the network {net}:Net cannot be trained on a batch of one image, .*: set data.batch_size to 88, for"
    monkeypatch.setattr(foreign, "from_imports", {})
    with pytest.raises(UserError, match=refused):
        train(tmp_path / "none", f"{net}:Net", **one)
    assert not (tmp_path / "none").exists()
    monkeypatch.setitem(METHODS, "pixel", MethodEntry("logits after batch norm", "ours", Settings, Pixel))
    with pytest.raises(
        UserError, match=r"a layer of the method with batch norm .* one image, .* another data.batch_size"
    ):
        train(tmp_path / "run", "vgg8", "pixel", **one)

"""The programs of docs/own-loop.md and docs/own-method.md run, learn, and need what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.own_loop.calls import SERVED, make
from tfkd_fast.methods import METHODS

DOCS = Path(__file__).parents[2] / "docs"
LOOP = (DOCS / "own-loop.md").read_text()
METHOD = (DOCS / "own-method.md").read_text()


def programs(page: str) -> dict[str, list[str]]:
    """The programs of a page by the heading that they stand under; "" for those before the first."""
    before, *parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    sections = {"": before} | dict(zip(parts[::2], parts[1::2], strict=True))
    return {heading: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for heading, text in sections.items()}


def run(names: dict[str, Any], *texts: str) -> dict[str, Any]:
    for text in texts:
        exec(compile(text, "a page of the documents", "exec"), names)
    return names


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the programs of the page about loops share, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return run({"__name__": "page"}, *programs(LOOP)[""])


def accuracy(names: dict[str, Any], network: torch.nn.Module) -> float:
    """The accuracy on images that no program uses; chance is 0.1."""
    with torch.no_grad():
        logits = network.eval()(names["images"][1500:])
    return float((logits.argmax(1) == names["labels"][1500:]).float().mean())


def test_the_loops_of_the_page_are_short_and_learn(shared: dict[str, Any]) -> None:
    page = programs(LOOP)
    (one,), (several,) = page["One student"], page["Several candidates"]
    assert len(one.splitlines()) == 12
    assert len(several.splitlines()) <= 18
    assert accuracy(shared, run(shared, one)["network"]) > 0.8
    assert accuracy(shared, run(shared, several)["student"]) > 0.8
    run(shared, *page["Stop and go on"])


def test_lightning_trains_and_keeps_the_criterion_in_its_checkpoints(shared: dict[str, Any]) -> None:
    pytest.importorskip("lightning", reason="needs lightning: pip install 'tfkd-fast[loops]'")
    run(shared, *programs(LOOP)["Lightning"])
    assert accuracy(shared, shared["student"].network) > 0.8
    saved = torch.load(shared["checkpoint"].best_model_path, weights_only=True)
    assert saved["state_dict"]["criterion._extra_state"]["epoch"] == 4
    more = shared["lightning"].Trainer(max_epochs=5, accelerator="cpu", **shared["quiet"])
    student = shared["Student"](epochs=5)
    with pytest.raises(Exception, match="epochs 4, and this one has 5"):
        more.fit(student, shared["loader"], shared["held_out"], ckpt_path=shared["checkpoint"].best_model_path)


def test_the_trainer_of_hugging_face_trains_and_keeps_the_criterion_beside_its_checkpoints(
    shared: dict[str, Any],
) -> None:
    pytest.importorskip("transformers", reason="needs transformers: pip install 'tfkd-fast[loops]'")
    pytest.importorskip("accelerate", reason="needs accelerate: pip install 'tfkd-fast[loops]'")
    run(shared, *programs(LOOP)["Hugging Face Trainer"])
    trainer = shared["trainer"]
    assert accuracy(shared, trainer.model.network) > 0.8
    states = [torch.load(file, weights_only=True) for file in Path("hugging-face").glob("checkpoint-*/criterion.pt")]
    assert sorted(state["_extra_state"]["epoch"] for state in states) == [1, 2, 3, 4]


def test_a_task_of_timm_trains(shared: dict[str, Any]) -> None:
    pytest.importorskip("timm.task", reason="needs timm: pip install 'tfkd-fast[loops]'")
    (program,) = programs(LOOP)["timm"]
    run(shared, program.replace("range(4)", "range(1)"))
    assert shared["report"].epoch == 1
    assert shared["report"].results[0].training.top1 > 0.2  # chance is 0.1


def test_the_table_says_what_a_call_needs() -> None:
    rows = [line.split("|")[1:4] for line in LOOP.splitlines() if line.startswith("| `")]
    table = {
        re.findall(r"`(\w+)`", argument)[0]: set(re.findall(r"`([\w-]+)`", methods)) for argument, methods, _ in rows
    }
    served = {name: make(name).needs for name in SERVED}
    served |= {name: METHODS[name].needs() for name in ("distpro", "kd-specialists")}
    assert table == {
        "indices": {name for name, needs in served.items() if needs.indices},
        "teachers": {name for name, needs in served.items() if needs.teachers.fewest},
        "features": {name for name, needs in served.items() if needs.features},
        "companions": {name for name, needs in served.items() if needs.companions},
        "slow_logits": {name for name, needs in served.items() if needs.slow_decay is not None},
        "networks": {name for name, needs in served.items() if needs.networks},
    }


def test_the_method_of_the_page_is_what_it_says_in_a_run_and_in_a_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs have fewer epochs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS, "hint", METHODS["kd"])  # undone afterwards
    torch.manual_seed(0)
    assert '"epochs": 8,' in METHOD
    page = METHOD.replace('"epochs": 8,', '"epochs": 2, "device": "cpu",')
    names = run({"__name__": "page"}, *programs(page)[""])
    assert names["summary"]["test_top1"] > 25  # chance is 10
    weight, bias = ((each.detach() + 0.1 * each.grad).double() for each in names["criterion"].parameters())
    maps = names["features"].after_relu[1].double()
    distance = (F.conv2d(maps, weight, bias) - names["outputs"].features.after_relu[1]).square().mean()
    expected = F.cross_entropy(names["logits"].double(), names["labels"]) + 0.5 * distance
    torch.testing.assert_close(names["loss"].double(), expected, rtol=1e-6, atol=0)  # before the step along these

"""docs/methods.md knows every method, and its examples run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.methods.steps import CLASSES, SHAPES, assert_teaches, build, random_step
from tfkd_fast.methods import METHODS
from tfkd_fast.methods.base import TeacherFacts
from tfkd_fast.study.plan import make_study

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def paragraphs() -> dict[str, str]:
    """Of each method, what the page says of it."""
    return dict(re.findall(r"^\*\*`([\w-]+)`\*\* (.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE))


def test_every_method_has_a_paragraph() -> None:
    assert paragraphs().keys() == METHODS.keys()


def test_every_method_is_in_the_table_with_the_teachers_that_it_needs() -> None:
    (table,) = re.findall(r"^\| \| method \| from \| teachers \|\n(.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)
    teachers = {}
    for row in table.splitlines()[1:]:
        _, _, names, _, needed, _ = row.split("|")
        teachers |= dict.fromkeys(re.findall(r"`([\w-]+)`", names), needed.split()[0].rstrip(","))
    assert teachers == {name: str(entry.needs().teachers.fewest or "none") for name, entry in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_what_refuses_mixed_images_says_so(name: str) -> None:
    assert ("No mixing" in paragraphs()[name]) == (not METHODS[name].needs().mixing)


def test_the_study_of_the_page_is_valid() -> None:
    (text,) = examples("toml")
    study = make_study("the page", text)
    assert study.rows["distpro"].sources == ["teacher", "search"]
    for row in study.rows.values():
        assert row.recipe(0, lambda name: f"runs/{name}").epochs in (40, 240)


def test_the_method_of_the_page_is_what_it_says_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fewer epochs."""
    (example,) = examples("python")
    assert '"epochs": 8,' in example
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS, "logit-matching", METHODS["kd"])  # undone afterwards
    names: dict[str, Any] = {}
    exec(compile(example.replace('"epochs": 8,', '"epochs": 2, "device": "cpu",'), "methods.md", "exec"), names)
    assert names["summary"]["test_top1"] > 25  # chance is 10

    logits, batch = random_step(0, candidates=2, teachers=1)
    teacher = TeacherFacts("some-run", "vgg13", tuple(range(CLASSES)), SHAPES)
    label = torch.stack([F.cross_entropy(*pair) for pair in zip(logits, batch.labels, strict=True)])
    distance = ((logits - batch.teachers[0].logits.double()) ** 2).flatten(1).mean(1)
    method = build("logit-matching", (teacher,), weight=0.3)
    assert_teaches(method, logits, batch, label + 0.3 * distance, tolerance=1e-6)

"""Teachers on the command line: a run teaches another, and what cannot is refused in one sentence with exit code 2."""

import json
from pathlib import Path

import pytest

from tests.support.command import SMALL, refusal, run

FEW = ("--set", "data.per_class=20", "--epochs", "1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    run("train", "digits", *SMALL, *FEW, "--method", "ce", "--model", "resnet20", "--out", folder)
    return folder


def test_a_run_teaches_another(teacher: Path, tmp_path: Path) -> None:
    cache = ["--set", f"teachers.cache={tmp_path / 'cache'}", "--set", "teachers.views=1"]
    for out in (tmp_path / "one", tmp_path / "two"):
        run("train", "digits", *SMALL, *FEW, "--method", "kd", "--teacher", teacher, *cache, "--out", out)
        summary = json.loads((out / "summary.json").read_text())
        assert (summary["method"], summary["model"], summary["teachers"]) == ("kd", "vgg8", ["teacher"])
    students = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("one", "two")]
    assert students[0] == students[1]  # by a cache that was made, and one that was read


def test_what_cannot_teach(teacher: Path, tmp_path: Path) -> None:
    def train(*arguments: str | Path) -> str:
        return refusal("train", "digits", *SMALL, *FEW, *arguments, "--out", tmp_path / "out")

    kd = ("--method", "kd", "--teacher")
    assert "learns from one teacher, and 0 were named" in train("--method", "kd")
    assert "method 'ce' learns from no teacher" in train("--method", "ce", "--teacher", teacher)
    assert "nowhere is no run folder" in train(*kd, tmp_path / "nowhere")
    assert "the weights of the teacher /me@work/x.pth does not exist" in train(*kd, "vgg8@/me@work/x.pth")
    assert "there is no file /me@work/net.py" in train(*kd, "/me@work/net.py:Net@x@2.pth")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "recipe.toml").write_text("")
    assert "is not finished" in train(*kd, tmp_path / "foreign")
    (tmp_path / "foreign" / "student.safetensors").write_text("not a student")
    assert "is damaged or of another kind" in train(*kd, tmp_path / "foreign")
    assert "knows the class '0', which is none of digits" in train(*kd, teacher, "--set", "data.classes=3-7")

    cache = ("--set", f"teachers.cache={tmp_path / 'cache'}", "--set", "teachers.views=1")
    run("train", "digits", *SMALL, *FEW, *kd, teacher, *cache, "--out", tmp_path / "made")
    assert "was made with another data set" in train(*kd, teacher, *cache, "--set", "data.per_class=21")
    assert "was made with another seed" in train(*kd, teacher, *cache, "--seed", "1")
    assert not (tmp_path / "out").exists()

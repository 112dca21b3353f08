"""How far it is from the command to the gradient: a reader has to follow every step of the way."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tfkd_fast
from tests.support.command import SMALL, run

PACKAGE = str(Path(tfkd_fast.__file__).parent)
MOST = 10


def test_ten_frames_lead_from_the_command_to_the_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this package; those of others, such as the parser of the command line, do not count."""
    paths: list[list[str]] = []
    differentiate = torch.autograd.grad

    def counted(*arguments: Any, **named: Any) -> Any:
        frame, path = sys._getframe(1), []
        while frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                path.append(frame.f_code.co_qualname)
            frame = frame.f_back
        paths.append(path[::-1])
        return differentiate(*arguments, **named)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    few = ["--set", "data.per_class=10", "--loader", "resident"]
    run("train", "digits", "--method", "ce", "--epochs", "1", "--population", "sequential", *few, *SMALL,
        "--out", tmp_path / "run")  # fmt: skip
    assert paths
    assert all(path == paths[0] for path in paths), "every step takes the same way"
    assert (paths[0][0], paths[0][-1]) == ("main", "train_step")
    assert len(paths[0]) <= MOST, " > ".join(paths[0])

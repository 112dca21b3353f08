"""The record of a run's convolutions: what it holds, and what becomes of it on another machine."""

from pathlib import Path

import pytest
import torch

from tfkd_fast.errors import Notice, UserError
from tfkd_fast.ops.conv_algorithms import PASSES, TORCH, Algorithms, Convolution
from tfkd_fast.runs.convolutions import ChosenConvolution, ConvolutionRecord
from tfkd_fast.runs.folder import RunFolder

FIRST = Convolution(3, 32, 32, 64, torch.float32)
LATER = Convolution(64, 16, 8, 128, torch.bfloat16, kernel=1, stride=2)


def record(later: Algorithms) -> ConvolutionRecord:
    convolutions = (
        ChosenConvolution.make(FIRST, frozenset({"forward", "weight_gradient"}), TORCH),
        ChosenConvolution.make(LATER, frozenset(PASSES), later),
    )
    return ConvolutionRecord(threads=2, batch=64, convolutions=convolutions)


def test_a_folder_keeps_the_record(tmp_path: Path) -> None:
    later, folder = Algorithms("torch", "one", "two"), RunFolder(tmp_path)
    assert folder.read_convolutions() is None
    folder.write_convolutions(record(later))
    assert folder.read_convolutions() == record(later)
    assert record(later).choices == {FIRST: TORCH, LATER: later}
    assert record(later).passes == {"one": 1, "torch": 4, "two": 1}
    folder.convolutions.write_text(folder.convolutions.read_text().replace('"two"', '"six"'))
    with pytest.raises(UserError, match=r"convolutions\.json .*its checksum is wrong.*: restore it, or delete it"):
        folder.read_convolutions()


def test_torch_serves_where_an_algorithm_is_missing() -> None:
    with pytest.warns(Notice, match=r"algorithms that this machine has not \(another, foreign\)") as warned:
        available = record(Algorithms("foreign", "torch", "another")).available()
    assert len(warned) == 1
    assert available == record(TORCH)
    assert record(TORCH).available() == record(TORCH)

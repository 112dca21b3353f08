"""What all tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

UNPACK = Path(__file__).parents[2] / "shared" / "data" / "unpack.py"
PER_CLASS = 200


@pytest.fixture(scope="session")
def real_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz file of real CIFAR-10 images, 200 of each class to train on and 200 to test on."""
    if not UNPACK.is_file():
        pytest.skip("no packed CIFAR-10 images beside the checkout")
    out = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, UNPACK, "cifar10", out, "--limit", str(PER_CLASS)], check=True)
    return out / "cifar10.npz"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

"""Which loader serves: by name, or measured."""

import importlib.util
import re

import pytest
import torch

from tests.data.loaders.batches import COUNT, CPU, assert_same, dataset_of, loader_of
from tfkd_fast.cli.doctor import examine
from tfkd_fast.data import DataSettings, LoaderChoice, choose_loader, loaders, missing_loaders
from tfkd_fast.errors import UserError

NEEDED = COUNT * 3 * 32 * 32  # bytes
INSTALLED = [name for name, reason in missing_loaders().items() if reason is None]


def choice(**change: object) -> LoaderChoice:
    dataset = dataset_of((3, 32, 32))
    settings = DataSettings(**({"batch_size": 5, "workers": 1} | change))
    return choose_loader(dataset.read_train(), dataset, settings, CPU, torch.float32, seed=5)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a few images were many; for a moment each."""
    monkeypatch.setattr(loaders, "FEW_IMAGES", 0)
    monkeypatch.setattr(loaders, "SECONDS", 0.01)


@pytest.fixture
def no_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python says of a package that is not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("measured")
def test_the_fastest_is_chosen() -> None:
    found = choice()
    assert sorted(found.images_per_second) == sorted(INSTALLED)
    assert found.images_per_second[found.chosen] == max(found.images_per_second.values())
    assert all(speed > 0 for speed in found.images_per_second.values())
    assert sorted(found.refused) == sorted(set(loaders.NAMES) - set(INSTALLED))


@pytest.mark.usefixtures("measured")
def test_a_measurement_changes_no_pixel() -> None:
    dataset = dataset_of((3, 32, 32))
    loader = loader_of(dataset, "auto")
    assert loader.name in INSTALLED
    assert_same(loader.epoch(0), loader_of(dataset, "resident").epoch(0))


def test_few_images_are_kept_resident_unmeasured() -> None:
    missing = {name: reason for name, reason in missing_loaders().items() if reason}
    assert choice() == LoaderChoice("resident", {}, missing)


def test_auto_takes_resident_up_to_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "free_memory", lambda device: 2 * NEEDED)
    assert choice().chosen == "resident"
    monkeypatch.setattr(loaders, "free_memory", lambda device: 2 * NEEDED - 2)
    found = choice()
    assert found.chosen in set(INSTALLED) - {"resident"}
    assert re.fullmatch(r"needs 0\.0 GiB on cpu, where .* free: use --loader torchvision", found.refused["resident"])
    assert loader_of(dataset_of((3, 32, 32)), "resident").name == "resident"  # asked for by name, it may take all
    monkeypatch.setattr(loaders, "free_memory", lambda device: NEEDED - 1)
    with pytest.raises(UserError, match=r"loader resident needs 0\.0 GiB on cpu.*use --loader torchvision"):
        loader_of(dataset_of((3, 32, 32)), "resident")


@pytest.mark.usefixtures("measured", "no_dali")
def test_without_dali_it_is_refused_and_auto_does_without() -> None:
    with pytest.raises(UserError, match=r"^loader dali needs NVIDIA DALI: pip install 'tfkd-fast\[dali\]'$"):
        loader_of(dataset_of((3, 32, 32)), "dali")
    found = choice()
    assert sorted(found.images_per_second) == ["resident", "torchvision"]
    assert found.refused == {"dali": "needs NVIDIA DALI: pip install 'tfkd-fast[dali]'"}


def test_doctor_shows_each_loader() -> None:
    rows = {name: (state, why) for name, state, why in examine()["Loaders"][1:]}
    assert list(rows) == list(loaders.NAMES)
    assert all(rows[name][0] == "present" for name in INSTALLED)


@pytest.mark.usefixtures("no_dali")
def test_doctor_says_how_to_get_dali() -> None:
    assert ("dali", "missing", "needs NVIDIA DALI: pip install 'tfkd-fast[dali]'") in examine()["Loaders"]

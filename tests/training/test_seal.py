"""Nobody reads test images while a run is being steered, and nobody steers while they are read."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import log, recipe
from tfkd_fast import api
from tfkd_fast.data import Dataset, ImageSet, ImagesSealed, open_dataset
from tfkd_fast.events import Event
from tfkd_fast.methods import Method
from tfkd_fast.report import write_report
from tfkd_fast.runs.log import Listener
from tfkd_fast.steering.control import Controller

SMALL: dict[str, Any] = {"epochs": 2, "selection": {"candidates": 2, "interval": 1}}


class Curious(Listener):
    """A listener that asks for the test images at every event and batch."""

    def __init__(self, own: Dataset) -> None:
        self.own = own
        self.seen: list[tuple[str, bool]] = []

    def event(self, event: Event) -> None:
        for dataset in (self.own, open_dataset(recipe("ce").data)):
            self.seen.append((event.kind, self.refused(dataset)))

    def batch(self, images: int) -> None:
        self.seen.append(("batch", self.refused(self.own)))

    @staticmethod
    def refused(dataset: Dataset) -> bool:
        try:
            dataset.read_test()
        except ImagesSealed:
            return True
        return False


@pytest.mark.parametrize("method", ["ce", "tfkd-mrs"])
def test_a_listener_cannot_read_test_images_before_the_run_is_trained(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(method, **SMALL if method == "tfkd-mrs" else {})
    digits = open_dataset(settings.data)
    monkeypatch.setattr("tfkd_fast.api.open_dataset", lambda *arguments, **options: digits)
    curious = Curious(digits)
    api.train(settings, tmp_path, listeners=[curious])
    kinds = [kind for kind, _ in curious.seen]
    assert {"start", "epoch", "batch", "finish"} <= set(kinds)
    assert ("selection" in kinds) == (method == "tfkd-mrs")
    assert all(refused == (kind not in ("test", "finish")) for kind, refused in curious.seen)
    assert not curious.refused(digits)


def test_a_run_that_fails_leaves_nothing_sealed(tmp_path: Path) -> None:
    class Interrupting(Listener):
        def event(self, event: Event) -> None:
            if event.kind == "epoch":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.train(recipe("tfkd-mrs", **SMALL), tmp_path, listeners=[Interrupting()])
    assert not Curious.refused(open_dataset(recipe("ce").data))


def test_a_run_that_is_not_tested_reads_no_test_image_and_stores_no_test_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe("ce", test=False, data={"batch_size": 256})
    digits = open_dataset(settings.data)
    read: list[bool] = []

    def read_test() -> ImageSet:
        read.append(True)
        return digits.read_test()

    guarded = Dataset(
        "digits",
        digits.classes,
        digits.image_shape,
        flip=False,
        read_train=digits.read_train,
        read_test=read_test,
        hash_test=lambda: digits.identity.test_data,
    )
    monkeypatch.setattr("tfkd_fast.api.open_dataset", lambda *arguments, **options: guarded)
    run = tmp_path / "run"
    summary = api.train(settings, run)
    assert not read
    assert summary["holdout_top1"] > 0
    assert summary["holdout_calibrated_nll"] > 0
    logged = [line for line in log(run) if line["event"] in ("test", "finish")]
    assert [line["event"] for line in logged] == ["finish"]
    for stored in (summary, json.loads((run / "summary.json").read_text())):
        assert not [name for name in stored if "test" in name]
    assert {value for name, value in logged[0].items() if "test" in name} <= {None, 0}
    page = write_report(run).read_text()
    assert "The test set was not read" in page
    assert "Test top-1" not in page
    assert api.evaluate(run)["test_top1"] > 0
    assert len(read) == 1


def alive() -> list[Any]:
    """Controllers and methods of this process."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Controller | Method)]


@pytest.mark.parametrize("method", ["ce", "tfkd-mrs"])
def test_no_controller_lives_when_test_images_are_read(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that only waits for the garbage collector, which does not come by itself here."""
    settings = recipe(method, **SMALL if method == "tfkd-mrs" else {})
    digits = open_dataset(settings.data)
    earlier = alive()  # kept, so that no new one takes the place of an old one
    found: dict[str, list[str]] = {}

    def look(moment: str) -> None:
        found[moment] = sorted(type(thing).__name__ for thing in alive() if all(thing is not old for old in earlier))

    def read_test() -> ImageSet:
        look("test")
        return digits.read_test()

    guarded = Dataset(
        "digits", digits.classes, digits.image_shape, flip=False, read_train=digits.read_train, read_test=read_test
    )

    class Watching(Listener):
        def event(self, event: Event) -> None:
            look(event.kind)

    monkeypatch.setattr("tfkd_fast.api.open_dataset", lambda *arguments, **options: guarded)
    gc.disable()
    try:
        api.train(settings, tmp_path, listeners=[Watching()])
    finally:
        gc.enable()
    controller = {"ce": "FixedController", "tfkd-mrs": "PolicyController"}[method]
    assert found["epoch"] == ["ControlledTargets", controller]
    assert found["test"] == []

"""What is measured of a method's step: that it is what it says, not how long it takes."""

import pytest
import torch

from benchmarks import method_steps
from benchmarks.method_steps import costs, measure, taught_by
from tests.methods.short_runs import different
from tfkd_fast import throughput as bench
from tfkd_fast.device import Compute
from tfkd_fast.methods import METHODS
from tfkd_fast.models import ModelSettings

SMALL = bench.Workload(Compute(torch.device("cpu"), torch.float32), ModelSettings(width=0.125), batch_size=8, steps=2)


def test_a_step_is_compared_with_the_baseline_and_with_the_baseline_beside_its_teachers() -> None:
    seconds = {
        "kd": [0.04, 0.5, 0.06],  # a slow moment in the second round, for all
        "ce beside 0 teachers": [0.02, 0.2, 0.01],
        "ce beside 1 teachers": [0.03, 0.4, 0.048],
    }
    (cost,) = costs(seconds, {"kd": (1, "teachers")})
    assert cost.milliseconds == pytest.approx(60)
    assert cost.times_baseline == pytest.approx(2.5)  # of 2, 2.5 and 6
    assert cost.own_share == pytest.approx(0.2)  # of 1/4, 1/5 and 1/5
    assert cost.seconds == seconds["kd"]


def test_the_teachers_that_a_method_needs() -> None:
    assert [taught_by(name) for name in ("ce", "kd", "kd-average", "kd-specialists", "tf-kd-self")] == [
        (0, "teachers"),
        (1, "teachers"),
        (3, "teachers"),
        (3, "specialists"),
        (1, "networks like the student"),
    ]


def test_methods_of_every_kind_can_be_measured() -> None:
    names = different(METHODS)
    workload = bench.Workload(SMALL.compute, SMALL.model, batch_size=16, steps=2)
    narrow = ModelSettings(name="vgg13", width=0.125)
    found, refused = measure(workload, narrow, rounds=2, methods=names)
    assert not refused
    assert [cost.method for cost in found] == names


def test_teachers_look_at_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the methods, and of the baseline beside as many."""
    looks: list[int] = []
    outputs = method_steps.Teachers.outputs

    def spy(self: method_steps.Teachers, images: torch.Tensor, indices: torch.Tensor) -> object:
        looks.append(len(self.teachers) * indices.numel())
        return outputs(self, images, indices)

    monkeypatch.setattr(method_steps.Teachers, "outputs", spy)
    found, refused = measure(SMALL, ModelSettings(name="vgg13", width=0.125), rounds=2, methods=["ce", "kd", "ca-mkd"])
    assert [cost.method for cost in found] == ["ce", "kd", "ca-mkd"]
    assert not refused
    epochs = 3  # the first is not counted
    assert sum(looks) == epochs * SMALL.images * (0 + 1 + 3 + 0 + 1 + 3)  # the methods, and the baseline beside as many

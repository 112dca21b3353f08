"""What every method has by default, and what is remembered of candidates."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.steps import BATCH, CLASSES, CPU, EPOCHS, IMAGES, random_step
from tfkd_fast.methods import find_method
from tfkd_fast.methods.base import (
    CompanionOutputs,
    Context,
    EpochResult,
    Interval,
    Loss,
    Method,
    Plan,
    SingleStudent,
    StepBatch,
    TrainingStatistics,
    whole_network,
)

STATISTICS = TrainingStatistics(1.0, 0.5, 0.4, 1.0)


class Plain(SingleStudent):
    """A method of one function."""

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        return Loss({"squared": logits.square().mean((1, 2))})


def context() -> Context:
    return Context(CLASSES, IMAGES, EPOCHS, 0, CPU, lambda epoch: 1.0, batch_size=BATCH)


def test_a_plain_method_has_one_function() -> None:
    method = Plain(None, context())
    plan = method.begin_interval(2)
    assert plan == method.resume_interval(plan.interval) == Plan(Interval(2, 1, 1))
    assert (plan.factors, plan.streams, plan.network) == ((1.0,), ((0, 0),), whole_network)
    assert list(method.end_epoch([EpochResult(STATISTICS, None)])) == []
    assert (method.summary(), method.files(), method.state_dict()) == ({}, {}, {})
    method.load_state_dict({})


def build(name: str, **tables: Any) -> Method:
    entry = find_method(name)
    return entry.build(entry.settings.model_validate(entry.preset | tables), context())


def companions(batch: StepBatch, logits: Tensor) -> StepBatch:
    """Shows the batch again beside itself."""
    return replace(batch, companions=CompanionOutputs(logits.detach(), batch.labels, batch.indices))


@pytest.mark.parametrize("name", ["ols", "ps-kd", "dlb"])
def test_what_is_remembered_of_a_candidate_is_the_state(name: str) -> None:
    """One tensor for each memory, a row a candidate, always in its place."""
    method, restored = build(name), build(name)
    places = {name: tensor.data_ptr() for name, tensor in method.candidate_tensors().items()}
    assert places
    for epoch in range(2):
        method.begin_interval(epoch)
        logits, batch = random_step(epoch)
        method.loss(logits.float(), companions(batch, logits.float()))
        method.end_epoch([EpochResult(STATISTICS, None)])
    restored.load_state_dict(copy.deepcopy(method.state_dict()))
    for key, tensor in method.candidate_tensors().items():
        assert tensor.shape[0] == method.needs.candidates == 1
        assert tensor.data_ptr() == places[key]
        assert torch.equal(tensor, restored.candidate_tensors()[key])
    untouched = build(name).candidate_tensors()
    assert any(not torch.equal(tensor, untouched[key]) for key, tensor in restored.candidate_tensors().items())


def test_candidates_of_a_steered_method_have_a_row_each() -> None:
    method = build("tfkd-extended", controller={"name": "random", "warmup_epochs": 0})
    tensors = method.candidate_tensors()
    assert {tensor.shape[0] for tensor in tensors.values()} == {method.needs.candidates} == {4}
    assert tensors["instances"].shape == (4, IMAGES, CLASSES)


def test_what_was_not_asked_for_is_named() -> None:
    _, batch = random_step(0, teachers=1)
    for read, need in (
        (batch.need_features, "features"),
        (batch.need_slow_logits, "slow_decay"),
        (batch.need_companions, "companions"),
        (batch.teachers[0].need_features, "features"),
    ):
        with pytest.raises(ValueError, match=f"set {need} in the Needs that it gives"):
            read()
    with pytest.raises(ValueError, match="give the context their shapes"):
        context().need_shapes()

"""Methods that match features in a first phase: its length, its schedule, and what follows."""

import pytest
import torch

from tests.methods.published import STUDENT, TEACHER, build, outputs, with_features
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Interval
from tfkd_fast.methods.one_teacher.initial_phase import InitialPhaseStudent


def make(share: float) -> InitialPhaseStudent:
    method = build("fsp", teacher=STUDENT, loss={"initial_share": share})
    assert isinstance(method, InitialPhaseStudent)
    return method


@pytest.mark.parametrize(("share", "epochs"), [(0.0, 0), (0.001, 1), (0.25, 6), (0.99, 23)])
def test_the_first_phase_is_a_share_of_the_24_epochs_with_a_schedule_of_its_own(share: float, epochs: int) -> None:
    method = make(share)
    assert method.initial_epochs == epochs
    plans = [method.resume_interval(Interval(epoch, 1, 1)) for epoch in range(24)]
    assert [plan.schedule for plan in plans] == (
        [(0, epochs)] * epochs + [(epochs, 24)] * (24 - epochs) if epochs else [None] * 24
    )
    assert [plan.phase for plan in plans] == [True] * epochs + [False] * (24 - epochs)


def test_after_it_the_label_alone_is_learned() -> None:
    method = make(0.25)
    leaves, batch = outputs()
    _, batch = with_features(leaves, batch, alike=True)
    method.resume_interval(Interval(5, 1, 1))
    assert list(method.loss(leaves["logits"], batch).terms) == ["features"]
    method.resume_interval(Interval(6, 1, 1))
    loss = method.loss(leaves["logits"], batch)
    label = torch.nn.functional.cross_entropy(leaves["logits"][0], batch.labels[0])
    torch.testing.assert_close(loss.total[0], label, rtol=1e-6, atol=0.0)


def test_fsp_refuses_networks_of_other_widths() -> None:
    with pytest.raises(UserError, match=r"which the student has \[4, 6, 8, 8\] of and the teacher \[4, 10, 12, 12\]"):
        build("fsp", STUDENT, TEACHER)

"""What methods that match features have in common, and what they refuse."""

from dataclasses import replace

import pytest
import torch

from tests.methods.published import STUDENT, TEACHER, build, fill, outputs, with_features
from tfkd_fast.errors import UserError
from tfkd_fast.methods import METHODS
from tfkd_fast.methods.one_teacher.feature_student import FeatureStudent
from tfkd_fast.methods.one_teacher.features.ofd import OFD
from tfkd_fast.models import FeatureShapes
from tfkd_fast.runs.recipe import make_recipe

MATCHING = [name for name, entry in METHODS.items() if issubclass(entry.build, FeatureStudent)]


def test_stages_go_together_by_their_order_behind_the_first_map() -> None:
    with_stem = STUDENT._replace(stem=(4, 8, 8), maps=STUDENT.maps[1:])
    for student, teacher, pairs in (
        (STUDENT, TEACHER, [(1, 1), (2, 2), (3, 3)]),
        (with_stem, TEACHER, [(0, 1), (1, 2), (2, 3)]),
        (STUDENT._replace(maps=STUDENT.maps[:3]), TEACHER, [(1, 1), (2, 2)]),
        (FeatureShapes(((4, 8, 8),), 4), TEACHER, [(0, 1)]),
    ):
        method = build("at", student, teacher)
        assert isinstance(method, FeatureStudent)
        assert method.pairs == pairs
    assert build("ofd", with_stem, TEACHER._replace(maps=TEACHER.maps[:3])).pairs == [(1, 1), (2, 2)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", MATCHING)
def test_predictions_come_on_top_on_request(name: str) -> None:
    features, both = (build(name, loss={"kd_weight": weight}) for weight in (0.0, 0.7))
    terms = []
    for method in (features, both):
        if method.adapters is not None:
            fill(method.adapters)
        leaves, batch = outputs()
        _, batch = with_features(leaves, batch)
        terms.append(method.loss(leaves["logits"], batch).terms)
    assert list(terms[0]) == ["hard", "features"]
    kd = build("kd", loss={"alpha": 1.0})
    soft = kd.loss(leaves["logits"], replace(batch)).terms["soft"]
    torch.testing.assert_close(terms[1]["soft"], 0.7 * soft, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(terms[1]["features"], terms[0]["features"], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("name", MATCHING)
def test_a_batch_of_one_image_has_a_finite_loss(name: str) -> None:
    method = build(name)
    leaves, batch = outputs()
    _, batch = with_features(leaves, batch)
    if method.adapters is not None:
        fill(method.adapters)
    if name == "reviewkd":
        return  # refused, see below
    one = batch.need_features().map(lambda part: part[:, :1])
    teacher = batch.teachers[0]
    teacher = teacher._replace(
        logits=teacher.logits[:, :1], features=teacher.need_features().map(lambda part: part[:, :1])
    )
    small = replace(batch, labels=batch.labels[:, :1], indices=batch.indices[:, :1], features=one, teachers=(teacher,))
    assert method.loss(leaves["logits"][:, :1], small).total.isfinite().all()


def test_margins_are_means_of_negative_responses_and_are_restored() -> None:
    method, restored = build("ofd"), build("ofd")
    assert isinstance(method, OFD)
    assert isinstance(restored, OFD)
    for number, margin in enumerate(method.margins):
        margin.fill_(-0.5 - number)
    restored.load_state_dict(method.state_dict())
    for margin, other in zip(method.margins, restored.margins, strict=True):
        assert torch.equal(margin, other)


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss\.stage = 3, but 3 pairs of stages are counted from 0"):
        build("fitnet", loss={"stage": 3})


def test_a_temperature_that_nothing_reads_is_refused() -> None:
    with pytest.raises(UserError, match=r"temperature' is read only where kd_weight is above 0"):
        make_recipe({"method": "at", "loss": {"temperature": 2.0}})

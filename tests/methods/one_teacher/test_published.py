"""Methods of one teacher have the losses and gradients of the published code, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.published import (
    BATCH,
    LABELS,
    PUBLISHED,
    STUDENT,
    assert_published,
    build,
    entropies,
    fill,
    outputs,
    with_features,
)
from tfkd_fast.data import Batch
from tfkd_fast.methods import METHODS
from tfkd_fast.methods.base import Interval, Material
from tfkd_fast.methods.one_teacher.features.ft import FT

TAUGHT = [name for name in PUBLISHED if name in METHODS and METHODS[name].needs().teachers.fewest]
LOGITS = [name for name in TAUGHT if not METHODS[name].needs().features]
FEATURES = [name for name in TAUGHT if METHODS[name].needs().features and name != "crd"]  # needs a bank, see test_crd


def constant(name: str, student: Tensor, teacher: Tensor) -> float:
    """By how much cross-entropies with a teacher are larger than the divergences that stand for them."""
    labels = LABELS[0]
    if name == "nkd":
        others = torch.stack([torch.cat([row[:y], row[y + 1 :]]) for row, y in zip(teacher, labels, strict=True)])
        return float(3.5 * 3.0**2 * entropies(others / 3.0).mean())
    if name == "wsld":
        errors = [F.cross_entropy(logits, labels, reduction="none") for logits in (student, teacher)]
        weights = 1 - (-errors[0] / errors[1]).exp()
        return float(2.25 * 4.0**2 * (weights * entropies(teacher / 4.0)).mean())
    return 0.0


@pytest.mark.parametrize("name", LOGITS)
def test_losses_of_logits_are_those_of_the_published_code(name: str) -> None:
    method = build(name)
    leaves, batch = outputs()
    given = {leaf: [tensor] for leaf, tensor in leaves.items()}
    if method.adapters is not None:
        given["adapters"] = [*method.adapters.double().parameters()]
    logits, teacher = leaves["logits"], batch.teachers[0].logits
    value = PUBLISHED[name]["value"] - constant(name, logits[0].detach(), teacher[0])
    assert_published(method.loss(logits, batch).total, given, PUBLISHED[name], value)


@pytest.mark.parametrize("name", FEATURES)
def test_losses_of_features_are_those_of_the_published_code(name: str) -> None:
    alike = name == "fsp"
    method = build(name, teacher=STUDENT) if alike else build(name)
    leaves, batch = outputs()
    maps, batch = with_features(leaves, batch, alike=alike)
    if METHODS[name].needs().material and not isinstance(method, FT):
        images = Batch(torch.zeros(BATCH, 1, 1, 1), LABELS[0], batch.indices[0])
        method.prepare(Material(lambda epoch: [images], None, lambda images: batch.teachers))
    given = {leaf: [tensor] for leaf, tensor in leaves.items()} | {"maps": maps}
    if method.adapters is not None:
        parameters = dict(fill(method.adapters).named_parameters())
        scales = [tensor for key, tensor in parameters.items() if key.endswith("scale")]  # of VID
        given["adapters"] = scales or [*parameters.values()]
    if name in ("ab", "fsp"):
        method.resume_interval(Interval(0, 1, 1))
    loss = method.loss(leaves["logits"], batch).total
    assert_published(loss, given, PUBLISHED[name], PUBLISHED[name]["value"])


def test_the_paraphraser_is_the_published_one() -> None:
    method = build("ft")
    assert isinstance(method, FT)
    _, batch = with_features(*outputs())
    error = method.paraphraser.error(batch.teachers[0].need_features().after_relu[-1][0])
    expected = PUBLISHED["ft-paraphraser"]
    assert_published(error, {"adapters": [*method.paraphraser.parameters()]}, expected, expected["value"])

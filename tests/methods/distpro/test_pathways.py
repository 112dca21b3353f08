"""Pathways: which stages go together, and how their weights share one."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from tests.methods.distpro.steps import shapes
from tfkd_fast.errors import UserError
from tfkd_fast.methods.distpro.pathways import (
    Pathway,
    PathwaySettings,
    biased_softmax,
    find_pathways,
    without_small,
)
from tfkd_fast.models import FeatureShapes
from tfkd_fast.runs.recipe import make_recipe


def stages(teacher: str, student: str, *, all_pairs: bool = False) -> list[tuple[int, int]]:
    settings = PathwaySettings(all_pairs=all_pairs, transforms=("complex",))
    return [pathway[:2] for pathway in find_pathways(shapes(teacher), shapes(student), settings)]


def test_stages_of_the_student_that_lie_as_deep_or_deeper_are_taught() -> None:
    """A VGG has maps of 32, 16, 8, 4 and 4 pixels, a residual network those of 32, 16 and 8 and above them its stem,
    number 0: ten pairs of two of these, as the authors count."""
    assert stages("vgg13", "vgg8") == [(i, j) for i in range(5) for j in range(i, 5)]
    assert stages("wrn_40_2", "resnet20") == [(i, j) for i in range(4) for j in range(i, 4)]
    assert stages("resnet20", "vgg8") == [(i, j) for i in range(4) for j in range(max(0, i - 1), 5)]
    assert stages("vgg13", "resnet20") == [(i, j) for i in range(3) for j in range(i + 1, 4)]
    assert stages("vgg13", "resnet20", all_pairs=True) == [(i, j) for i in range(5) for j in range(4)]


def test_every_pair_has_a_pathway_for_each_transform() -> None:
    pathways = find_pathways(shapes("resnet20"), shapes("vgg8"), PathwaySettings())
    assert len(pathways) == 2 * (5 + 5 + 4 + 3)
    assert pathways[2] == Pathway(0, 1, "identity-1x1", 0.0, 0.25)
    assert pathways[-1] == Pathway(3, 4, "complex", 1.0, 1.0)
    assert pathways[-1].name == "3>4 complex"


def test_a_student_whose_stages_are_all_shallower_is_refused() -> None:
    deep, shallow = FeatureShapes(((8, 4, 4),), 8), FeatureShapes(((8, 16, 16), (8, 8, 8)), 8)
    with pytest.raises(UserError, match=r"set pathways\.all_pairs"):
        find_pathways(deep, shallow, PathwaySettings())


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40))
def test_the_weights_are_a_softmax_beside_a_logit_of_one(alpha: list[float]) -> None:
    weights = biased_softmax(torch.tensor(alpha, dtype=torch.float64))
    total = math.e + sum(math.exp(value) for value in alpha)
    assert weights.tolist() == pytest.approx([math.exp(value) / total for value in alpha], rel=1e-12)
    assert weights.sum() < 1


def test_weights_of_less_than_a_part_of_the_equal_share_are_dropped() -> None:
    weights = torch.tensor([[0.25, 0.1, 0.3, 0.2], [0.125, 0.5, 0.0, 0.1]])
    dropped = torch.tensor([[0.25, 0.0, 0.3, 0.2], [0.125, 0.5, 0.0, 0.0]])
    assert torch.equal(without_small(weights, 0.5), dropped)
    assert torch.equal(without_small(weights, 0.0), weights)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"transforms": []}, r"recipe key 'pathways\.transforms'"),
        ({"transforms": ["complex", "complex"]}, "'complex' is named twice"),
        ({"transforms": ["cubic"]}, "identity-1x1"),
        ({"skip_below": 1.0}, "less than 1"),
    ],
)
def test_bad_settings_are_refused(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_recipe({"method": "distpro-search", "pathways": table})

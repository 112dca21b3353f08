"""Splits: balance, and that they depend on labels and seed only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfkd_fast.data import DataSettings, split_holdout
from tfkd_fast.data.images import ArrayImages
from tfkd_fast.data.split import split_indices
from tfkd_fast.errors import UserError
from tfkd_fast.runs.recipe import make_recipe


def image_set(labels: list[int], fill: int | None = None) -> ArrayImages:
    """Images whose one pixel is their index, or `fill`."""
    pixels = torch.arange(len(labels)) if fill is None else torch.full((len(labels),), fill)
    return ArrayImages(pixels.to(torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels))


def numbers(images: ArrayImages) -> list[int]:
    return images.all_images().flatten().tolist()


@given(
    labels=st.lists(st.integers(0, 3), max_size=100).map(lambda labels: [*labels, 0, 0, 1, 1, 2, 2, 3, 3]),
    fraction=st.sampled_from([0.1, 0.25, 0.4]),
)
def test_every_class_gives_its_share(labels: list[int], fraction: float) -> None:
    fit, holdout = split_holdout(image_set(labels), fraction)
    for label in range(4):
        expected = max(1, round(fraction * labels.count(label)))
        assert holdout.labels.tolist().count(label) == expected
        assert fit.labels.tolist().count(label) == labels.count(label) - expected
    assert sorted(numbers(fit) + numbers(holdout)) == list(range(len(labels)))
    assert numbers(fit) == sorted(numbers(fit))
    for part in (fit, holdout):
        assert part.labels.tolist() == [labels[number] for number in numbers(part)]


def test_the_split_depends_on_labels_and_seed_and_not_on_pixels() -> None:
    labels = [i % 3 for i in range(120)]
    _, first = split_holdout(image_set(labels), 0.2)
    assert numbers(split_holdout(image_set(labels), 0.2)[1]) == numbers(first)
    _, other_pixels = split_holdout(image_set(labels, fill=9), 0.2)
    assert other_pixels.labels.tolist() == first.labels.tolist()
    assert split_indices(torch.tensor(labels), 0.2, seed=1)[1].tolist() != numbers(first)


def test_the_split_of_today_is_the_split_of_tomorrow() -> None:
    """Results of all runs rest on this split: it may never change."""
    _, holdout = split_holdout(image_set([i % 3 for i in range(30)]), 0.2)
    assert numbers(holdout) == [2, 13, 18, 24, 25, 29]


@given(
    labels=st.lists(st.integers(0, 2), max_size=60).map(lambda labels: [*labels, *[0, 1, 2] * 10]),
    folds=st.sampled_from([2, 4, 5, 10]),
)
def test_the_folds_of_a_share_are_all_images_and_have_none_in_common(labels: list[int], folds: int) -> None:
    images = image_set(labels)
    parts = [split_holdout(images, 1 / folds, fold) for fold in range(folds)]
    assert sorted(number for _, holdout in parts for number in numbers(holdout)) == list(range(len(labels)))
    for fit, holdout in parts:
        assert sorted(numbers(fit) + numbers(holdout)) == list(range(len(labels)))
        for label in range(3):
            assert abs(holdout.labels.tolist().count(label) - labels.count(label) / folds) < 1
    assert numbers(parts[0][1]) == numbers(split_holdout(images, 1 / folds)[1])


def test_a_fold_that_there_is_not_is_refused() -> None:
    assert DataSettings(holdout=0.2, fold=4).fold == 4
    for table, sentence in (
        ({"holdout": 0.2, "fold": 5}, r"recipe key 'data\.fold': there are 5 folds of a share of 0\.2"),
        ({"holdout": 0.3, "fold": 3}, "there are 3 folds of a share of 0.3"),
        ({"holdout": 0.0, "fold": 1}, "read only where holdout is above 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_recipe({"data": table})
    own = image_set([0, 1, 0, 1])
    own.held_out = torch.tensor([True, True, False, False])
    with pytest.raises(UserError, match=r"which has no folds: leave data\.fold out"):
        split_holdout(own, 0.1, 1)


def test_a_class_that_is_too_small_is_refused_by_number() -> None:
    with pytest.raises(UserError, match=r"class number 1 has too few training images \(1\).*lower data.holdout"):
        split_holdout(image_set([0, 0, 1]), 0.1)
    with pytest.raises(UserError, match=r"class number 0 has too few training images \(2\)"):
        split_holdout(image_set([0, 0]), 0.9)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_share_of_nothing_or_all_is_a_programming_error(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be above 0 and below 1"):
        split_holdout(image_set([0, 0, 1, 1]), fraction)

"""A choice of classes: the images that it leaves, their labels, what is held out, every fault in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tfkd_fast.data import DataSettings, ImagesSealed, find_labels, open_dataset, sealed_test_images, split_holdout
from tfkd_fast.errors import UserError

NAMES = ["ant", "bee", "cow", "1", "elk-2"]


def test_a_choice_leaves_the_images_of_its_classes_in_both_parts() -> None:
    whole, some = open_dataset(DataSettings()), open_dataset(DataSettings(classes=("3-5", "8")))
    assert some.classes == ["3", "4", "5", "8"]
    for all_images, chosen in ((whole.read_train(), some.read_train()), (whole.read_test(), some.read_test())):
        shown = [i for i, label in enumerate(all_images.labels.tolist()) if label in (3, 4, 5, 8)]
        assert torch.equal(chosen.all_images(), all_images.all_images()[shown])
        names = [some.classes[label] for label in chosen.labels.tolist()]
        assert names == [whole.classes[label] for label in all_images.labels[shown].tolist()]
    assert (some.name, some.image_shape, some.flip) == (whole.name, whole.image_shape, whole.flip)
    assert (some.mean, some.std) == (whole.mean, whole.std), "a teacher of these sees what a student of all sees"
    assert open_dataset(DataSettings(classes=("3-5", "8"), flip=True)).flip


def test_the_order_of_a_choice_does_not_matter() -> None:
    one, other = (open_dataset(DataSettings(classes=choice)) for choice in (("7", "2"), ("2", "7", "2")))
    assert one.classes == other.classes == ["2", "7"]
    assert torch.equal(one.read_train().labels, other.read_train().labels)


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_what_is_held_out_of_some_classes_is_held_out_of_all(fraction: float) -> None:
    whole, some = (open_dataset(DataSettings(classes=choice)).read_train() for choice in (None, ("3-5", "8")))
    for of_all, of_some in zip(split_holdout(whole, fraction), split_holdout(some, fraction), strict=True):
        shown = torch.isin(of_all.labels, torch.tensor([3, 4, 5, 8]))
        assert torch.equal(of_some.all_images(), of_all.all_images()[shown])


def test_test_images_stay_sealed_and_are_read_only_when_asked_for(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 32, 32, 1), dtype=np.uint8)
    arrays = {
        "train_images": images,
        "train_labels": np.array([0, 1, 2, 2, 1, 0]),
        "classes": np.array(["a", "b", "c"]),
    }
    np.savez(tmp_path / "data.npz", **arrays, test_images=images[:2], test_labels=np.array([2, 99]))
    some = open_dataset(DataSettings(dataset="npz", root=str(tmp_path / "data.npz"), classes=("a", "b")))
    assert some.read_train().labels.tolist() == [0, 1, 1, 0]
    with sealed_test_images(), pytest.raises(ImagesSealed):
        some.read_test()
    with pytest.raises(UserError, match=r"test_labels .* holds 99"):
        some.read_test()
    np.savez(tmp_path / "data.npz", **arrays, test_images=images[:2], test_labels=np.array([2, 2]))
    with pytest.raises(UserError, match=r"no test image shows any of the 2 classes of data.classes"):
        some.read_test()


def test_image_files_are_chosen_unopened(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for grey, name in enumerate(("a", "b", "c")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (32, 32), grey).save(tmp_path / part / name / "0.png")
    (tmp_path / "train" / "b" / "0.png").write_bytes(b"no image")
    some = open_dataset(DataSettings(dataset="folder", root=str(tmp_path), classes=("a", "c")))
    assert some.read_train().all_images().amax((1, 2, 3)).tolist() == [0, 2]
    assert some.read_train().labels.tolist() == [0, 1]


def test_real_images_of_two_groups_are_those_of_all(real_cifar10: Path) -> None:
    def train(classes: tuple[str, ...] | None) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        dataset = open_dataset(DataSettings(dataset="npz", root=str(real_cifar10), classes=classes))
        assert len(dataset.read_test()) == 200 * len(dataset.classes)
        return dataset.classes, dataset.read_train().all_images(), dataset.read_train().labels

    names, images, labels = train(None)
    first_names, first_images, first_labels = train(("0-3", "horse"))
    other_names, other_images, other_labels = train(("deer", "dog", "frog", "8-9"))
    assert first_names == ["airplane", "automobile", "bird", "cat", "horse"]
    assert other_names == ["deer", "dog", "frog", "ship", "truck"]
    group = torch.tensor([names.index(name) in (0, 1, 2, 3, 7) for name in names])[labels]
    assert torch.equal(first_images, images[group])
    assert torch.equal(other_images, images[~group])
    assert [first_names[i] for i in first_labels.tolist()] == [names[i] for i in labels[group].tolist()]
    assert [other_names[i] for i in other_labels.tolist()] == [names[i] for i in labels[~group].tolist()]


@pytest.mark.parametrize(
    ("choice", "labels"),
    [
        (("bee", "ant"), [0, 1]),
        (("0-2",), [0, 1, 2]),
        (("1", "0"), [0, 3]),  # a class is named 1
        (("elk-2", "4", "2-3"), [2, 3, 4]),
    ],
)
def test_classes_go_by_name_then_by_label(choice: tuple[str, ...], labels: list[int]) -> None:
    assert find_labels(choice, NAMES, "data.classes") == labels


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (("bea", "ant"), "data.classes names 'bea', which is no class: did you mean 'bee'"),
        (("3-5",), "data.classes asks for 3-5, but labels are 0-4"),
        (("2-1",), "data.classes asks for 2-1, but labels are 0-4"),
        (("5", "ant"), "data.classes asks for 5, but labels are 0-4"),
        (("", "ant"), "data.classes names '', which is no class"),
        (("ant", "0"), "data.classes chooses 1 of the 5 classes: choose two or more"),
        ((), "data.classes chooses 0 of the 5 classes"),
    ],
)
def test_a_choice_that_makes_no_data_set_is_refused(choice: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        find_labels(choice, NAMES, "data.classes")


@pytest.mark.parametrize(
    ("given", "choice"),
    [("0-4", ("0-4",)), ("cat, 2-3", ("cat", "2-3")), ([0, "cat"], ("0", "cat")), (7, ("7",)), (None, None)],
)
def test_a_choice_may_be_a_text_or_a_list(given: Any, choice: tuple[str, ...] | None) -> None:
    settings = DataSettings(classes=given)
    assert settings.classes == choice
    assert DataSettings(**settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("given", [1.5, [1.5], [["cat"]]])
def test_a_choice_is_nothing_else(given: Any) -> None:
    with pytest.raises(ValueError, match="classes"):
        DataSettings(classes=given)

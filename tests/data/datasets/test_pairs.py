"""Data sets that a program gives, and those of Hugging Face: pairs of an image and a label."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision import datasets as torchvision_datasets
from torchvision.transforms import v2

import tfkd_fast
from tests.data.loaders.batches import assert_same, loader_of
from tfkd_fast.api import mistakes, replay
from tfkd_fast.data import Dataset, DataSettings, ImagesSealed, open_dataset, sealed_test_images, split_holdout
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.events import StudentExamined

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8))
LABELS = torch.arange(40) % 4


class Listed(torch.utils.data.Dataset[Any]):
    """Pairs of a list, and how often each was read."""

    def __init__(self, pairs: list[Any], **attributes: Any) -> None:
        self.pairs, self.read = pairs, [0] * len(pairs)
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        self.read[index] += 1
        return self.pairs[index]


def opened(given: Any, **settings: Any) -> Dataset:
    return open_dataset(DataSettings(**{"dataset": "python"} | settings), pairs=given)


KINDS: dict[str, Any] = {
    "uint8 tensors": lambda image: image,
    "floats of ToTensor": lambda image: image.float() / 255,
    "arrays": lambda image: image.permute(1, 2, 0).numpy(),
    "Pillow": v2.functional.to_pil_image,
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_labels_are_those_of_the_pairs(kind: str) -> None:
    images = list(map(KINDS[kind], PIXELS))
    labels = [LABELS.tolist(), LABELS, list(LABELS.numpy())][len(kind) % 3]
    pairs = Listed(list(zip(images, labels, strict=True)))
    dataset = opened((pairs, Subset(pairs, range(8))))
    assert dataset.classes == ["0", "1", "2", "3"]
    assert torch.equal(dataset.read_train().all_images(), PIXELS)
    assert torch.equal(dataset.read_train().labels, LABELS)
    assert torch.equal(dataset.read_test().all_images(), PIXELS[:8])
    with sealed_test_images(), pytest.raises(ImagesSealed):
        dataset.read_test()
    loaders = [loader_of(dataset, name, batch_size=16) for name in ("resident", "torchvision")]
    assert_same(loaders[0].epoch(1), loaders[1].epoch(1))
    with pytest.raises(UserError, match=r"^loader dali (reads files and arrays only|needs NVIDIA DALI)"):
        loader_of(dataset, "dali")


def test_one_part_is_split_class_by_class() -> None:
    dataset = opened(TensorDataset(PIXELS, LABELS))
    train, test = dataset.read_train(), dataset.read_test()
    assert test.labels.bincount().tolist() == [2, 2, 2, 2]
    both = torch.cat([train.all_images(), test.all_images()]).flatten(1)
    assert torch.equal(both.unique(dim=0), PIXELS.flatten(1).unique(dim=0))
    assert dataset.parts.startswith("no test set was given, so 20 % of the images of each class are the test set: 8 of")


def test_the_second_of_three_parts_is_held_out() -> None:
    given = [TensorDataset(PIXELS[part], LABELS[part]) for part in (slice(24), slice(24, 34), slice(34, 40))]
    dataset = opened(given)
    assert dataset.parts == "the images of the second data set are what is held out"
    for found, part in zip((*split_holdout(dataset.read_train(), 0.1), dataset.read_test()), given, strict=True):
        assert torch.equal(found.all_images(), part.tensors[0])
        assert torch.equal(found.labels, part.tensors[1])
    assert opened([given[0], given[2]]).fingerprint != dataset.fingerprint
    assert "are trained on, too, because data.holdout is 0" in opened(given, holdout=0.0).parts
    with pytest.raises(UserError, match=r"data.holdout is 0.3, but what is held out are the images of the second data"):
        opened(given, holdout=0.3)


def test_labels_and_classes_come_from_attributes_without_reading_all_images() -> None:
    pairs = list(zip(PIXELS, LABELS.tolist(), strict=True))
    listed = Listed(pairs, targets=LABELS.tolist(), classes=["ant", "bee", "cow", "dog"])
    dataset = opened((listed, listed))
    assert torch.equal(dataset.read_train().labels, LABELS)
    assert dataset.classes == ["ant", "bee", "cow", "dog"]
    assert {i for i, times in enumerate(listed.read) if times} == {0, 1, 2, 3, 10, 20, 30}  # a quarter, and each label
    for others in (
        3 - LABELS,
        (LABELS + 2 * (LABELS % 2)) % 4,
        np.uint64(2**63 - 1) + LABELS.numpy().astype(np.uint64),
    ):
        misleading = Listed(pairs, targets=others)
        assert torch.equal(opened((misleading, misleading)).read_train().labels, LABELS)


def test_a_label_that_is_another_when_its_image_is_read_is_refused() -> None:
    targets = LABELS.tolist()
    targets[20], targets[21] = targets[21], targets[20]
    dataset = opened((Listed(PAIRS), Listed(PAIRS, targets=targets)))
    dataset.read_train().refuse_unreadable()
    with pytest.raises(
        UserError, match=r"^number 20 of the data set has the label 0, and among all of its labels 1: m"
    ):
        dataset.refuse_unusable_test()


class Odd(Listed):
    """Attributes that are no lists of labels."""

    def labels(self) -> list[int]:
        return [1] * len(self)

    @property
    def _labels(self) -> list[int]:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("attributes", "classes"),
    [
        ({"classes": np.array(["ant", "bee", "cow", "dog"])}, ["ant", "bee", "cow", "dog"]),
        ({"classes": 4, "targets": 5}, ["0", "1", "2", "3"]),
        ({"classes": "abcd", "targets": [[1], [2, 3]]}, ["0", "1", "2", "3"]),
        ({"classes": {"dog": 3, "bee": np.int64(1), "ant": 0, "cow": 2}}, ["ant", "bee", "cow", "dog"]),
    ],
)
def test_classes_are_those_of_the_attribute_where_it_lists_any(attributes: dict[str, Any], classes: list[str]) -> None:
    dataset = opened(Odd(PAIRS, **attributes))
    assert dataset.classes == classes
    assert dataset.read_train().labels.bincount().tolist() == [8] * 4


def test_labels_of_parts_are_told_apart_by_the_names_of_their_classes() -> None:
    """The same animals, numbered by other lists of names in each part; those chosen or joined have the list of all."""

    def part(names: list[str], animals: list[str]) -> Listed:
        pairs = [(PIXELS[i], names.index(name)) for i, name in enumerate(animals)]
        return Listed(pairs, classes=names)

    train = part(["cat", "dog", "frog"], ["dog", "cat", "frog", "dog", "cat", "frog"])
    held_out = part(["dog", "cat", "frog"], ["frog", "dog", "cat"])
    test = part(["frog", "cat"], ["cat", "frog", "frog"])
    frog = Listed([(PIXELS[5], 2)])  # without names
    joined: ConcatDataset[Any] = ConcatDataset([Subset(train, range(4)), part(["cat", "dog"], ["cat"]), frog])
    for trained in (train, Subset(train, range(6)), joined):
        dataset = opened((trained, held_out, Subset(test, range(3))))
        assert dataset.read_train().labels.tolist() == [1, 0, 2, 1, 0, 2, 2, 1, 0]
        assert dataset.read_test().labels.tolist() == [0, 2, 2]
        dataset.read_train().refuse_unreadable()
        dataset.refuse_unusable_test()
    assert opened((train, part(["owl", "cat"], ["cat"]))).read_test().labels.tolist() == [0]
    with pytest.raises(
        UserError, match=r"^the data set has held-out or test images of class 'owl' and no training ima"
    ):
        opened((train, part(["owl", "cat"], ["cat", "owl"]))).read_test()
    with pytest.raises(UserError, match=r"^labels of the data set must be 0 \.\. 1, and one is -1: number"):
        opened((train, Listed([(PIXELS[0], -1)], classes=["cat", "dog"]))).read_test()
    with pytest.raises(UserError, match=r"^data sets that were joined have other names for the same labels: number"):
        opened((train, ConcatDataset([held_out, test]))).read_test()


def test_classes_of_a_part_without_names_are_told_by_their_labels() -> None:
    """That is said where labels leave it open; where all classes occur in both they are as many."""
    named, few = Listed(PAIRS, classes=["ant", "bee", "cow", "dog"]), Listed(PAIRS[:2])
    for given in ((named, few), (Listed(PAIRS), Listed(PAIRS[:2], classes=["ant", "bee"]))):
        with pytest.warns(Notice, match=r"so equal labels are taken for equal classes; to be sure, give both an attri"):
            assert opened(given).read_test().labels.tolist() == [0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in ((named, Listed(PAIRS)), (Listed(PAIRS), few), (named, Listed(PAIRS[:2], classes=named.classes))):
            opened(given).read_test()


def test_images_of_any_size_are_shown_as_those_of_a_folder(tmp_path: Path) -> None:
    """An ImageFolder of torchvision, and the same folder read by name."""
    random = np.random.default_rng(1)
    for part in ("train", "test"):
        for i in range(6):
            file = tmp_path / part / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            height, width = random.integers(30, 90, 2)
            Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    parts = [torchvision_datasets.ImageFolder(tmp_path / part) for part in ("train", "test")]
    keys: dict[str, Any] = {"image_size": 48, "centre_crop": 0.9}
    given = opened(parts, **keys)
    by_name = open_dataset(DataSettings(dataset="folder", root=str(tmp_path), **keys))
    assert (given.classes, given.reading) == (by_name.classes, by_name.reading)
    assert torch.equal(given.read_train().all_images(), by_name.read_train().all_images())
    assert torch.equal(given.read_test().all_images(), by_name.read_test().all_images())
    change: dict[str, Any] = {"crop": "resized", "auto_augment": "trivialaugment"}
    assert_same(
        loader_of(given, "torchvision", **change).epoch(3), loader_of(by_name, "torchvision", **change).epoch(3)
    )


def test_grey_stays_grey_and_is_not_mixed_with_colours() -> None:
    grey = [(image, label) for image, label in zip(PIXELS[:, :1], LABELS.tolist(), strict=True)]
    dataset = opened(Listed(grey))
    assert dataset.image_shape == (1, 32, 32)
    assert dataset.read_train().all_images().shape[1] == 1
    mixed = opened(Listed([*grey[:-1], (PIXELS[0], 3)]))
    with pytest.raises(UserError, match=r"^image number 39 of the data set has colours, and the first has none"):
        [part.all_images() for part in (mixed.read_train(), mixed.read_test())]


PAIRS = list(zip(PIXELS, LABELS.tolist(), strict=True))


class Changing(Listed):
    def __getitem__(self, index: int) -> Any:
        return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), index % 2


class Mirroring(Listed):
    """A flip at every other reading, which leaves an image that is its own mirror as it is."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return (image.flip(-1) if self.read[index] % 2 else image), label


def cut_off() -> Image.Image:
    """A grey image that is not loaded yet, and whose file ends early."""
    file = io.BytesIO()
    v2.functional.to_pil_image(PIXELS[0, :1]).save(file, "png")
    return Image.open(io.BytesIO(file.getvalue()[:500]))


def labelled(*labels: Any) -> Listed:
    return Listed([(PIXELS[i % 40], label) for i, label in enumerate(labels)])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, r"one torch Dataset with a length, or two"),
        (Listed([]), r"(is empty: give it images|cannot be read)"),
        (Listed([1, 2]), r"^number 0 of the data set is no pair"),
        (Listed([(PIXELS[0], "ant")]), r"the label of number 0 of the data set is no whole number"),
        (Listed([("a.png", 0)]), r"number 0 of the data set shows no image"),
        (Listed([(PIXELS[0].float(), 0)]), r"are not in 0\.\.1: leave the normalisation to the recipe"),
        (Listed([(PIXELS[0].int(), 0)]), r"are torch\.int32: give pairs"),
        (Listed([(np.zeros(784, np.uint8), 0)]), r"number 0 of the data set shows no image"),
        (Listed([(np.zeros((32, 32), object), 0)]), r"number 0 of the data set shows no image"),
        (Listed([(np.zeros((32, 32), ">f4"), 0)]), r"^number 0 of the data set cannot be read \(ValueError: .* byte"),
        (Listed([(cut_off(), 0)]), r"^number 0 of the data set cannot be read \(OSError: image file is .*: mend it$"),
        (Listed([(Image.new("L", (0, 5)), 0)]), r"number 0 of the data set shows no image"),
        (Listed([(Image.fromarray(np.zeros((32, 32), np.float32)), 0)]), r"number 0 of the data set holds floats"),
        (Listed(PAIRS, classes=["ant", "bee"]), r"labels of the data set must be 0 \.\. 1, and one is 2: num"),
        (labelled(-1, 0, 1, 2), r"labels of the data set must be 0 \.\. 3, and one is -1: number its classes from 0$"),
        (labelled(0, 10**12, 1), r"labels of the data set must be 0 \.\. 2, and one is 1000000000000: number"),
        (labelled(0, np.uint64(2**63)), r"the label of number 1 of the data set is no whole number"),
        (Listed(PAIRS, classes=set("abcd")), r"^the attribute classes of the data set does not say which label each"),
        (Listed(PAIRS, classes={0: "ant", 1: "bee", 2: "cow", 3: "dog"}), r"does not say which label each name"),
        (Listed(PAIRS, classes=list("abcde")), r"the data set has no training image of class 'e'"),
        (Listed([(PIXELS[0], 0)] * 4), r"the data set names 1 classes: give it two or more"),
        (Mirroring([(torch.zeros_like(PIXELS[0]), 0), *PAIRS]), r"gives other pixels at each reading"),
        (Changing(PAIRS), r"gives other pixels at each reading: leave random transforms"),
        (Subset(Listed(PAIRS), [99]), r"^number 0 of the data set cannot be read \(IndexError: .*\): mend it$"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_are_no_pairs_is_one_sentence(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        opened(given).read_train().refuse_unreadable()
    assert "\n" not in str(caught.value)


def test_a_run_is_trained_tested_and_resumed_on_what_is_given(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "method": "ce",
        "epochs": 2,
        "device": "cpu",
        "model": {"name": "resnet8x4", "width": 0.125},
        "data": {"image_size": 28, "crop": "resized", "loader": "torchvision", "workers": 0},
    }
    given = TensorDataset(PIXELS, LABELS)
    summary = tfkd_fast.train(recipe, tmp_path, dataset=given)
    assert (summary["dataset"], summary["test_images"]) == ("python", 8)
    student = (tmp_path / "student.safetensors").read_bytes()
    for name in ("summary.json", "student.safetensors", "checkpoints/epoch-00002.ckpt"):
        (tmp_path / name).unlink()
    assert tfkd_fast.resume(tmp_path, dataset=given)["test_top1"] == summary["test_top1"]
    assert (tmp_path / "student.safetensors").read_bytes() == student
    assert tfkd_fast.evaluate(tmp_path, dataset=given)["test_top1"] == summary["test_top1"]
    with pytest.raises(UserError, match=r"^the data set of this recipe is given from Python: call tfkd_fast with dat"):
        tfkd_fast.evaluate(tmp_path)
    with pytest.raises(UserError, match=r"trained on, its training images, .*: give the argument dataset that one$"):
        tfkd_fast.evaluate(tmp_path, dataset=TensorDataset(PIXELS.flip(0), LABELS))
    tests = [event for event in tfkd_fast.load_run(tmp_path).events if isinstance(event, StudentExamined)]
    shown = mistakes(tmp_path, dataset=given)
    assert len(shown) == len(tests[0].mistakes) > 0
    test = opened(given, image_size=28).read_test()
    assert all(shown[number].tobytes() == test.whole(number).tobytes() for number in shown)
    replayed = replay(tmp_path, tmp_path / "replayed", dataset=given, overrides={"epochs": 1})
    assert (replayed["dataset"], replayed["test_images"]) == ("python", 8)


def test_a_recipe_of_another_data_set_is_used_for_the_one_that_is_given(tmp_path: Path) -> None:
    overrides = {"epochs": 1, "method": "ce", "device": "cpu", "model": {"name": "resnet8x4", "width": 0.125}}
    tfkd_fast.train("cifar10", tmp_path, dataset=TensorDataset(PIXELS, LABELS), overrides=overrides)
    data = (tmp_path / "recipe.toml").read_text()
    assert 'dataset = "python"' in data
    assert "root" not in data


def test_a_data_set_of_hugging_face_is_read_from_disk(tmp_path: Path) -> None:
    hub = pytest.importorskip("datasets")
    features = hub.Features(
        {"id": hub.Value("int32"), "picture": hub.Image(), "label": hub.ClassLabel(names=["ant", "bee"])}
    )

    def split(first: int, count: int) -> Any:
        numbers = range(first, first + count)
        pictures = [v2.functional.to_pil_image(PIXELS[i]) for i in numbers]
        rows = {"id": list(numbers), "picture": pictures, "label": [i % 2 for i in numbers]}
        return hub.Dataset.from_dict(rows, features=features)

    hub.DatasetDict(train=split(0, 20), validation=split(20, 6), more=split(0, 2)).save_to_disk(tmp_path / "saved")
    settings = DataSettings(dataset="hf/someone/insects", root=str(tmp_path / "saved"))
    dataset = open_dataset(settings)
    assert (dataset.name, dataset.classes) == ("hf/someone/insects", ["ant", "bee"])
    assert torch.equal(dataset.read_train().all_images(), PIXELS[:20])
    assert torch.equal(dataset.read_test().all_images(), PIXELS[20:26])
    assert dataset.read_train().labels.tolist() == [0, 1] * 10
    assert dataset.parts == "there is no split test, so the images of validation are the test set; not read: more"
    hub.DatasetDict(train=split(0, 20), validation=split(20, 6), test=split(26, 4)).save_to_disk(tmp_path / "three")
    three = open_dataset(settings.model_copy(update={"root": str(tmp_path / "three")}))
    assert three.parts == "the images of validation are what is held out"
    with pytest.raises(UserError, match=r"holdout is 0\.3, but what is held out are the images of validation:"):
        open_dataset(settings.model_copy(update={"root": str(tmp_path / "three"), "holdout": 0.3}))
    assert torch.equal(split_holdout(three.read_train(), 0.1)[1].all_images(), PIXELS[20:26])
    assert torch.equal(three.read_test().all_images(), PIXELS[26:30])
    with pytest.raises(UserError, match=r"cannot be read from .*nowhere"):
        open_dataset(settings.model_copy(update={"root": str(tmp_path / "nowhere")}))
    with pytest.raises(UserError, match=r"^data set hf/someone/insects is fetched with --download, or read from"):
        open_dataset(DataSettings(dataset="hf/someone/insects"))
    others = hub.Features(
        {"mask": hub.Image(), "picture": hub.Image(), "label": hub.ClassLabel(names=["bee", "ant"])}
        | {"wings": hub.ClassLabel(names=["two", "four"])}
    )
    table = {key: split(26, 4)[key] for key in ("picture", "label")}
    renumbered = hub.Dataset.from_dict(
        {"mask": table["picture"], "picture": table["picture"], "label": [1, 0, 1, 0], "wings": [0] * 4}, others
    )
    hub.DatasetDict(train=split(0, 20), test=renumbered).save_to_disk(tmp_path / "renumbered")
    dataset = open_dataset(settings.model_copy(update={"root": str(tmp_path / "renumbered")}))
    assert dataset.read_test().labels.tolist() == [0, 1, 0, 1]  # ants and bees, as in the training images
    assert (
        dataset.parts == "images are read from column mask of mask, picture; labels are read from column label of l"
        "abel, wings"
    )
    hub.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match=r"has no split train"):
        open_dataset(settings.model_copy(update={"root": str(tmp_path / "text")}))

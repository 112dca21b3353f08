"""Random changes of training images: those of torchvision, and the same ones whoever makes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as first
from torchvision.transforms import v2

from tests.data.loaders.batches import COUNT, CPU, assert_same, collect, dataset_of, loader_of
from tfkd_fast.data import Dataset, DataSettings, describe_augmentation, make_loader, missing_loaders, open_dataset
from tfkd_fast.data.augmentation import Augmentation
from tfkd_fast.data.images import from_pillow, show_centre
from tfkd_fast.data.transforms import Transforms, make_transforms
from tfkd_fast.errors import UserError

MEAN = (0.25, 0.5, 0.75)
EVERYTHING: dict[str, Any] = {
    "crop": "resized",
    "auto_augment": "randaugment",
    "jitter": 0.4,
    "hue_jitter": 0.1,
    "erasing": 0.5,
}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def transforms_of(**values: Any) -> Transforms:
    made = make_transforms(DataSettings(**values), MEAN)
    assert made is not None
    return made


THEIRS: dict[str, tuple[dict[str, Any], Any]] = {
    "resized": ({"crop": "resized"}, v2.RandomResizedCrop(64)),
    "resized, large parts": (
        {"crop": "resized", "crop_area": (0.5, 0.9)},
        v2.RandomResizedCrop(64, scale=(0.5, 0.9)),
    ),
    "randaugment": (
        {"auto_augment": "randaugment", "randaugment_operations": 3, "randaugment_magnitude": 15},
        v2.RandAugment(3, 15),
    ),
    "trivialaugment": ({"auto_augment": "trivialaugment"}, v2.TrivialAugmentWide()),
    "jitter": ({"jitter": 0.4, "hue_jitter": 0.1}, first.ColorJitter(0.4, 0.4, 0.4, 0.1)),
    "erasing": (
        {"erasing": 0.7},
        v2.Compose(
            [v2.PILToTensor(), first.RandomErasing(0.7, value=[round(255 * value) for value in MEAN]), v2.ToPILImage()]
        ),
    ),
}


@pytest.mark.parametrize(("values", "theirs"), THEIRS.values(), ids=THEIRS)
def test_each_change_is_that_of_torchvision_under_the_same_seed(values: dict[str, Any], theirs: Any) -> None:
    ours = transforms_of(**values)
    image = picture(*((96, 80) if "crop" in values else (64, 64)))
    results = []
    for key in range(40):
        result = ours.apply(image, key, mirrored=False, size=64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            expected = theirs(image)
        assert torch.equal(from_pillow(result), from_pillow(expected)), key
        results.append(from_pillow(result))
    assert len({tuple(result.flatten().tolist()) for result in results}) > 8


def test_changes_follow_each_other_as_in_the_recipes_of_the_field() -> None:
    """A part, mirrored, its colours changed, and what is erased has the mean colour to the end."""
    values = {"crop": "resized", "jitter": 0.4, "erasing": 1.0}
    ours, image = transforms_of(**values), picture(96, 80)
    for key in range(10):
        drawn = ours.draw(key, 96, 80, 64)
        assert drawn.part is not None
        assert drawn.jitter is not None
        assert drawn.erased is not None
        part = v2.functional.resized_crop(image, *drawn.part, [64, 64])
        expected = v2.functional.horizontal_flip(part)
        steps = (v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation)
        for number in drawn.jitter.order:
            if number < 3:
                expected = steps[number](expected, drawn.jitter[1 + number])
        fill = torch.tensor([round(255 * value) for value in MEAN], dtype=torch.uint8).reshape(3, 1, 1)
        pixels = v2.functional.erase(from_pillow(expected), *drawn.erased, fill)
        assert torch.equal(from_pillow(ours.apply(image, key, mirrored=True, size=64)), pixels)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)], ids=str)
def test_a_view_is_a_function_of_seed_epoch_stream_and_image(shape: tuple[int, int, int]) -> None:
    dataset = dataset_of(shape)
    resident = loader_of(dataset, "resident", **EVERYTHING)
    assert (resident.name, resident.is_resident) == ("resident", False)
    workers = loader_of(dataset, "torchvision", workers=2, **EVERYTHING)
    other_size = loader_of(dataset, "torchvision", batch_size=11, **EVERYTHING)
    before = torch.get_rng_state()
    for epoch, stream in ((0, 0), (3, 2)):
        assert_same(resident.epoch(epoch, stream), workers.epoch(epoch, stream))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same([collect(resident.epoch(3))], [collect(other_size.epoch(3))])
    shown = [resident.epoch(0), resident.epoch(1), resident.epoch(0, 1)]
    shown.append(loader_of(dataset, "resident", seed=6, **EVERYTHING).epoch(0))
    sorted_ = [batch.images[batch.indices.argsort()] for batch in map(collect, shown)]
    for other in sorted_[1:]:
        assert (sorted_[0] == other).all(dim=(1, 2, 3)).sum() < COUNT / 4
    plain = loader_of(dataset, "resident", augment=False)
    assert_same(resident.in_order(), plain.in_order())
    assert_same(workers.in_order(), plain.in_order())


def test_padded_windows_stay_those_of_the_standard_augmentation() -> None:
    """What is erased is the only difference."""
    dataset = dataset_of((3, 32, 32))
    standard, erased = (collect(loader_of(dataset, "resident", **more).epoch(2)) for more in ({}, {"erasing": 1.0}))
    same = (standard.images - erased.images).abs().amax(1) < 1e-6
    assert 0.67 < same.float().mean() < 0.98  # 2 to 33 % of each image
    assert not same.all(dim=(1, 2)).any()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of JPEG files of several sizes, one of them turned by its EXIF orientation."""
    sizes = [(96, 160), (200, 120), (57, 91), (130, 130), (40, 33), (256, 64)]
    for part in ("train", "test"):
        for number, (height, width) in enumerate(2 * sizes):
            file = tmp_path / part / "ab"[number % 2] / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            if number == 3:
                exif[0x0112] = 6
            picture(height, width, number).save(file, quality=95, exif=exif)
    return tmp_path


def open_photographs(root: Path, **values: Any) -> Dataset:
    return open_dataset(DataSettings(dataset="folder", root=str(root), **values))


@pytest.mark.parametrize("size", [28, 96, 224])
def test_parts_are_cut_out_of_whole_files(photographs: Path, size: int) -> None:
    """Against torchvision on the images that Pillow decodes, and DALI against the torchvision loader."""
    dataset = open_photographs(photographs, image_size=size)
    files = dataset.read_train()
    loader = loader_of(dataset, "torchvision", crop="resized", flip=False)
    batch = collect(loader.epoch(1))
    transforms = make_transforms(DataSettings(crop="resized"), dataset.mean)
    views = Augmentation(0, flip=True, transforms=transforms).draw_views(batch.indices, seed=5, epoch=1, stream=0)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (dataset.mean, dataset.std))
    for index, key, mirrored, shown in zip(
        batch.indices.tolist(), views.keys.tolist(), views.mirrored, batch.images, strict=True
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            expected = from_pillow(v2.RandomResizedCrop(size)(files.whole(index)))
        expected = expected.flip(2) if mirrored else expected
        torch.testing.assert_close(shown * std + mean, expected / 255, rtol=1e-4, atol=1e-4)
    if missing_loaders()["dali"]:
        return
    dali = collect(loader_of(dataset, "dali", crop="resized", flip=False).epoch(1))
    assert torch.equal(dali.indices, batch.indices)
    apart = 255 * (dali.images - batch.images).mul(std).abs()
    inside = apart[..., 2:-2, 2:-2]  # at the border of a reduced part the two filters differ
    assert inside.mean() < 1  # two rounds of rounding, and decoders of JPEG
    assert apart.mean() < 2


def test_dali_changes_images_as_drawn(photographs: Path) -> None:
    if missing_loaders()["dali"]:
        pytest.skip("the loader dali is missing")
    dataset = open_photographs(photographs, image_size=64)
    std = torch.tensor(dataset.std).reshape(3, 1, 1)

    def apart(**values: Any) -> torch.Tensor:
        shown = [collect(loader_of(dataset, name, **values).epoch(2)).images for name in ("dali", "torchvision")]
        return 255 * ((shown[0] - shown[1]) * std).abs()

    assert apart().mean() < 2
    assert apart(erasing=1.0).mean() < 2  # the same rectangles, in the same colour
    # other formulas in another order; two random changes differ more
    changed, unchanged = (collect(loader_of(dataset, "dali", jitter=j).epoch(2)).images for j in (0.4, 0.0))
    assert apart(jitter=0.4).mean() < 0.5 * (255 * (changed - unchanged) * std).abs().mean()


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_operations_of_dali_are_those_of_the_epoch(photographs: Path, name: str) -> None:
    if missing_loaders()["dali"]:
        pytest.skip("the loader dali is missing")
    dataset = open_photographs(photographs, image_size=64)
    values = EVERYTHING | {"auto_augment": name}
    loader = loader_of(dataset, "dali", **values)
    first_epoch, second = collect(loader.epoch(0)), collect(loader.epoch(1))
    again = loader_of(dataset, "dali", **values)  # as a resumed run begins
    assert_same([collect(again.epoch(1))], [second])
    assert_same([collect(loader.epoch(0))], [first_epoch])
    by_image = [batch.images[batch.indices.argsort()] for batch in (first_epoch, second)]
    assert not torch.equal(*by_image)
    plain = collect(loader_of(dataset, "dali", augment=False).in_order())
    assert_same([collect(loader.in_order())], [plain])


@pytest.mark.parametrize("size", [(512, 512), (512, 1024), (333, 500)], ids=str)
def test_evaluation_is_a_resize_and_a_centre_crop(size: tuple[int, int]) -> None:
    """Bit for bit where torchvision's rounding to whole pixels leaves nothing to round."""
    image = picture(*size)
    ours = from_pillow(show_centre(image, 224, 224 / 256)).float()
    theirs = from_pillow(v2.CenterCrop(224)(v2.Resize(256)(image))).float()
    if size[0] == 512:
        assert torch.equal(ours, theirs)
    else:
        assert (ours - theirs).abs().mean() < 2  # half a pixel apart at most


@pytest.mark.parametrize("loader", ["resident", "torchvision", "dali"])
def test_held_out_images_show_the_centre_and_nothing_random(photographs: Path, loader: str) -> None:
    if reason := missing_loaders()[loader]:
        pytest.skip(f"the loader {loader} {reason}")
    dataset = open_photographs(photographs, image_size=64, centre_crop=0.8)
    assert dataset.reading.startswith("a centred square of 0.8 of the shorter side, upright, resized to 64 x 64")
    files = dataset.read_train()
    batch = collect(loader_of(dataset, loader, erasing=1.0).in_order())
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (dataset.mean, dataset.std))
    expected = torch.stack([from_pillow(show_centre(files.whole(index), 64, 0.8)) for index in range(len(files))])
    assert (255 * (batch.images * std + mean) - expected).abs().mean() < (2 if loader == "dali" else 1e-3)


def test_what_cannot_be_is_refused(photographs: Path) -> None:
    dataset = open_photographs(photographs)
    with pytest.raises(UserError, match=r"^loader resident keeps images of their final size.*: use --loader torchv"):
        loader_of(dataset, "resident", crop="resized")
    settings = DataSettings(crop="resized", batch_size=5, workers=0)
    assert make_loader(dataset.read_train(), dataset, settings, CPU, torch.float32, 0).name != "resident"
    if missing_loaders()["dali"] is None:
        with pytest.raises(UserError, match=r"^loader dali changes colours of RGB images only: use --loader torchv"):
            loader_of(dataset_of((1, 28, 28)), "dali", jitter=0.1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"augment": False, "crop": "resized"}, "crop is read only where augment is true"),
        ({"augment": False, "erasing": 0.5}, "erasing is read only where augment is true"),
        ({"crop_area": (0.2, 1.0)}, "crop_area is read only where crop is resized"),
        ({"crop": "resized", "crop_area": (0.9, 0.2)}, "the smaller number comes first"),
        ({"randaugment_magnitude": 5}, "randaugment_magnitude is read only where auto_augment is randaugment"),
        ({"image_size": 64}, "image_size is read only where the images of the data set are files"),
        ({"centre_crop": 0.875}, "centre_crop is read only where the images of the data set are files"),
        ({"dataset": "folder", "image_size": 27}, "greater than or equal to 28"),
        ({"dataset": "folder", "image_size": 385}, "less than or equal to 384"),
    ],
    ids=str,
)
def test_settings_that_nothing_reads_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataSettings(**values)


def test_what_is_changed_is_said_in_words() -> None:
    assert describe_augmentation(DataSettings()) == ""
    assert describe_augmentation(DataSettings(**EVERYTHING)) == (
        "a part of 8 to 100 % of the area, resized; RandAugment with 2 operations of magnitude 9; brightness, contrast "
        "and saturation changed by up to 40 %; hue by up to 0.1 of a turn; a rectangle of 50 % of the images erased"
    )
    assert describe_augmentation(DataSettings(auto_augment="trivialaugment")) == "TrivialAugment"

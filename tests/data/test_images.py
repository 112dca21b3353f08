"""Image sets in memory and in files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tfkd_fast.data.images import ArrayImages, FileImages, ImageSet
from tfkd_fast.errors import UserError


def pixels(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(params=["memory", "files"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ImageSet, torch.Tensor]:
    """Five images of 32x32 and their pixels."""
    arrays, labels = pixels(5, 32), torch.tensor([0, 1, 0, 1, 1])
    expected = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    if request.param == "memory":
        return ArrayImages(expected, labels), expected
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file, array in zip(files, arrays, strict=True):
        Image.fromarray(array).save(file)
    return FileImages(files, labels, 32), expected


def test_one_image_all_images_and_a_subset(case: tuple[ImageSet, torch.Tensor]) -> None:
    images, expected = case
    assert len(images) == 5
    assert images.image_shape == (3, 32, 32)
    assert torch.equal(images.all_images(), expected)
    assert torch.equal(images.image(3), expected[3])
    subset = images.subset(torch.tensor([4, 0]))
    assert torch.equal(subset.all_images(), expected[[4, 0]])
    assert subset.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 48), (100, 64)])
def test_a_file_is_cut_to_its_centre_square(tmp_path: Path, width: int, height: int) -> None:
    """The central square is red, and green lies outside it, where only the filter of the outermost pixels reaches."""
    array = np.zeros((height, width, 3), np.uint8)
    array[..., 1] = 255
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    array[top : top + side, left : left + side] = (255, 0, 0)
    Image.fromarray(array).save(tmp_path / "image.png")
    image = FileImages([tmp_path / "image.png"], torch.tensor([0]), 32).image(0)
    assert (image[:, 1:-1, 1:-1] == torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)).all()
    assert (image[0] > 200).all()


def test_a_large_file_is_averaged_and_not_sampled(tmp_path: Path) -> None:
    """Stripes one pixel wide at four times the size are grey when antialiased, black or white when sampled."""
    stripes = np.zeros((128, 128), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.bmp")
    image = FileImages([tmp_path / "stripes.bmp"], torch.tensor([0]), 32).image(0).int()
    # the triangle filter weighs even and odd columns alike but at the border, where it is cut off
    assert (image[:, :, 2:-2] - 127.5).abs().max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new("RGB", (32, 32), (255, 255, 255)).convert(mode).save(file)
    image = FileImages([file], torch.tensor([0]), 32).image(0)
    assert image.shape == (3, 32, 32)
    assert (image == 255).all()


def test_the_orientation_that_a_camera_wrote_is_followed(tmp_path: Path) -> None:
    array = np.zeros((32, 32, 3), np.uint8)
    array[:16] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(array).save(tmp_path / "image.png", exif=exif)
    image = FileImages([tmp_path / "image.png"], torch.tensor([0]), 32).image(0)
    assert (image[:, 16:] == 255).all()
    assert (image[:, :16] == 0).all()


@pytest.mark.parametrize(
    ("name", "keep"), [("a.png", 0.6), ("a.jpg", 0.6), ("a.bmp", 0.6), ("a.webp", 0.6), ("a.png", 0)]
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    file = tmp_path / name
    Image.fromarray(pixels(1, 64)[0]).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    images = FileImages([file], torch.tensor([0]), 32)
    with pytest.raises(UserError, match=rf"cannot read the image .*{name} \(.*\): replace it or delete it$") as caught:
        images.all_images()
    assert "\n" not in str(caught.value)


def test_tensors_of_another_form_are_refused() -> None:
    good = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"images must be \(N,C,H,W\) uint8, got \(2, 3, 32, 32\) torch.float32"):
        ArrayImages(good.float(), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(2,\) int64, got \(3,\) torch.int64"):
        ArrayImages(good, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(1,\) int64, got \(1,\) torch.float32"):
        FileImages([Path("a.png")], torch.zeros(1), 32)

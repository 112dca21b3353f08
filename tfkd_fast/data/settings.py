"""The `[data]` table of a recipe."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from tfkd_fast.settings import FilePath, ReadIf, Settings

LoaderName = Literal["auto", "resident", "dali", "torchvision"]
MixName = Literal["none", "mixup", "cutmix"]
CropName = Literal["padded", "resized"]
AutoAugmentName = Literal["none", "randaugment", "trivialaugment"]

SMALLEST_IMAGE, LARGEST_IMAGE = 28, 384
"""Pixels a side that images may have."""


def _listed(choice: Any) -> Any:
    if isinstance(choice, str):
        return [item.strip() for item in choice.split(",")]
    items = [choice] if isinstance(choice, int) else choice
    return [str(item) if isinstance(item, int) else item for item in items] if isinstance(items, list) else items


ClassChoice = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Some classes of a data set, by names, labels and ranges of labels: a list, or a text such as "0-4,cat"."""

ARRAYS = ("cifar10", "cifar100", "fashion-mnist", "mnist", "stl10", "svhn")
"""Names of the data sets of torchvision whose images are arrays of one size."""

FILES = (
    "aircraft", "caltech101", "caltech256", "cars", "country211", "dtd", "eurosat", "flowers102", "food101", "gtsrb",
    "imagenette", "pets", "sun397",
)  # fmt: skip
"""Names of the data sets of torchvision whose images are files of any size."""

DOWNLOADED = ARRAYS + FILES
"""Names of the data sets whose files torchvision downloads."""

FROM_PROGRAM = "python"
"""Name of the data set that a program gives, see `tfkd_fast.train`."""

DEFAULT_ROOT = ".data"
"""Folder of these files where `data.root` names none."""


def holds_files(dataset: str) -> bool:
    """Return whether the images of a data set of this name are files of any size, which are brought to one."""
    return dataset not in ("digits", "npz", *ARRAYS)


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the smaller number comes first")
    return bounds


Share = Annotated[float, Field(gt=0, le=1)]
RANDAUGMENT = ReadIf("auto_augment", lambda name: name == "randaugment", "auto_augment is randaugment")


class DataSettings(Settings):
    """The `[data]` table of a recipe: images, and how they reach the network."""

    dataset: str = "digits"
    """Name of the data set: digits, cifar10, cifar100, svhn, folder, npz, webdataset, imagenet, tiny-imagenet, or
    another of those that the documentation lists."""
    root: FilePath | None = None
    """Folder of the data set, or the file of an npz; unset, the data sets of torchvision lie in .data, and digits needs
    none."""
    classes: ClassChoice | None = None
    """Classes to take of the data set, relabelled from 0: a list of names, labels and ranges of labels, or a text such
    as "0-32,cat"; unset, all of them."""
    per_class: int | None = Field(default=None, ge=1, le=10_000_000)
    """Number of training images of each class, drawn once for all runs; unset, all of them."""
    image_size: Annotated[int, ReadIf("dataset", holds_files, "the images of the data set are files")] = Field(
        default=32, ge=SMALLEST_IMAGE, le=LARGEST_IMAGE
    )
    """Side that images of files are brought to, in pixels."""
    centre_crop: Annotated[float, ReadIf("dataset", holds_files, "the images of the data set are files")] = Field(
        default=1.0, ge=0.1, le=1
    )
    """Share of the shorter side of an image file that is shown as a centred square, in evaluation and before padded
    crops; 0.875 is usual with 224 pixels, as if resized to 256."""
    holdout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training images of every class that is held out to judge by; images that a data set has for that,
    as in val/ beside test/, take its place unless it is 0."""
    fold: Annotated[int, ReadIf("holdout", lambda share: share > 0, "holdout is above 0")] = Field(
        default=0, ge=0, le=10_000
    )
    """Number of the part that is held out, counted from 0: of a share of 0.2 there are five, which together are all
    images."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Number of images in a batch."""
    augment: bool = True
    """Whether training images are cropped at random and mirrored."""
    flip: Annotated[bool | None, ReadIf("augment", bool, "augment is true")] = None
    """Whether training images are mirrored at random; unset, as suits the data set: not digits and svhn."""
    crop: Annotated[CropName, ReadIf("augment", bool, "augment is true")] = "padded"
    """Random crops of training images: padded shows a window of the image with a black border, resized a part of it of
    random area and proportions, brought to the size of the images."""
    crop_area: Annotated[
        tuple[Share, Share],
        ReadIf("crop", lambda crop: crop == "resized", "crop is resized"),
        AfterValidator(_ascending),
    ] = (0.08, 1.0)
    """Smallest and largest area of a resized crop, as shares of the image's; the proportions are 3:4 to 4:3."""
    auto_augment: Annotated[AutoAugmentName, ReadIf("augment", bool, "augment is true")] = "none"
    """Random operations on training images after cropping and mirroring: randaugment or trivialaugment."""
    randaugment_operations: Annotated[int, RANDAUGMENT] = Field(default=2, ge=1, le=14)
    """Number of operations that RandAugment applies to an image."""
    randaugment_magnitude: Annotated[int, RANDAUGMENT] = Field(default=9, ge=0, le=30)
    """Magnitude of the operations of RandAugment."""
    jitter: Annotated[float, ReadIf("augment", bool, "augment is true")] = Field(default=0.0, ge=0, le=1)
    """Largest random change of brightness, contrast and saturation of training images, as a share of each."""
    hue_jitter: Annotated[float, ReadIf("augment", bool, "augment is true")] = Field(default=0.0, ge=0, le=0.5)
    """Largest random change of the hue of training images, in turns of the colour wheel."""
    erasing: Annotated[float, ReadIf("augment", bool, "augment is true")] = Field(default=0.0, ge=0, le=1)
    """Probability that a random rectangle of a training image is painted over with the mean colour."""
    mix: MixName = "none"
    """Mixing of training images in pairs, and of their labels: mixup or cutmix."""
    mix_alpha: Annotated[float, ReadIf("mix", lambda mix: mix != "none", "mix is mixup or cutmix")] = Field(
        default=1.0, ge=0.001, le=1_000
    )
    """Parameter alpha of the distribution Beta(alpha, alpha) that the shares of a mixed pair are drawn from."""
    loader: LoaderName = "auto"
    """Loader of the images; auto takes the fastest by a short measurement."""
    workers: Annotated[int, ReadIf("loader", lambda loader: loader != "resident", "loader is not resident")] = Field(
        default=2, ge=0, le=256
    )
    """Processes of the torchvision loader, or threads of the dali loader; 0 starts no process, or as many threads as
    torch uses."""

    @field_validator("fold")
    @classmethod
    def _refuse_fold_beyond_the_last(cls, fold: int, info: ValidationInfo) -> int:
        share = info.data.get("holdout")
        if not share:  # then nothing reads it
            return fold
        folds = int(1.0 / share + 1e-9)
        if fold >= folds:
            raise ValueError(f"there are {folds} folds of a share of {share:g}, counted from 0")
        return fold

    @model_validator(mode="before")
    @classmethod
    def _place_of_downloads(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("dataset") in DOWNLOADED and values.get("root") is None:
            return {**values, "root": DEFAULT_ROOT}
        return values

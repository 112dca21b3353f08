"""The `[data]` table of a recipe."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tfkd_fast.settings import FilePath, ReadIf, Settings

LoaderName = Literal["auto", "resident", "dali", "torchvision"]
MixName = Literal["none", "mixup", "cutmix"]


def _listed(choice: Any) -> Any:
    if isinstance(choice, str):
        return [item.strip() for item in choice.split(",")]
    items = [choice] if isinstance(choice, int) else choice
    return [str(item) if isinstance(item, int) else item for item in items] if isinstance(items, list) else items


ClassChoice = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Some classes of a data set, by names, labels and ranges of labels: a list, or a text such as "0-4,cat"."""

DOWNLOADED = ("cifar10", "cifar100", "svhn")
"""Names of the data sets whose files torchvision downloads."""

DEFAULT_ROOT = ".data"
"""Folder of these files where `data.root` names none."""


class DataSettings(Settings):
    """The `[data]` table of a recipe: images, and how they reach the network."""

    dataset: str = "digits"
    """Name of the data set: digits, cifar10, cifar100, svhn, folder or npz."""
    root: FilePath | None = None
    """Folder of the data set, or the file of an npz; unset, cifar10, cifar100 and svhn lie in .data, and digits needs
    none."""
    classes: ClassChoice | None = None
    """Classes to take of the data set, relabelled from 0: a list of names, labels and ranges of labels, or a text such
    as "0-32,cat"; unset, all of them."""
    per_class: int | None = Field(default=None, ge=1, le=10_000_000)
    """Number of training images of each class, drawn once for all runs; unset, all of them."""
    image_size: Annotated[
        Literal[32, 64], ReadIf("dataset", lambda dataset: dataset == "folder", "dataset is folder")
    ] = 32
    """Side that the images of a folder are brought to, in pixels."""
    holdout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training images of every class that is held out to judge by."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Number of images in a batch."""
    augment: bool = True
    """Whether training images are cropped at random and mirrored."""
    flip: Annotated[bool | None, ReadIf("augment", bool, "augment is true")] = None
    """Whether training images are mirrored at random; unset, as suits the data set: not digits and svhn."""
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

    @model_validator(mode="before")
    @classmethod
    def _place_of_downloads(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("dataset") in DOWNLOADED and values.get("root") is None:
            return {**values, "root": DEFAULT_ROOT}
        return values

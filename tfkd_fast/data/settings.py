"""The `[data]` table of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tfkd_fast.settings import Settings

LoaderName = Literal["auto", "resident", "dali", "torchvision"]
MixName = Literal["none", "mixup", "cutmix"]


def _listed(choice: Any) -> Any:
    if isinstance(choice, str):
        return [item.strip() for item in choice.split(",")]
    items = [choice] if isinstance(choice, int) else choice
    return [str(item) if isinstance(item, int) else item for item in items] if isinstance(items, list) else items


ClassChoice = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Some classes of a data set, by names, labels and ranges of labels: a list, or a text such as "0-4,cat"."""


class DataSettings(Settings):
    """Which images, and how they reach the network."""

    dataset: str = "digits"  # digits, cifar10, cifar100, svhn, folder or npz
    root: str | None = None  # folder of the data set, for npz the file; cifar and svhn: .data without it
    classes: ClassChoice | None = None  # these only, relabelled: "0-32", or a list of names and labels; None: all
    per_class: int | None = Field(
        default=None, ge=1
    )  # training images of each class, drawn once for all runs; None: all
    image_size: Literal[32, 64] = 32  # pixels a side that the images of `folder` are brought to
    holdout: float = Field(default=0.1, ge=0, lt=1)  # share of every class's training images that is held out
    batch_size: int = Field(default=64, ge=1)
    augment: bool = True  # random crops and mirroring of training images
    flip: bool | None = None  # mirror at random; without it, as suits the data set (digits and svhn: no, others: yes)
    mix: MixName = "none"  # training images in pairs, and their labels with them
    mix_alpha: float = Field(default=1.0, gt=0)  # shares of a pair are drawn from Beta(mix_alpha, mix_alpha)
    loader: LoaderName = "auto"  # auto: the fastest, by a short measurement
    workers: int = Field(default=2, ge=0)  # processes of torchvision, threads of DALI (0: none; as many as torch uses)

"""What says whether two data sets are the same one: a run goes on and is tested again on what it was trained on."""

import unicodedata
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tfkd_fast.errors import printable

SAME_STATISTICS = 1e-3
"""Largest distance of statistics of the same images, a quarter of a grey level: decoders differ a little by version."""


def class_name(text: str) -> str:
    """Return the name of a class as it is shown and compared: printable, in one line, and with composed accents, which
    file systems write in either form."""
    return printable(unicodedata.normalize("NFC", text))


Size = Annotated[int, Field(ge=1, le=4096)]
Deviation = Annotated[float, Field(gt=0)]


class DataIdentity(BaseModel):
    """A data set by its content: where it lies and how its files are named does not matter.

    It is checked when it is built and when it is read from a file; entries that this version does not know are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    classes: tuple[Annotated[str, AfterValidator(class_name)], ...] = Field(min_length=1)
    """Names of the classes, in the order of the labels."""
    image_shape: tuple[Size, Size, Size]
    """Channels, height and width of every image."""
    mean: tuple[float, ...]
    """Mean of each channel that images are normalised with, pixel values 0..1."""
    std: tuple[Deviation, ...]
    """Standard deviation of each channel, like `mean`."""
    training_data: str = ""
    """Fingerprint of all training images, held-out ones included, see `ImageSet.fingerprint`; empty if not known."""
    test_data: str = ""
    """Fingerprint of the test images; empty if not known."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have the same name")
        if not len(self.mean) == len(self.std) == self.image_shape[0]:
            raise ValueError("mean and std must have one number for each channel")
        return self

    def difference(self, other: "DataIdentity") -> str | None:
        """Return how another data set differs from this one, as a clause about the other; None if it does not.

        What is not known, or known by a fingerprint that is made in another way, counts as the same.
        """
        if self.classes != other.classes:
            return _difference_of_classes(self.classes, other.classes)
        if self.image_shape != other.image_shape:
            return f"its images have the shape {other.image_shape}, not {self.image_shape}"
        for part in ("training", "test"):
            own, others = getattr(self, f"{part}_data"), getattr(other, f"{part}_data")
            if _are_comparable(own, others) and own != others:
                return f"its {part} images, their labels or their order are others"
        for name in ("mean", "std"):
            own, others = getattr(self, name), getattr(other, name)
            if any(abs(one - another) > SAME_STATISTICS for one, another in zip(own, others, strict=True)):
                return f"its {name} is {others}, not {own}"
        return None

    def is_comparable(self, other: "DataIdentity") -> bool:
        """Return whether the content of both is known by fingerprints that are made in the same way."""
        return all(
            _are_comparable(getattr(self, part), getattr(other, part)) for part in ("training_data", "test_data")
        )


def _are_comparable(one: str, other: str) -> bool:
    """Whether two fingerprints are known and begin alike, see `ImageSet.hashing`."""
    return bool(one and other) and one.rpartition(":")[0] == other.rpartition(":")[0]


def _difference_of_classes(own: Sequence[str], others: Sequence[str]) -> str:
    if len(own) != len(others):
        return f"it has {len(others)} classes, not {len(own)}"
    label = next(label for label, (name, other) in enumerate(zip(own, others, strict=True)) if name != other)
    order = " (the same classes in another order)" if sorted(own) == sorted(others) else ""
    return f"its class number {label} is {others[label]!r}, not {own[label]!r}{order}"

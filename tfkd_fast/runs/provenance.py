"""Whether a run goes on with what it was begun with, and is tested on what it was trained on."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfkd_fast.data import DataIdentity, Dataset
from tfkd_fast.data.settings import FROM_PROGRAM
from tfkd_fast.errors import Notice, UserError
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.runs.student import StudentHeader

CHOICE = ("dataset", "classes", "per_class", "image_size")
"""The keys of the `[data]` table that say which images are taken, wherever they lie."""


def refuse_other_data(dataset: Dataset, trained: DataIdentity | None, what: str) -> None:
    """Raise UserError if a data set is not the one that something was trained on.

    Where that cannot be told in full, because an earlier version recorded less, a `Notice` says so.

    Args:
        dataset: the data set as it is now.
        trained: the data set that it was trained on; None if nothing is known of it.
        what: what was trained, as in "the run in runs/first".
    """
    if trained is not None and (difference := trained.difference(dataset.identity)):
        here = dataset.name == FROM_PROGRAM
        remedy = "give the argument dataset that one" if here else "restore it, or name its place with --data-root"
        raise UserError(
            f"the data set {dataset.name} is not the one that {what} was trained on, {difference}: {remedy}"
        )
    if trained is None or not trained.is_comparable(dataset.identity):
        notice = f"{what} is of an earlier version, which did not record all that its data set can be known by"
        warnings.warn(Notice(f"{notice}: see for yourself that {dataset.name} is still the same"), stacklevel=3)


def refuse_other_recipe(recipe: Recipe, header: StudentHeader, path: Path) -> None:
    """Raise UserError if the recipe of a run is no longer the one that its student was trained by.

    Args:
        recipe: the recipe that is in the run folder now.
        header: the header of the student.
        path: the file of the student, for the error message.
    """
    pairs = [("model.name", header.name, recipe.model.name), ("model.width", header.width, recipe.model.width)]
    if "holdout" in header.model_fields_set:  # not in files of early versions
        pairs.append(("data.holdout", header.holdout, recipe.data.holdout))
    if "fold" in header.model_fields_set:
        pairs.append(("data.fold", header.fold, recipe.data.fold))
    for key, trained, now in pairs:
        if trained != now:
            raise UserError(
                f"{path} was trained with {key} = {trained}, and its recipe.toml says {now}: restore that file"
            )


def takes_the_same_images(recipe: Recipe, other: Recipe) -> bool:
    """Return whether two recipes ask for the same images, wherever they lie."""
    return all(getattr(recipe.data, key) == getattr(other.data, key) for key in CHOICE)


def paths_in(value: Any) -> Iterator[Path]:
    """The absolute paths among the values of nested tables and lists: the files and folders that a recipe names."""
    if isinstance(value, str) and Path(value).is_absolute():
        yield Path(value)
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from paths_in(item)

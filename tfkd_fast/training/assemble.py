"""What stands before training: the images of a recipe in two parts, its networks, and what its method may know."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tfkd_fast.data import Dataset, Loader, LoaderChoice, choose_loader, make_loader, split_holdout
from tfkd_fast.device import Compute
from tfkd_fast.methods import Context
from tfkd_fast.models import build_model, feature_shapes
from tfkd_fast.randomness import Purpose, random_words
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.teachers.teacher import Teacher


@dataclass(frozen=True)
class TrainingImages:
    """The training part of a data set, split into images to fit and held-out images to judge by."""

    fit: Loader
    holdout: Loader | None
    num_fit: int
    num_holdout: int
    choice: LoaderChoice | None
    """What `auto` came to; None where the recipe names a loader."""


def load_images(recipe: Recipe, dataset: Dataset, compute: Compute) -> TrainingImages:
    """Both parts get the loader that suits the images to fit."""
    images, place = dataset.read_train(), (compute.device, compute.dtype, recipe.seed)
    fit, holdout = split_holdout(images, recipe.data.holdout) if recipe.data.holdout else (images, None)
    choice: LoaderChoice | None = None
    if recipe.data.loader == "auto":
        choice = choose_loader(fit, dataset, recipe.data, *place)
        recipe = recipe.with_loader(choice.chosen)
    return TrainingImages(
        make_loader(fit, dataset, recipe.data, *place),
        make_loader(holdout, dataset, recipe.data, *place) if holdout else None,
        len(fit),
        len(holdout) if holdout else 0,
        choice,
    )


def build_student(recipe: Recipe, dataset: Dataset, compute: Compute, seed: int) -> nn.Module:
    """The untrained network of a recipe, on the device."""
    return compute.place(build_model(recipe.model, len(dataset.classes), dataset.image_shape[0], seed))


def seed_of(seed: int, slot: int) -> int:
    """For the initial weights of a candidate that does not start from those of the first."""
    return int(random_words(torch.tensor(slot), Purpose.WEIGHTS, seed=seed)[0]) if slot else seed


def method_context(
    recipe: Recipe, dataset: Dataset, num_images: int, compute: Compute, teachers: Sequence[Teacher] = ()
) -> Context:
    """`num_images`: to fit."""
    return Context(
        num_classes=len(dataset.classes),
        num_images=num_images,
        epochs=recipe.epochs,
        seed=recipe.seed,
        device=compute.device,
        learning_rate_ratio=lambda epoch: recipe.schedule.ratio(epoch / recipe.epochs),
        superclasses=dataset.superclasses,
        classes=tuple(dataset.classes),
        model=recipe.model.name,
        shapes=feature_shapes(build_student(recipe, dataset, compute, recipe.seed), dataset.image_shape),
        teachers=tuple(teacher.facts for teacher in teachers),
        batch_size=recipe.data.batch_size,
    )

"""Put together what a recipe is trained with: images, networks, method, teachers, judge, and what trains an epoch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from torch import nn

from tfkd_fast.data import Dataset, Loader, LoaderChoice, choose_loader, make_loader, make_mixing, split_holdout
from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.judging.judge import Judge
from tfkd_fast.methods import Context, Method, find_method
from tfkd_fast.methods.base import Needs
from tfkd_fast.models import (
    FeatureNetwork,
    FeatureShapes,
    build_model,
    feature_shapes,
    refuse_batch_of_one,
    refuse_unstackable,
    try_out,
)
from tfkd_fast.randomness import weights_seed
from tfkd_fast.runs.convolutions import ConvolutionRecord
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.runs.schedule import phases
from tfkd_fast.runs.student import refuse_unsavable
from tfkd_fast.strict_json import to_json
from tfkd_fast.teachers.cache import gather_teachers
from tfkd_fast.teachers.teacher import Teacher, Teachers, load_teachers, refuse_chance
from tfkd_fast.training.adapters import Adapters
from tfkd_fast.training.convolutions import Measured, choose_convolutions
from tfkd_fast.training.epoch import EpochTrainer
from tfkd_fast.training.groups import choose_side_by_side
from tfkd_fast.training.population import Population
from tfkd_fast.training.ranks import ALONE, Ranks
from tfkd_fast.training.shared_batches import SharedBatches

MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True)
class TrainingImages:
    """The training part of a data set, split into images to fit and held-out images to judge by."""

    fit: Loader
    """Loads the images that students are fitted to."""
    holdout: Loader | None
    """Loads the held-out images; None where there are none."""
    num_fit: int
    """Number of images to fit."""
    num_holdout: int
    """Number of held-out images."""
    choice: LoaderChoice | None
    """The choice that `auto` made; None where the recipe names a loader."""


@dataclass(frozen=True, eq=False)
class Parts(Generic[MethodT]):
    """What a recipe is trained with."""

    recipe: Recipe
    """The recipe, with the loader that `auto` chose."""
    dataset: Dataset
    """The data set that the recipe names."""
    compute: Compute
    """Where and in which precision is trained, and whether networks are compiled."""
    ranks: Ranks
    """The processes of the run; `SharedBatches` where they train the same candidates together."""
    images: TrainingImages
    """The training images in two parts, each with its loader."""
    loader: Loader
    """Loads the images to fit as training shows them: their augmentation may repeat after some epochs."""
    method: MethodT
    """The method, which may know the facts of its `Context` only."""
    population: Population
    """The candidates, untrained."""
    adapters: Adapters
    """The method's layers that train along with the student."""
    teachers: Teachers
    """The teachers that the recipe names."""
    judge: Judge
    """Judges candidates by the held-out images."""
    epochs: EpochTrainer
    """Trains the candidates, an epoch at a time."""
    convolutions: Measured
    """The algorithms of the convolutions, for `conv_algorithms.using`."""
    draws: bool
    """Whether layers of the student draw random numbers in training, as dropout does."""


def assemble(
    recipe: Recipe,
    dataset: Dataset,
    compute: Compute,
    build_method: Callable[[Context], MethodT],
    on_batch: Callable[[int], None] | None = None,
    *,
    loaded: Sequence[Teacher] | None = None,
    convolutions: ConvolutionRecord | None = None,
    ranks: Ranks = ALONE,
) -> Parts[MethodT]:
    """Put together what a recipe is trained with. Of the data set only the training part is read.

    Args:
        recipe: the recipe.
        dataset: the data set that it names.
        compute: where and in which precision is trained.
        build_method: builds the method from what it may know of the run.
        on_batch: called after each step with its number of images, summed over the candidates that take it.
        loaded: teachers that are in memory; None to load those that the recipe names.
        convolutions: by which algorithms convolutions are computed, for a run that goes on; None chooses them.
        ranks: the processes that train the run; what is measured is what rank 0 measured.

    Raises:
        UserError: the recipe mixes images and the method cannot, network, teachers or loaders do not suit it, or it
            cannot be trained by several processes.
    """
    images = load_images(recipe, dataset, compute, ranks)
    loader = images.fit.with_augmentation_period(recipe.repeated_views)
    recipe = recipe.with_loader(loader.name)
    if loaded is None:
        loaded = load_teachers(recipe, dataset, compute)
        refuse_chance(loaded, images.holdout or images.fit, compute)
    build = partial(build_student, recipe, dataset, compute)
    own = partial(build, recipe.seed)
    student = own()
    draws = try_out(student, recipe.model.name, len(dataset.classes), dataset.image_shape, compute.autocast)
    refuse_unsavable(student, partial(build, weights_seed(recipe.seed, 1)), recipe.model, dataset)
    method = build_method(method_context(recipe, dataset, images.num_fit, compute, student, loaded))
    _refuse_mixing(recipe, method.needs)
    if ranks.size > 1:
        ranks, compute = _divide(recipe, method, loader, ranks, compute, draws=draws)
    shared = isinstance(ranks, SharedBatches)
    parts = ranks.size if shared and not recipe.sync_batch_norm else 1
    _refuse_part_of_one(student, recipe, dataset, loader, compute, parts)
    several = method.needs.candidates > 1
    on_threads = several and compute.device.type == "cpu" and not method.needs.joint_steps
    side_by_side = choose_side_by_side(recipe.population, draws_on_threads=draws and on_threads)
    if several and shared:
        side_by_side = "sequential"  # processes have to exchange in one order
    if several and side_by_side == "stacked":
        refuse_unstackable(own, recipe.model.name, dataset.image_shape, compute.autocast)
    population, adapters = _untrained_population(method, build, recipe), Adapters(method.adapters, recipe.optimizer)
    teachers = gather_teachers(loaded, method.needs, recipe, dataset, loader, compute)
    epochs = EpochTrainer(
        population,
        method,
        loader,
        compute,
        recipe.optimizer,
        side_by_side,
        on_batch,
        adapters=adapters,
        teachers=teachers,
        holdout=images.holdout,
        mixing=make_mixing(recipe.data, recipe.seed),
        ranks=ranks,
    )
    if recipe.optimizer.accumulate > (most := len(loader)):
        raise UserError(f"an epoch has {most} batches: set optimizer.accumulate to {most} or less")
    # threads share a generator, and processes that decode images are better not forked from them
    at_once = side_by_side == "streams" and compute.device.type == "cpu" and loader.is_resident and not draws
    judge = Judge(images.fit, images.holdout, compute, own, at_once=at_once)
    if convolutions is not None:
        measured = Measured(convolutions.available(), 0.0)
    else:
        measured = ranks.decide(
            lambda: choose_convolutions(recipe, compute, method.needs, loader, own, teachers, dataset.image_shape)
        )
    trained = method, population, adapters, teachers, judge, epochs, measured, draws
    return Parts(recipe, dataset, compute, ranks, images, loader, *trained)


def load_images(recipe: Recipe, dataset: Dataset, compute: Compute, ranks: Ranks = ALONE) -> TrainingImages:
    """Split the training images; both parts get the loader that suits the images to fit."""
    images, place = dataset.read_train(), (compute.device, compute.dtype, recipe.seed)
    share, fold = recipe.data.holdout, recipe.data.fold
    fit, holdout = split_holdout(images, share, fold) if share else (images, None)
    choice: LoaderChoice | None = None
    if recipe.data.loader == "auto":
        choice = ranks.decide(lambda: choose_loader(fit, dataset, recipe.data, *place))
        recipe = recipe.with_loader(choice.chosen)
    return TrainingImages(
        make_loader(fit, dataset, recipe.data, *place),
        make_loader(holdout, dataset, recipe.data, *place) if holdout else None,
        len(fit),
        len(holdout) if holdout else 0,
        choice,
    )


def _refuse_part_of_one(
    student: nn.Module, recipe: Recipe, dataset: Dataset, loader: Loader, compute: Compute, parts: int
) -> None:
    """Raise UserError if one of so many parts of a batch, each with a batch norm of its own, has one image and the
    student cannot be trained on it. Of whole batches that is the last one; the remedy is then the nearest batch size,
    rather a smaller one, that leaves no such batch."""
    batches, size = loader.batch_sizes(), loader.batch_size
    if 1 not in {len(range(number, batch, parts)) for batch in set(batches) for number in range(parts)}:
        return
    if parts > 1:
        remedy = "set sync_batch_norm to true"
    else:
        images = sum(batches)
        others = (*range(size - 1, 1, -1), *range(size + 1, images + 1))
        remedy = f"set data.batch_size to {next(other for other in others if images % other != 1)}, for example"
    refuse_batch_of_one(student, recipe.model.name, dataset.image_shape, compute.autocast, remedy)


def build_student(recipe: Recipe, dataset: Dataset, compute: Compute, seed: int) -> nn.Module:
    """The untrained network of a recipe, on the device."""
    return compute.place(build_model(recipe.model, len(dataset.classes), dataset.image_shape[0], seed))


def method_context(
    recipe: Recipe,
    dataset: Dataset,
    num_images: int,
    compute: Compute,
    student: nn.Module,
    teachers: Sequence[Teacher] = (),
) -> Context:
    """What the method of a recipe may know of the run; `num_images` is the number of images to fit."""
    read = find_method(recipe.method).needs(recipe.options).features
    known = read or isinstance(student, FeatureNetwork)
    return Context(
        num_classes=len(dataset.classes),
        num_images=num_images,
        epochs=recipe.epochs,
        seed=recipe.seed,
        device=compute.device,
        learning_rate_ratio=recipe.learning_rate_ratio,
        superclasses=dataset.superclasses,
        classes=tuple(dataset.classes),
        model=recipe.model.name,
        shapes=feature_shapes(student, dataset.image_shape) if known else FeatureShapes((), 0),
        teachers=tuple(teacher.facts for teacher in teachers),
        batch_size=recipe.data.batch_size,
        phase=phases(recipe.learning_rate_ratio, recipe.epochs),
        build_student=partial(build_student, recipe, dataset, compute),
    )


def _refuse_mixing(recipe: Recipe, needs: Needs) -> None:
    """Raise UserError if the recipe mixes images and the method cannot, with the memory that it could do without."""
    if recipe.data.mix != "none" and not needs.mixing:
        remedy = "set data.mix to none"
        if needs.without_memory:
            table, key, value = needs.without_memory
            remedy += f", or {table}.{key}={to_json(value)}"
        raise UserError(f"method {recipe.method} learns from predictions of single images: {remedy}")


def _divide(
    recipe: Recipe, method: Method, loader: Loader, ranks: Ranks, compute: Compute, *, draws: bool
) -> tuple[Ranks, Compute]:
    """Divide the work among several processes: by candidates where there is one for each, and else by parts of every
    batch. Returns the processes, and what they compute in.

    Raises:
        UserError: so many processes cannot train the recipe, or not to the weights of one.
    """
    needs, remedy = method.needs, "train it in one process"
    if recipe.population == "stacked" and needs.candidates > 1:
        raise UserError("stacked candidates are one network in one process: use --population sequential or streams")
    if draws:
        raise UserError(
            f"layers of {recipe.model.name} draw random numbers, as dropout does, and would draw others than in one "
            f"process: {remedy}"
        )
    if needs.candidates >= ranks.size and not needs.joint_steps:
        return ranks, compute
    if not method.per_sample:
        raise UserError(
            f"{ranks.size} processes would share each batch, and the loss of method {recipe.method} may need a whole "
            f"one: {remedy}"
        )
    if recipe.data.mix != "none":
        raise UserError(
            f"images are mixed with others of their batch, of which each of {ranks.size} processes has a part: set "
            f"data.mix to none, or {remedy}"
        )
    if (images := loader.batch_sizes()[0]) < ranks.size:
        raise UserError(
            f"a batch has {images} image{'s' if images > 1 else ''}, and each of {ranks.size} processes needs one: set "
            f"data.batch_size to {ranks.size} or more"
        )
    if recipe.sync_batch_norm and compute.compile:
        if recipe.compile == "on":
            raise UserError(
                "a network whose batch norm several processes synchronise is not compiled: use --compile off, or set "
                "sync_batch_norm to false"
            )
        compute = replace(compute, compile=False)
    return SharedBatches(ranks, synchronise=recipe.sync_batch_norm), compute


def _untrained_population(method: Method, build: Callable[[int], nn.Module], recipe: Recipe) -> Population:
    """The candidates that the method may train at most, from the same weights or each from its own."""
    needs, seed = method.needs, recipe.seed
    slow = needs.slow_decay is not None
    population = Population(partial(build, seed), needs.candidates, recipe.optimizer, slow=slow)
    if needs.own_weights:
        for slot in range(1, needs.candidates):
            population.start_from(slot, build(weights_seed(seed, slot)))
    return population

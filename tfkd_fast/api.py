"""Whole runs: train, replay, go on after a kill, and test. The test set is read here only, and after training; of a run
with `test = false` by `evaluate` alone."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.data import Dataset, ImageSet, make_loader, open_dataset, sealed_test_images, split_holdout
from tfkd_fast.data.settings import FROM_PROGRAM
from tfkd_fast.device import Compute, determinism, resolve_compute
from tfkd_fast.errors import Notice, UserError, refuse_other_kind
from tfkd_fast.events import StudentExamined
from tfkd_fast.judging.examination import examine
from tfkd_fast.judging.metrics import judge_predictions, predict
from tfkd_fast.machine import is_lack_of_memory
from tfkd_fast.models import NetworkOrFactory, announce_import, give
from tfkd_fast.ops import conv_algorithms
from tfkd_fast.runs.convolutions import ConvolutionRecord
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener, read_log
from tfkd_fast.runs.precedence import Table, merge
from tfkd_fast.runs.provenance import paths_in, refuse_other_data, refuse_other_recipe, takes_the_same_images
from tfkd_fast.runs.recipe import Recipe, load_recipe, make_recipe, read_recipe
from tfkd_fast.runs.replay import replay_recipe
from tfkd_fast.runs.stop import Stop
from tfkd_fast.runs.student import load_student, read_student_header
from tfkd_fast.runs.trackers import TRACKERS
from tfkd_fast.training.divergence import NonFiniteFigure
from tfkd_fast.training.ranks import ALONE, Ranks
from tfkd_fast.training.trainer import Trainer, in_percent


def train(
    recipe: Recipe | Table | Path | str,
    out: Path | str,
    *,
    dataset: Any = None,
    model: NetworkOrFactory | None = None,
    teachers: Sequence[nn.Module] = (),
    overrides: Table | None = None,
    overwrite: bool = False,
    download: bool = False,
    listeners: Sequence[Listener] = (),
    stop: Stop | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train a student into a run folder, then test it once.

    Args:
        recipe: a recipe; the name of a shipped recipe, or the path of a recipe file; or nested values by table, as
            `{"method": "kd", "data": {"batch_size": 32}}`, over the shipped recipe of their data set if there is one.
        out: the run folder, which is made.
        dataset: a `torch.utils.data.Dataset` of pairs (image, label), 20 % of whose images are the test set, or two of
            them, (train, test), or three, (train, held out, test), in the place of the data set that the recipe names;
            see the documentation of images of one's own. `replay`, `resume` and `evaluate` have to be given it, too.
        model: a module, or a function or class that makes one, in the place of the network that the recipe names; see
            the documentation of networks of one's own. Where it cannot be imported, `replay`, `resume`, `evaluate` and
            `load_run` have to be given it, too.
        teachers: modules in evaluation mode, from standardised images to logits, which teach beside those that the
            recipe names. `resume` has to be given them, too.
        overrides: nested values by table that go before those of the recipe.
        overwrite: whether a run that is in `out` may be replaced. Files there that are no part of a run stay.
        download: whether a data set that is missing may be fetched.
        listeners: objects of `tfkd_fast.runs.log.Listener`, which are called with every event and every batch while the
            run goes on.
        stop: ends the run on a signal once its last finished epoch is saved, see `stopped_by_signals`.
        ranks: the processes that train the candidates of the run together, see `join_ranks`. Each of them calls this
            function with the same arguments.

    Returns:
        The summary, as in `summary.json`. Top-1 and top-5 are percent. Of several processes, rank 0 alone tests the
        student: the summaries of the others have no figures of it.

    Raises:
        UserError: for bad input, before `out` is touched, such as a folder that holds something else than a run or that
            another process trains into; for a loss that is no longer finite; and where another process is lost.
    """
    overrides = _check_overrides(overrides)
    if model is not None:
        overrides = merge(overrides, {"model": {"name": give(model)}})
    recipe = _make_recipe(recipe, overrides, from_program=dataset is not None)
    recipe = _with_teachers(recipe, _give_teachers(teachers))
    folder = RunFolder(Path(out))
    with _begin(
        recipe, folder, listeners, overwrite=overwrite, download=download, pairs=dataset, ranks=ranks
    ) as trainer:
        return _run(trainer, stop or Stop())


def replay(
    run: Path | str,
    out: Path | str,
    *,
    dataset: Any = None,
    model: NetworkOrFactory | None = None,
    overrides: Table | None = None,
    overwrite: bool = False,
    listeners: Sequence[Listener] = (),
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Train again on all training images, none held out, by the targets that a finished run was taught with.

    Args:
        run: the folder of the finished run.
        dataset: the data set that the run was given, see `train`.
        model: the module or the factory of the run, where this process cannot import it.
        out, overwrite, listeners, stop: as for `train`.
        overrides: nested values by table that go before those of the run.

    Returns:
        The summary, as in `summary.json`. Top-1 and top-5 are percent.

    Raises:
        UserError: as for `train`; for a run that cannot be replayed; and for a data set that is no longer the one that
            the run was trained on, where `overrides` ask for no other.
    """
    recipe = replay_recipe(Path(run), _check_overrides(overrides), model)
    recipe = _make_recipe(recipe, {}, from_program=dataset is not None)
    _announce_imports(recipe, run)
    source, folder = RunFolder(Path(run)), RunFolder(Path(out))
    with _begin(recipe, folder, listeners, overwrite=overwrite, pairs=dataset, replayed=source) as trainer:
        return _run(trainer, stop or Stop())


def resume(
    out: Path | str,
    listeners: Sequence[Listener] = (),
    *,
    data_root: Path | str | None = None,
    dataset: Any = None,
    model: NetworkOrFactory | None = None,
    teachers: Sequence[nn.Module] = (),
    download: bool = False,
    stop: Stop | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Go on with an unfinished run from its newest checkpoint, to the bits that it would have had without the break.

    Args:
        out: the run folder.
        listeners: see `train`.
        data_root: the place of the data set, where it is no longer that of the recipe.
        dataset: the data set that the run was given, see `train`.
        model: the module or the factory of the run, where this process cannot import it.
        teachers: the modules that `train` was given as teachers.
        download: whether a data set that is missing may be fetched.
        stop: as for `train`.
        ranks: as for `train`; any number of them, however many there were before.

    Returns:
        The summary, as for `train`.

    Raises:
        UserError: if the folder holds no run, or a finished one, or one that another process trains; and if the data
            set is not the one that the run began with.
    """
    folder = RunFolder(Path(out))
    with _lock_unfinished(folder) if ranks.first else nullcontext():
        ranks.gather(())  # the others read what the first one has put in order
        recipe = read_recipe(folder, model).with_data_root(data_root)
        _give_teachers(teachers)
        _announce_imports(recipe, out)
        if folder.summary.exists():
            raise UserError(f"the run in {out} is finished: see {folder.summary}")
        state = folder.newest_state()
        if state is not None:
            with folder.reading_newest():
                recipe = recipe.with_loader(state["loader"])  # `auto` is not measured again
        with ops.using_backend(recipe.ops), determinism(recipe.deterministic):
            opened = _open(recipe, ranks, download=download, pairs=dataset)
            with sealed_test_images():
                if ranks.first and state is None and not folder.data.exists():  # stopped before it was recorded
                    folder.write_data(opened.identity)
                refuse_other_data(opened, folder.read_data(), f"the run in {out}")
                convolutions = ranks.decide(folder.read_convolutions)
                trainer = _trainer(recipe, opened, folder, listeners, convolutions, ranks)
                if ranks.first and convolutions is None:
                    folder.write_convolutions(trainer.convolutions)
            return _run(trainer, stop or Stop())


@contextmanager
def _lock_unfinished(folder: RunFolder) -> Iterator[None]:
    """Context manager for a block that goes on with the run in a folder, which no other process writes into meanwhile.

    Raises:
        UserError: the folder holds no run, or another process trains it.
    """
    if not folder.next_recipe.exists():
        folder.require_run()
    if folder.generations.exists():
        raise UserError(f"{folder.path} holds the search for a policy: tfkd-fast learn goes on with it")
    with folder.lock():
        folder.finish_replacing()
        yield


def _open(recipe: Recipe, ranks: Ranks, *, download: bool, pairs: Any) -> Dataset:
    """The data set of a recipe, which rank 0 alone fetches."""
    if download and ranks.size > 1:
        ranks.decide(lambda: open_dataset(recipe.data, download=True, pairs=pairs).name)
        download = False
    opened = open_dataset(recipe.data, download=download, pairs=pairs)
    if recipe.test:
        opened.refuse_unusable_test()
    return opened


def evaluate(
    out: Path | str,
    *,
    device: str = "auto",
    precision: str = "auto",
    data_root: Path | str | None = None,
    dataset: Any = None,
    model: NetworkOrFactory | None = None,
    download: bool = False,
) -> dict[str, Any]:
    """Test the student of a finished run again, that of the last epoch, that of the best epoch on held-out
    images, and the moving average of the weights where there is one.

    Args:
        out: the run folder.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        precision: "fp32", "bf16", or "auto" for what suits the device.
        data_root: the place of the data set, where it is no longer that of the recipe.
        dataset: the data set that the run was given, see `train`.
        model: the module or the factory of the run, where this process cannot import it.
        download: whether a data set that is missing may be fetched.

    Returns:
        The test figures by name, as in `summary.json`. Top-1 and top-5 are percent.

    Raises:
        UserError: if the folder holds no finished run, or a student whose outputs are not finite, or the data set is
            not the one that it was trained on.
    """
    folder, compute = RunFolder(Path(out)), resolve_compute(device, precision)
    recipe, opened = _reopen(folder, data_root=data_root, dataset=dataset, model=model, download=download)
    convolutions = (folder.read_convolutions() or ConvolutionRecord()).available()
    return _judge(recipe, opened, compute, folder, convolutions, test=True)[0]


@contextmanager
def _begin(
    recipe: Recipe,
    folder: RunFolder,
    listeners: Sequence[Listener],
    *,
    overwrite: bool,
    download: bool = False,
    pairs: Any = None,
    replayed: RunFolder | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Trainer]:
    """Context manager for a block that trains in a new run folder; `pairs` is the data set that a program gives, and
    `replayed` the run whose targets the recipe has."""
    if ranks.first:
        folder.refuse_if_taken(overwrite=overwrite)
        folder.refuse_if_read([*paths_in(recipe.table()), *([replayed.path] if replayed else [])])
    with ops.using_backend(recipe.ops), determinism(recipe.deterministic):
        dataset = _open(recipe, ranks, download=download, pairs=pairs)
        with sealed_test_images():
            if replayed is not None and takes_the_same_images(recipe, read_recipe(replayed)):
                refuse_other_data(dataset, read_student_header(replayed.student), f"the run in {replayed.path}")
            trainer = _trainer(recipe, dataset, folder, listeners, ranks=ranks)
            identity = dataset.identity
        if not ranks.first:
            yield trainer
            return
        with folder.lock():
            folder.refuse_if_taken(overwrite=overwrite)  # another process may have been quicker
            folder.create(recipe.to_toml())
            folder.write_data(identity)
            folder.write_convolutions(trainer.convolutions)
            yield trainer


def mistakes(
    out: Path | str,
    *,
    data_root: Path | str | None = None,
    dataset: Any = None,
    model: NetworkOrFactory | None = None,
) -> dict[int, Image]:
    """The test images of a finished run that its student is surest of and wrong about.

    Args:
        out: the run folder.
        data_root: the place of the data set, where it is no longer that of the recipe.
        dataset: the data set that the run was given, see `train`.
        model: the module or the factory of the run, where this process cannot import it.

    Returns:
        The images by their number in the test set, RGB or grey; none for a run of an older version, whose log does not
        name them.

    Raises:
        UserError: if the folder holds no finished run, or the data set is not the one that it was trained on.
    """
    folder = RunFolder(Path(out))
    _, opened = _reopen(folder, data_root=data_root, dataset=dataset, model=model)
    tests = [line.event for line in read_log(folder.metrics) if isinstance(line.event, StudentExamined)]
    images = opened.read_test()
    return {mistake.image: images.whole(mistake.image) for test in tests for mistake in test.mistakes}


def _reopen(
    folder: RunFolder,
    *,
    data_root: Path | str | None = None,
    dataset: Any = None,
    model: NetworkOrFactory | None = None,
    download: bool = False,
) -> tuple[Recipe, Dataset]:
    """The recipe of a finished run and its data set; see `evaluate`."""
    recipe = read_recipe(folder, model).with_data_root(data_root)
    students = [folder.student, *(path for path in (folder.best, folder.ema) if path.exists())]
    headers = {path: read_student_header(path) for path in students}
    if summary := folder.read_summary():
        recipe = recipe.with_loader(summary["loader"])  # pixels of image files may depend on it
    opened = open_dataset(recipe.data, download=download, pairs=dataset)
    for path, header in headers.items():
        refuse_other_recipe(recipe, header, path)
        refuse_other_data(opened, header, f"the run in {folder.path}")
    return recipe, opened


def _check_overrides(overrides: Table | None) -> Table:
    """The overrides of an argument."""
    overrides = {} if overrides is None else overrides
    refuse_other_kind(overrides, Mapping, "overrides are nested values by table, as {'epochs': 1}")
    return overrides


def _make_recipe(recipe: Recipe | Table | Path | str, overrides: Table, *, from_program: bool) -> Recipe:
    """Make the recipe of an argument, with `overrides` over its values, and for a data set `from_program`."""
    kinds = (Recipe, Mapping, Path, str)
    refuse_other_kind(recipe, kinds, "a recipe is its name, the path of its file, or nested values by table")
    if isinstance(recipe, Path):  # never the name of a shipped one
        recipe = str(recipe.absolute())
    if from_program:
        table = recipe.table() if isinstance(recipe, Recipe) else recipe
        return _make_recipe(
            table, merge(overrides, {"data": {"dataset": FROM_PROGRAM}}), from_program=False
        ).with_data_of_program()
    if isinstance(recipe, Recipe):
        return make_recipe(recipe.table(), overrides) if overrides else recipe
    if isinstance(recipe, str):
        return load_recipe(recipe, overrides)
    return load_recipe(None, merge(recipe, overrides))


def _give_teachers(teachers: Sequence[nn.Module]) -> list[Table]:
    """Make teachers known to this process; returns their tables in a recipe."""
    refuse_other_kind(teachers, (Sequence, nn.ModuleList), "teachers are a list of modules, as [module]")
    kinds = [type(teacher).__name__ for teacher in teachers]
    names = [f"python/{kind}-{number}" for number, kind in enumerate(kinds, start=1)]
    return [{"name": give(teacher, name)} for teacher, name in zip(teachers, names, strict=True)]


def _with_teachers(recipe: Recipe, modules: Sequence[Table]) -> Recipe:
    """The recipe with teachers beside those that it names; one that it names already does not come twice."""
    named = [network.model_dump(mode="json", exclude_none=True) for network in recipe.teachers.networks]
    others = [network for network in modules if network["name"] not in [each["name"] for each in named]]
    return make_recipe(recipe.table(), {"teachers": {"networks": [*named, *others]}}) if others else recipe


def _announce_imports(recipe: Recipe, run: Path | str) -> None:
    """Say whose code the recipe of a stored run imports."""
    for settings in (recipe.model, *recipe.teachers.networks):
        announce_import(settings.name, run)


def _trainer(
    recipe: Recipe,
    dataset: Dataset,
    folder: RunFolder,
    listeners: Sequence[Listener],
    convolutions: ConvolutionRecord | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """The trainer of a run, or UserError for what cannot be trained."""
    for listener in listeners:
        words = "listeners are objects of a class that derives from tfkd_fast.runs.log.Listener"
        refuse_other_kind(listener, Listener, words)
    trackers = recipe.trackers if ranks.first else ()
    listeners = [*listeners, *(TRACKERS[name](folder, recipe.table()) for name in trackers)]
    compute = resolve_compute(recipe.device, recipe.precision, recipe.compile)
    ops.backend_of("soft_target_loss", compute.device)  # refuses a forced backend that cannot serve this device
    ranks.claim(compute.device)
    return Trainer(recipe, dataset, compute, folder, listeners, convolutions, ranks)


def _run(trainer: Trainer, stop: Stop) -> dict[str, Any]:
    """Train, then judge the student and write the summary; of several processes, the first one does the latter two."""
    folder, recipe, stop.resumable = trainer.folder, trainer.recipe, True
    with _tell_of_replaced(trainer), closing(trainer):
        with _explain_lack_of_memory(folder), _explain_lost_worker(folder), _explain_batch_of_one():
            with sealed_test_images():
                summary = trainer.run(stop)
            if not trainer.ranks.first:
                return summary
            with nullcontext() if recipe.test else sealed_test_images():
                try:
                    figures, examination = _judge(
                        recipe, trainer.dataset, trainer.compute, folder, trainer.convolutions, test=recipe.test
                    )
                except NonFiniteFigure as error:
                    trainer.record_divergence(str(error))
                    raise
            summary |= figures
        trainer.finish(summary, examination)
    folder.write_json(folder.summary, summary)  # from now on the run is finished
    return summary


@contextmanager
def _tell_of_replaced(trainer: Trainer) -> Iterator[None]:
    """Context manager that says, where a run ended before it had a checkpoint, where the run is that it replaced."""
    try:
        yield
    finally:
        folder = trainer.folder
        if trainer.ranks.first and folder.replaced.recipe.exists():
            notice = (
                f"the run that was in {folder.path} is kept in {folder.replaced.path} until the new one has its first"
            )
            warnings.warn(Notice(f"{notice} checkpoint"), stacklevel=2)


@contextmanager
def _explain_lack_of_memory(folder: RunFolder) -> Iterator[None]:
    """Context manager that says in one sentence that there is not enough memory to train."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        raise UserError(
            f"there is not enough memory: go on with {folder.resume_option} where there is more, or train anew with a "
            "lower data.batch_size or model.width, or fewer candidates"
        ) from None


@contextmanager
def _explain_lost_worker(folder: RunFolder) -> Iterator[None]:
    """Context manager that says in one sentence that a worker of a loader was ended from outside.

    torch notices that by a signal, and raises its error wherever the run is by then.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(
            f"a process that loads images was ended from outside, as systems do that run out of memory: go on with "
            f"{folder.resume_option}"
        ) from None


@contextmanager
def _explain_batch_of_one() -> Iterator[None]:
    """Context manager that says in one sentence what batch norm lacks in a layer of a method, such as an adapter after
    maps of one pixel; the network of the student was tried before."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise UserError(
            "a layer of the method with batch norm was given a batch of one image, whose maps have one pixel and no "
            "variance: train with another data.batch_size"
        ) from None


def _judge(
    recipe: Recipe,
    dataset: Dataset,
    compute: Compute,
    folder: RunFolder,
    convolutions: ConvolutionRecord,
    *,
    test: bool,
) -> tuple[dict[str, Any], StudentExamined | None]:
    """Held-out figures of the student, top-1 and top-5 in percent, and with `test` those of the test and the test by
    class."""

    def answer(weights: Path, images: ImageSet) -> tuple[Tensor, Tensor]:
        model = load_student(weights, recipe.model, len(dataset.classes), dataset.image_shape)
        loader = make_loader(images, dataset, recipe.data, compute.device, compute.dtype, recipe.seed)
        with conv_algorithms.using(convolutions.choices):
            return predict(compute.place(model), loader.in_order(), compute)

    def measure(weights: Path, images: ImageSet) -> dict[str, float]:
        return in_percent(judge_predictions([answer(weights, images)])[0].metrics)

    figures: dict[str, Any] = {"holdout_top1": None}
    answers = None
    if recipe.data.holdout:
        _, holdout = split_holdout(dataset.read_train(), recipe.data.holdout, recipe.data.fold)
        judged = measure(folder.student, holdout)
        figures |= {f"holdout_{name}": judged[name] for name in ("top1", "calibrated_nll", "temperature")}
        if folder.ema.exists():
            judged = measure(folder.ema, holdout)
            figures |= {"ema_holdout_top1": judged["top1"], "ema_holdout_temperature": judged["temperature"]}
        if folder.best.exists():
            figures["best_holdout_temperature"] = measure(folder.best, holdout)["temperature"]
    if test:
        test_images = dataset.read_test()
        answers = answer(folder.student, test_images)
        metrics = in_percent(judge_predictions([answers])[0].metrics)
        figures |= {"test_images": len(test_images)} | {f"test_{name}": value for name, value in metrics.items()}
        if folder.ema.exists():
            figures["ema_test_top1"] = measure(folder.ema, test_images)["top1"]
        if folder.best.exists():
            figures["best_test_top1"] = measure(folder.best, test_images)["top1"]
    for name, value in figures.items():
        if value is not None and not math.isfinite(value):
            raise NonFiniteFigure(
                f"the figure {name} of the student in {folder.path} is {value}, because its outputs are not finite: "
                "train it again, with a lower optimizer.learning_rate"
            )
    return figures, examine(*answers) if answers else None

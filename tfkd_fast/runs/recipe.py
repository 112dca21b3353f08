"""A recipe: every value of one experiment, from shipped defaults, a TOML file and the command line."""

import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, get_args

import tomli_w
from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationError
from pydantic.fields import FieldInfo

from tfkd_fast.data import DataSettings, LoaderName
from tfkd_fast.data.settings import FROM_PROGRAM
from tfkd_fast.errors import UserError, nearest, refuse_unknown, shorten
from tfkd_fast.files import expand_home, is_there, parse_toml, read_text
from tfkd_fast.methods import METHODS, MethodEntry, find_method
from tfkd_fast.methods.base import TeacherTable
from tfkd_fast.models import ModelSettings, NetworkOrFactory, give, refuse_unknown_network
from tfkd_fast.runs.earlier import drop_unread_keys, name_trackers
from tfkd_fast.runs.faults import explain
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from tfkd_fast.runs.precedence import Place, Table, resolve
from tfkd_fast.runs.schedule import ScheduleSettings, StepSchedule
from tfkd_fast.runs.trackers import TrackerName
from tfkd_fast.served import DeviceName, PrecisionName, check_device, check_precision
from tfkd_fast.settings import UNREAD_TOO, ReadAcross, Settings, named_once

DEFAULT_METHOD = "tfkd-mrs"

STUDIES = "tfkd_fast.recipes.studies"
"""The package of the shipped studies."""


class Recipe(Settings):
    """The values that every method shares, and the tables of the method in `options`."""

    across: ClassVar = (ReadAcross("teachers", "views", lambda recipe: recipe.data.augment, "data.augment is true"),)

    method: str = DEFAULT_METHOD
    """Name of the training method; tfkd-fast methods lists them."""
    epochs: int = Field(default=240, ge=1, le=1_000_000)
    """Number of passes over the training images."""
    patience: int | None = Field(default=None, ge=1, le=1_000_000)
    """Number of epochs without a higher held-out top-1 after which the run ends. Unset: all epochs are trained."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything that is random in the run."""
    device: Annotated[DeviceName, BeforeValidator(check_device)] = "auto"
    """Device that the run computes on; auto takes CUDA where there is a device."""
    precision: Annotated[PrecisionName, BeforeValidator(check_precision)] = "auto"
    """Number format of the forward and backward passes; auto takes bf16 where the hardware multiplies it natively."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch.compile makes the kernels of the training step; auto compiles on CUDA."""
    population: Literal["auto", "sequential", "streams", "stacked"] = "auto"
    """How candidates train side by side: one after the other, on CUDA streams, or stacked into one network."""
    sync_batch_norm: bool = True
    """Whether batch norm has the statistics of the whole batch where several processes share it, or each process those
    of its part."""
    deterministic: bool = False
    """Whether a run on CUDA gives the same bits again, at the price of speed; on the CPU it does so anyway."""
    convolutions: Literal["auto", "measured", "torch"] = "auto"
    """How the algorithm of a convolution is chosen in bf16 on the CPU: by its measured speed, or always torch's; auto
    measures for runs of 1000 steps and more."""
    ops: Literal["auto", "reference", "cpp", "cuda", "triton"] = "auto"
    """Implementation of the package's operators; auto takes the fastest that serves the device."""
    test: bool = True
    """Whether the student is tested after the last epoch; a run that others are chosen by leaves the test images
    sealed."""
    checkpoint_every: int = Field(default=1, ge=1, le=1_000_000)
    """Epochs from one checkpoint to the next; the last epoch always has one."""
    checkpoint_seconds: float | None = Field(default=None, ge=0.0, le=1_000_000.0)
    """Seconds from one checkpoint to the next at least, beside `checkpoint_every`. Unset: 20 on CUDA, where an epoch
    may take less time than writing a checkpoint, and 0 on the CPU."""
    trackers: Annotated[tuple[TrackerName, ...], AfterValidator(named_once)] = ()
    """Trackers that are given the curves of the run while it goes on: tensorboard, wandb, mlflow."""
    data: DataSettings = DataSettings()
    """The images, and how they reach the network."""
    model: ModelSettings = ModelSettings()
    """The network that is trained."""
    optimizer: OptimizerSettings = DEFAULT_OPTIMIZER
    """The rule by which the weights are updated."""
    schedule: ScheduleSettings = StepSchedule()
    """The learning rate over the course of the run."""
    options: SerializeAsAny[Settings]
    """The tables of the method, which a recipe file has beside the others."""

    def table(self) -> Table:
        """Return nested plain values in the layout of a recipe file."""
        values = self.model_dump(mode="json", exclude_none=True)
        options = values.pop("options")
        return values | options

    def with_loader(self, name: str) -> Self:
        """Return the same recipe with another loader of images."""
        if name not in get_args(LoaderName):
            raise UserError(f"unknown loader {shorten(name)}: {nearest(str(name), get_args(LoaderName))}")
        return self.model_copy(update={"data": self.data.model_copy(update={"loader": name})})

    def with_data_root(self, root: Path | str | None) -> Self:
        """Return the same recipe with its data set in another place; None leaves it where it is."""
        if root is None:
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"root": str(expand_home(root))})})

    def with_data_of_program(self) -> Self:
        """Return the same recipe for a data set that a program gives."""
        return self.model_copy(update={"data": self.data.model_copy(update={"dataset": FROM_PROGRAM, "root": None})})

    def to_toml(self) -> str:
        """Return the text of a recipe file."""
        return tomli_w.dumps(self.table())

    @property
    def teachers(self) -> TeacherTable:
        """The `[teachers]` table of the method; no teachers for a method that has none."""
        table = getattr(self.options, "teachers", None)
        return table if isinstance(table, TeacherTable) else TeacherTable()

    @property
    def repeated_views(self) -> int:
        """Epochs after which the augmentation of training images repeats; 0 is never."""
        return self.teachers.views if self.data.augment else 0

    def learning_rate(self, epoch: float, span: tuple[int, int] | None = None) -> float:
        """Return the learning rate at a position within the run.

        Args:
            epoch: the position, in epochs from the start of the run.
            span: first epoch and end of the schedule, where it does not take the whole run.
        """
        return self.optimizer.learning_rate * self.learning_rate_ratio(epoch, span)

    def learning_rate_ratio(self, epoch: float, span: tuple[int, int] | None = None) -> float:
        """Return the learning rate at a position within the run over that of the optimiser; see `learning_rate`."""
        first, end = span or (0, self.epochs)
        peak = self.optimizer.learning_rate
        return self.schedule.ratio((epoch - first) / (end - first), epochs=end - first, learning_rate=peak)

    def learning_rates(self, epoch: int, steps: int, span: tuple[int, int] | None = None) -> list[float]:
        """Return the learning rate of each step of a 0-based epoch; see `learning_rate`."""
        return [self.learning_rate(epoch + step / steps, span) for step in range(steps)]


def core_fields() -> dict[str, FieldInfo]:
    """The keys of a recipe that belong to no method."""
    return {name: field for name, field in Recipe.model_fields.items() if name != "options"}


def shipped_recipes() -> dict[str, str]:
    """Name -> TOML text of the recipes that come with the package."""
    return packaged_texts("tfkd_fast.recipes")


def packaged_texts(package: str) -> dict[str, str]:
    """Name -> text of the TOML files of a package."""
    return {
        item.name.removesuffix(".toml"): item.read_text("utf-8")
        for item in files(package).iterdir()
        if item.name.endswith(".toml")
    }


def load_recipe(name: str | None = None, overrides: Table | None = None) -> Recipe:
    """The recipe of a file or of a shipped name, under the values of the command line.

    Without a name, the shipped recipe named after the data set serves where there is one (`digits` for no data set).
    """
    overrides = overrides or {}
    if name is None:
        data = overrides.get("data")
        dataset = data.get("dataset", "digits") if isinstance(data, dict) else "digits"
        return make_recipe(parse(shipped_recipes().get(str(dataset), ""), str(dataset)), overrides)
    recipes = shipped_recipes()
    _refuse_study(name, name in packaged_texts(STUDIES).keys() - recipes.keys() and not is_there(Path(name)))
    table = parse(find_text(name, recipes, "recipe"), name)
    _refuse_study(name, {"rows", "baseline"} <= table.keys())
    if is_search(table):
        raise UserError(f"{name} is a recipe with a search: run it with tfkd-fast search, then train the best recipe")
    return make_recipe(table, overrides)


def is_search(table: Table) -> bool:
    """Whether the table `[search]` has the ranges of a search; `distpro-search` has settings of that name."""
    search = table.get("search")
    return isinstance(search, dict) and "ranges" in search


def find_text(name: str, known: Mapping[str, str], kind: str) -> str:
    """The text of the recipe or study that is shipped under a name, or else of the file of this path."""
    if name in known:
        return known[name]
    if not is_there(Path(name)):
        raise UserError(f"no {kind} file {name!r}, and no shipped {kind} of that name: {nearest(name, known)}")
    return read_text(Path(name), kind, f"name another file, or a shipped {kind}")


def _refuse_study(name: str, is_study: bool) -> None:
    """Raise UserError for the name of a study in the place of a recipe's."""
    if is_study:
        raise UserError(f"{name} is a study, not a recipe: train it with tfkd-fast study {shlex.quote(name)}")


def parse(text: str, name: str) -> Table:
    """The tables of a TOML text."""
    return parse_toml(text, name, "recipe", "mend that line")


def read_recipe(folder: RunFolder, network: NetworkOrFactory | None = None) -> Recipe:
    """The resolved recipe of a run, of this version or an earlier one.

    Args:
        folder: the run folder.
        network: the network or the factory of the run, where this process cannot import it.

    Raises:
        UserError: it cannot be read, or names a network, a method or a criterion that this process does not know.
    """
    table = parse(folder.read_recipe_text(), str(folder.recipe))
    if "method" not in table:
        raise UserError(f"the recipe {folder.recipe} names no method, as that of a run does: restore it")
    model = table.get("model")
    refuse_unknown("method", table["method"], METHODS, "tfkd_fast.methods.METHODS", folder.path)
    if isinstance(model, dict) and isinstance(model.get("name"), str):
        if network is not None:
            give(network, model["name"])
        refuse_unknown_network(model["name"], folder.path)
    try:
        method = find_method(table["method"])
        table = drop_unread_keys(table, core_fields() | method.settings.model_fields)
        for name, key in _unread(resolve_levels(table)):  # an earlier version let them stand
            del table[name][key]
        return make_recipe(table)
    except UserError as error:
        raise UserError(f"the recipe of the run in {folder.path} cannot be used here: {error}") from None


def make_recipe(table: Table, overrides: Table | None = None) -> Recipe:
    """Validate a recipe's tables under overrides; the first fault is reported in one sentence."""
    overrides = overrides or {}
    values = resolve_levels({"method": DEFAULT_METHOD} | table, overrides)
    method = find_method(values["method"])
    tables_of_method = method.settings.model_fields
    if "options" in values:  # no table of a file, but where a recipe keeps those of its method
        raise UserError(f"unknown recipe key 'options': {nearest('options', core_fields() | tables_of_method)}")
    _refuse_other_method(method, values)
    if "teachers" in overrides and "teachers" not in tables_of_method:
        raise UserError(f"method {values['method']!r} learns from no teacher: leave --teacher out, or choose another")
    try:
        recipe = _validate(values)
    except ValidationError as error:
        raise UserError(explain(error, core_fields() | tables_of_method)) from None
    if recipe.patience is not None and not recipe.data.holdout:
        raise UserError("recipe key 'patience' counts epochs by held-out images: set data.holdout above 0")
    if fault := recipe.schedule.fault(recipe.epochs, recipe.optimizer.learning_rate):
        raise UserError(f"recipe key 'schedule.arguments': {fault}")
    if method.needs(recipe.options).look_ahead and (key := recipe.optimizer.beyond_plain_sgd()):
        raise UserError(
            f"method {recipe.method!r} tries out steps of plain stochastic gradient descent: leave optimizer.{key} "
            "unset"
        )
    return recipe


def _validate(values: Table, context: dict[str, bool] | None = None) -> Recipe:
    """The recipe with these values, those of its method in a table of their own; `context` is None or `UNREAD_TOO`.

    Raises:
        ValidationError: they are none of a recipe.
    """
    method = find_method(values["method"])
    core = {key: value for key, value in values.items() if key not in method.settings.model_fields}
    options = {key: value for key, value in values.items() if key in method.settings.model_fields}
    checked = method.settings.model_validate(options, context=context)
    return Recipe.model_validate({**core, "options": checked}, context=context)


def resolve_levels(*levels: Table) -> Table:
    """Merge tables, lowest first, over the presets of their method, see `precedence`."""
    return resolve([name_trackers(level) for level in levels], core_fields(), DEFAULT_METHOD, _unread)


def _unread(values: Table) -> set[Place]:
    """The keys of a recipe that its other tables leave unread; none of values that are no recipe."""
    try:
        recipe = _validate(values, UNREAD_TOO)
    except ValidationError:
        return set()
    return {(across.table, across.key) for part in (recipe, recipe.options) for across, _ in part.unread_across()}


def _refuse_other_method(method: MethodEntry, values: Table) -> None:
    """Refuse a value under which the method would be another one than its name says."""
    if method.named_for is None:
        return
    table, key = method.named_for
    options = values[table]
    if isinstance(options, dict) and options.get(key) != method.preset[table][key]:
        raise UserError(
            f"method {values['method']!r} is {method.summary}, so {table}.{key} cannot be {options.get(key)!r}: "
            "choose another method"
        )

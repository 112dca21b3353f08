"""A recipe: every value of one experiment, from shipped defaults, a TOML file and the command line.

Precedence, lowest first: the defaults below, what the method's name presets, the recipe file, the command line. The
tables of a method (target, controller, selection, ...) belong to the method that the file names: choosing another one
on the command line starts from that method's own presets.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args

import tomli_w
from pydantic import Field, SerializeAsAny, ValidationError
from pydantic.fields import FieldInfo

from tfkd_fast.data import DataSettings
from tfkd_fast.errors import UserError, nearest
from tfkd_fast.methods import MethodEntry, find_method
from tfkd_fast.methods.taught.student import TaughtSettings, TeacherSettings
from tfkd_fast.models import ModelSettings
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.schedule import OptimizerSettings, ScheduleSettings, StepSchedule
from tfkd_fast.settings import Settings

Table = dict[str, Any]


class Recipe(Settings):
    """The values that every method shares, and the tables of the method in `options`."""

    method: str = "tfkd-mrs"
    epochs: int = Field(default=240, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile of the training step; auto: on CUDA
    population: Literal["auto", "sequential", "streams", "stacked"] = "auto"  # how candidates train side by side
    deterministic: bool = False  # the same bits again on CUDA, at a price; on the CPU they are the same anyway
    ops: Literal["auto", "reference", "cpp", "cuda", "triton"] = "auto"
    checkpoint_every: int = Field(default=1, ge=1)  # epochs
    tensorboard: bool = False
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = StepSchedule()
    options: SerializeAsAny[Settings]

    def table(self) -> Table:
        """As nested plain values, in the layout of a recipe file."""
        values = self.model_dump(mode="json", exclude_none=True)
        options = values.pop("options")
        return values | options

    def with_loader(self, name: str) -> Self:
        """The same with another loader."""
        return self.model_copy(update={"data": self.data.model_copy(update={"loader": name})})

    def to_toml(self) -> str:
        return tomli_w.dumps(self.table())

    @property
    def teachers(self) -> TeacherSettings:
        """Those of the method; none for a method that has none."""
        return self.options.teachers if isinstance(self.options, TaughtSettings) else TeacherSettings()

    @property
    def repeated_views(self) -> int:
        """Epochs after which the augmentation of training images repeats; 0 is never."""
        return self.teachers.views if self.data.augment else 0

    def learning_rate(self, epoch: float, span: tuple[int, int] | None = None) -> float:
        """At a position within the run, in epochs; with a schedule that does not run from the first epoch to the last
        but from `span[0]` to `span[1]`."""
        first, end = span or (0, self.epochs)
        return self.optimizer.learning_rate * self.schedule.ratio((epoch - first) / (end - first))

    def learning_rates(self, epoch: int, steps: int, span: tuple[int, int] | None = None) -> list[float]:
        """Of each step of a 0-based epoch."""
        return [self.learning_rate(epoch + step / steps, span) for step in range(steps)]


def shipped_recipes() -> dict[str, str]:
    """Name -> TOML text of the recipes that come with the package."""
    return shipped("tfkd_fast.recipes")


def shipped(package: str) -> dict[str, str]:
    """Name -> text of the TOML files of a package."""
    return {
        item.name.removesuffix(".toml"): item.read_text()
        for item in files(package).iterdir()
        if item.name.endswith(".toml")
    }


def load_recipe(name: str | None = None, overrides: Table | None = None) -> Recipe:
    """The recipe of a file or of a shipped name, under the values of the command line.

    Without a name, the shipped recipe named after the data set serves where there is one (`digits` for no data set).
    """
    overrides = overrides or {}
    if name is None:
        dataset = overrides.get("data", {}).get("dataset", "digits")
        return make_recipe(parse(shipped_recipes().get(dataset, ""), dataset), overrides)
    if name in shipped_recipes():
        return make_recipe(parse(shipped_recipes()[name], name), overrides)
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"no recipe file {name!r}, and no shipped recipe of that name: {nearest(name, shipped_recipes())}"
        )
    return make_recipe(parse(path.read_text(), name), overrides)


def parse(text: str, name: str) -> Table:
    """The tables of a TOML text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {name} is not valid TOML: {error}") from None


def read_recipe(folder: RunFolder) -> Recipe:
    """The resolved recipe of a run."""
    folder.require_run()
    return make_recipe(parse(folder.recipe.read_text(), str(folder.recipe)))


def make_recipe(table: Table, overrides: Table | None = None) -> Recipe:
    """Validate a recipe's tables; the first fault is reported in one sentence."""
    overrides = overrides or {}
    own_method = table.get("method", Recipe.model_fields["method"].default)
    method = find_method(overrides.get("method", own_method))
    tables_of_method = method.settings.model_fields
    if overrides.get("method", own_method) != own_method:
        own_tables = find_method(own_method).settings.model_fields
        table = {key: value for key, value in table.items() if key not in own_tables}
    merged = merge(merge({"schedule": {"name": "step"}, **method.preset}, table), overrides)
    _keep_its_name(method, merged)
    if "teachers" in overrides and "teachers" not in tables_of_method:
        raise UserError(f"method {merged['method']!r} learns from no teacher: leave --teacher out, or choose another")
    core = {key: value for key, value in merged.items() if key not in tables_of_method}
    options = {key: value for key, value in merged.items() if key in tables_of_method}
    try:
        return Recipe(options=method.settings.model_validate(options), **core)
    except ValidationError as error:
        shared = {name: field for name, field in Recipe.model_fields.items() if name != "options"}
        raise UserError(explain(error, shared | tables_of_method)) from None


def _keep_its_name(method: MethodEntry, merged: Table) -> None:
    """Refuse a value that would make of a method something else than its name says."""
    if method.named_for is None:
        return
    table, key = method.named_for
    options = merged[table]
    if isinstance(options, dict) and options.get(key) != method.preset[table][key]:
        raise UserError(
            f"method {merged['method']!r} is {method.summary}, so {table}.{key} cannot be {options.get(key)!r}: "
            "choose another method"
        )


def merge(low: Table, high: Table) -> Table:
    """Nested tables with the values of `high` over those of `low`."""
    result = dict(low)
    for key, value in high.items():
        both_tables = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both_tables else value
    return result


def set_override(overrides: Table, assignment: str) -> None:
    """Put one `table.key=value` of the command line into nested tables; the value is TOML, or else a string."""
    path, equals, text = assignment.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise UserError(f"--set wants table.key=value, got {assignment!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for key in keys[:-1]:
        overrides = overrides.setdefault(key, {})
        if not isinstance(overrides, dict):
            raise UserError(f"--set {path}: {key} is a value, not a table")
    overrides[keys[-1]] = value


def explain(error: ValidationError, fields: dict[str, FieldInfo]) -> str:
    """One sentence about the first fault of a recipe."""
    fault = error.errors(include_url=False)[0]
    path = [str(part) for part in fault["loc"]]
    names = list(fields)
    if path[0] in fields:
        annotation = fields[path[0]].annotation
        variants = tuple(v for v in get_args(annotation) if v is not NoneType) or (annotation,)  # one may be left out
        if len(variants) > 1 and len(path) > 1:  # a table of several forms: its form stands second in the path
            form = path.pop(1)
            variants = tuple(v for v in variants if form in get_args(v.model_fields["name"].annotation))
        names = list(getattr(variants[0], "model_fields", names))
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return f"unknown recipe key {key!r}: {nearest(path[-1], names)}"
    return f"recipe key {key!r}: {fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r})"

"""A study file: rows of a table, each a recipe over shared tables, to be trained under the same seeds.

seeds = [0, 1, 2]
baseline = "ce"        # the row that the others are compared with

[base]                 # recipe tables that all rows share
epochs = 40
data.dataset = "cifar100"

[rows.ce]              # a recipe over the base
method = "ce"

[rows.tfkd]
title = "TFKD"         # its name in the table
method = "tfkd"

[rows.replayed]        # instead of a recipe: the replay of another row's run under the same seed
replay = "tfkd"

[rows.teacher]
seed_offset = 100      # this row's runs have the study's seeds and so much more
compared = false       # it is there for others to learn from
shared = true          # trained once, under the first seed, for the runs under every seed
method = "ce"
model.name = "vgg13"

[rows.kd]
method = "kd"
teachers.runs = ["row:teacher"]  # anywhere in a recipe: that row's run under the same seed of the study, or its one

[contrasts]            # what is worth how much: rows less other rows, pair by pair
"the controller" = [["tfkd", "ce"]]
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from tfkd_fast.errors import UserError, nearest, shorten
from tfkd_fast.files import is_there, parse_toml
from tfkd_fast.methods import find_method
from tfkd_fast.runs.precedence import Table, merge
from tfkd_fast.runs.recipe import (
    STUDIES,
    Recipe,
    find_text,
    make_recipe,
    packaged_texts,
    resolve_levels,
    shipped_recipes,
)
from tfkd_fast.settings import Settings
from tfkd_fast.study.results import Pairs

Seed = Annotated[int, Field(ge=0, lt=2**63)]
LONGEST_NAME = 200
"""Bytes of the name of a row; names of files have 255, and a seed and an ending follow."""


def _name_of_files(name: str) -> str:
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"folders are named after a row, so its name has at most {LONGEST_NAME} bytes")
    return name


RowName = Annotated[str, Field(pattern=r"^\w[\w.-]*$"), AfterValidator(_name_of_files)]


class RowTable(BaseModel):
    """A `[rows.NAME]` table; all other keys belong to the recipe."""

    model_config = ConfigDict(frozen=True, extra="allow")

    title: str | None = None
    replay: str | None = None
    seed_offset: int = Field(default=0, ge=0, lt=2**32)
    compared: bool = True
    shared: bool = False

    @property
    def recipe(self) -> Table:
        """The keys of the row that belong to its recipe."""
        return dict(self.model_extra or {})


class StudyFile(Settings):
    """The file as it is written."""

    seeds: tuple[Seed, ...]
    baseline: str
    base: dict[str, Any] = Field(default_factory=dict)
    rows: dict[RowName, RowTable]
    contrasts: dict[str, Pairs] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _require_different_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(seeds)

    @field_validator("rows")
    @classmethod
    def _require_row(cls, rows: dict[str, RowTable]) -> dict[str, RowTable]:
        if not rows:
            raise ValueError("a study needs one row at least")
        return rows

    @field_validator("contrasts")
    @classmethod
    def _require_pair(cls, contrasts: dict[str, Pairs]) -> dict[str, Pairs]:
        if not all(contrasts.values()):
            raise ValueError("a contrast needs one pair of rows at least")
        return contrasts


REFERENCE = "row:"
"""Prefix of the name of a row in a value of another row's recipe."""


@dataclass(frozen=True)
class Row:
    """One row of the table: a recipe without its seed, or the name of the row that it replays."""

    name: str
    title: str
    table: Table = field(hash=False)
    replay: str | None
    seed_offset: int = 0
    compared: bool = True
    """Whether the row is compared with the baseline."""
    shared: bool = False
    """Whether the row is trained once, under the first seed of the study, for others under every seed."""

    @property
    def sources(self) -> list[str]:
        """Rows whose runs this one needs before it can begin."""
        return [self.replay] if self.replay else list(dict.fromkeys(_references(self.table)))

    def recipe(self, seed: int, folder_of: Callable[[str], str] = REFERENCE.__add__) -> Recipe:
        """The recipe of a row that is no replay, under a seed of the study.

        Args:
            seed: one of the study's seeds.
            folder_of: gives the run folder of a row that this one refers to, by its name.
        """
        return make_recipe(_replace_references(self.table, folder_of) | {"seed": seed + self.seed_offset})


@dataclass(frozen=True)
class Study:
    """Rows in the file's order, all of them valid."""

    name: str
    seeds: tuple[int, ...]
    baseline: Row
    rows: dict[str, Row]
    contrasts: dict[str, Pairs] = field(default_factory=dict)

    def cost(self, row: Row) -> tuple[int, int]:
        """The epochs of a run of a row, and the most that it trains summed over all candidates: one for a replay."""
        recipe = (self.rows[row.replay] if row.replay else row).recipe(self.seeds[0])
        if row.replay:
            return recipe.epochs, recipe.epochs
        return recipe.epochs, find_method(recipe.method).student_epochs(recipe.options, recipe.epochs)

    def seed_of(self, row: Row, seed: int) -> int:
        """The seed of the study under which a row is trained for the runs under one of them."""
        return self.seeds[0] if row.shared else seed

    def choose(self, names: Sequence[str]) -> list[Row]:
        """The rows of these names, in the study's order; all rows for no names."""
        for name in names:
            if name not in self.rows:
                raise UserError(f"study {self.name} has no row {name!r}: {nearest(name, self.rows)}")
        return [row for row in self.rows.values() if row.name in names or not names]


def distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The seeds, if there is one at least and none of them comes twice; ValueError otherwise."""
    if not seeds:
        raise ValueError("a study needs one seed at least")
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise ValueError(f"seed {seed} is named twice")
    return seeds


def shipped_studies() -> dict[str, str]:
    """Name -> TOML text of the studies that come with the package."""
    return packaged_texts(STUDIES)


def load_study(name: str, overrides: Table | None = None) -> Study:
    """The study of a shipped name or of a file; `overrides` are recipe values over those of every row."""
    studies = shipped_studies()
    if name in shipped_recipes().keys() - studies.keys() and not is_there(Path(name)):
        raise _is_a_recipe(name)
    return make_study(name if name in studies else Path(name).stem, find_text(name, studies, "study"), overrides)


def _is_a_recipe(name: str) -> UserError:
    return UserError(f"{name} is a recipe, not a study: train it with tfkd-fast train")


def make_study(name: str, text: str, overrides: Table | None = None) -> Study:
    """Validate a study's text; the first fault is reported in one sentence."""
    try:
        table = parse_toml(text, name, "study", "mend that line")
        if "rows" not in table and "method" in table:
            raise _is_a_recipe(name)
        file = StudyFile.model_validate(table)
    except ValidationError as error:
        raise UserError(f"study {name}: {_explain(error)}") from None
    if file.baseline not in file.rows:
        hint = nearest(file.baseline, file.rows)
        raise UserError(f"study {name}: the baseline {file.baseline!r} is no row: {hint}")
    if not file.rows[file.baseline].compared:
        raise UserError(
            f"study {name}: the baseline {file.baseline!r} is what all are compared with: set compared = true"
        )
    for contrast, pairs in file.contrasts.items():
        for row_name in (row_name for pair in pairs for row_name in pair if row_name not in file.rows):
            hint = nearest(row_name, file.rows)
            raise UserError(f"study {name}, contrast {contrast!r}: {row_name!r} is no row: {hint}")
    overrides = overrides or {}
    for key in ("method", "seed"):
        if key in overrides:
            raise UserError(f"{key} cannot be set for all rows of a study: its file does")
    rows = {}
    for row_name, row in file.rows.items():
        try:
            rows[row_name] = _make_row(row_name, row, file, overrides)
        except UserError as error:
            raise UserError(f"study {name}, row {row_name}: {error}") from None
    try:
        _refuse_circles(rows)
        _refuse_many_for_one(rows)
    except UserError as error:
        raise UserError(f"study {name}, {error}") from None
    return Study(name, file.seeds, rows[file.baseline], rows, file.contrasts)


def _make_row(name: str, row: RowTable, file: StudyFile, overrides: Table) -> Row:
    if row.replay is None:
        table = merge(file.base, row.recipe)
        if "seed" in table:
            raise UserError("its seed is one of the study's seeds, so its recipe must not set one")
        table = resolve_levels(file.base, row.recipe, overrides)
        if row.shared and row.compared:
            raise UserError("one run for all seeds cannot be compared by seed: set compared = false, or shared = false")
        result = Row(name, row.title or name, table, None, row.seed_offset, row.compared, row.shared)
        result.recipe(file.seeds[0])  # refuses a recipe that is not valid
        return result
    if own := [*row.recipe, *(key for key in ("seed_offset", "shared") if getattr(row, key))]:
        raise UserError(f"a replay has the recipe of the row that it replays, so it must not set {min(own)!r}")
    if row.replay not in file.rows:
        raise UserError(f"it replays {row.replay!r}, which is no row: {nearest(row.replay, file.rows)}")
    if file.rows[row.replay].replay is not None:
        raise UserError(f"it replays {row.replay!r}, which is a replay itself")
    return Row(name, row.title or name, {}, row.replay, compared=row.compared)


def _refuse_circles(rows: dict[str, Row]) -> None:
    """Raise UserError for a row that refers to none, to itself, or to one that waits for it."""
    for row in rows.values():
        waiting, before = [row.name], list(row.sources)
        while before:
            name = before.pop()
            if name not in rows:
                raise UserError(f"row {row.name}: it refers to {name!r}, which is no row: {nearest(name, rows)}")
            if name == row.name:
                raise UserError(f"row {row.name}: it waits for itself, by way of {waiting[-1]!r}")
            if name not in waiting:
                waiting.append(name)
                before += rows[name].sources


def _refuse_many_for_one(rows: dict[str, Row]) -> None:
    """Raise UserError for a row with one run that refers to a row with one for each seed."""
    for row in rows.values():
        for name in row.sources if row.shared else ():
            if not rows[name].shared:
                raise UserError(f"row {row.name}: its one run cannot be of every run of {name!r}: share that row, too")


def _references(value: Any) -> Iterator[str]:
    """Names of the rows that a recipe's value refers to."""
    if isinstance(value, str) and value.startswith(REFERENCE):
        yield value.removeprefix(REFERENCE)
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _references(part)


def _replace_references(value: Any, folder_of: Callable[[str], str]) -> Any:
    """The value with every reference to a row replaced by its folder."""
    if isinstance(value, str) and value.startswith(REFERENCE):
        return folder_of(value.removeprefix(REFERENCE))
    if isinstance(value, dict):
        return {key: _replace_references(part, folder_of) for key, part in value.items()}
    return [_replace_references(part, folder_of) for part in value] if isinstance(value, list) else value


def _explain(error: ValidationError) -> str:
    """One sentence about a study file, outside of its recipes: a misspelt key, or else the first fault."""
    fault = min(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    match fault["type"]:
        case "extra_forbidden":
            return f"unknown key {key!r}: {nearest(key, StudyFile.model_fields)}"
        case "missing":
            return f"it has no {key!r}"
        case "string_pattern_mismatch":
            return f"row {path[1]!r} needs a name of letters, digits, '.', '-' and '_': folders are named after it"
    return f"key {key!r}: {fault['msg'].removeprefix('Value error, ')} (got {shorten(fault['input'])})"

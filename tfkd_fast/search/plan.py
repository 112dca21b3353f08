"""A search: keys of a recipe, the range of each, and what decides between trials.

[search]
judge = "nll"          # held-out calibrated NLL of the student after the last epoch, or "top1"
random_trials = 10     # trials before the values are suggested by what came of others
prune = true           # end a trial that is worse than the median of the others after as many epochs

[search.ranges]        # dotted keys of the recipe
optimizer.learning_rate = { log = [0.01, 1.0] }
data.mix_alpha = { float = [0.1, 1.0] }
selection.candidates = { int = [2, 8] }
model.name = { choices = ["vgg8", "resnet20"] }

The table stands in a recipe file beside the recipe's own tables, or in a file of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from tfkd_fast.errors import UserError, nearest, shorten
from tfkd_fast.files import parse_toml, read_text
from tfkd_fast.runs.precedence import Table, merge
from tfkd_fast.runs.recipe import Recipe, find_text, is_search, make_recipe, shipped_recipes
from tfkd_fast.settings import Settings

Judge = Literal["nll", "top1"]
Kind = Literal["float", "log", "int", "choices"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FIXED = {
    "seed": "all trials have the same one, so that they differ by what is searched alone",
    "test": "no trial of a search is tested",
} | dict.fromkeys(
    ("data.dataset", "data.root", "data.classes", "data.per_class", "data.holdout", "data.fold"),
    "all trials are judged by the same held-out images",
)
"""Keys that no search may change, and why."""

GOLDEN = 0.381966
"""Where between the ends of a range of numbers a third one is tried out, which is no whole number."""


class SearchTable(Settings):
    """The `[search]` table."""

    judge: Judge = "nll"
    """What decides between trials: nll is the held-out calibrated NLL, top1 the held-out accuracy of the student of the
    last epoch."""
    random_trials: int = Field(default=10, ge=1, le=1_000_000)
    """Number of trials with random values, before those of others are learned from."""
    prune: bool = True
    """Whether a trial ends early that is worse than the median of the finished ones after as many epochs."""
    prune_after: int | None = Field(default=None, ge=1, le=1_000_000)
    """Number of epochs that every trial trains; unset, a quarter of those of the recipe."""
    ranges: dict[str, Any]
    """The range of each key that is searched."""


@dataclass(frozen=True)
class Range:
    """The values that a key may have."""

    key: str
    """The key of the recipe, with the table that it is in."""
    kind: Kind
    values: tuple[Any, ...]
    """The least and the greatest number, or all choices."""

    def __contains__(self, value: Any) -> bool:
        if self.kind == "choices":
            return value in self.values
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole or (isinstance(value, float) and self.kind != "int")
        return fits and bool(self.values[0] <= value <= self.values[-1])

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values by which it is seen whether the recipe takes all of them."""
        if self.kind in ("int", "choices"):
            return self.values
        low, high = self.values
        between = low + GOLDEN * (high - low) if self.kind == "float" else low * (high / low) ** GOLDEN
        return (low, high, between)


@dataclass(frozen=True)
class Search:
    """A valid search over a valid recipe."""

    name: str
    settings: SearchTable
    ranges: tuple[Range, ...]
    table: Table = field(hash=False)
    """The recipe as its file has it."""
    overrides: Table = field(hash=False)
    """Values of the command line, over those of the file."""

    @cached_property
    def base(self) -> Recipe:
        """The recipe itself, without anything searched."""
        return make_recipe(self.table, self.overrides)

    @property
    def prune_after(self) -> int:
        """Number of epochs that every trial trains."""
        after = self.settings.prune_after
        return max(1, self.base.epochs // 4) if after is None else after

    @property
    def higher_is_better(self) -> bool:
        """Whether the better of two trials is the one of the higher judgement."""
        return self.settings.judge == "top1"

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these values of the searched keys."""
        return make_recipe(self.table, merge(self.overrides, _nested(values)))

    def own_values(self) -> dict[str, Any] | None:
        """The values that the recipe has by itself; None where one is unset or out of its range."""
        table = self.base.table()
        found = {item.key: _value_at(table, item.key) for item in self.ranges}
        return found if all(found[item.key] in item for item in self.ranges) else None

    def record(self) -> Table:
        """What the search is known by when it goes on; its data may lie elsewhere then."""
        recipe = self.base.table()
        recipe["data"] = {key: value for key, value in recipe["data"].items() if key != "root"}
        ranges = {item.key: {item.kind: list(item.values)} for item in self.ranges}
        return {"search": self.settings.model_dump(mode="json", exclude={"ranges"}), "ranges": ranges, "recipe": recipe}


def load_search(recipe: str, ranges: Path | None, overrides: Table) -> Search:
    """The search over a recipe.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        ranges: a file with the `[search]` table; None where the recipe file has it.
        overrides: recipe values of the command line.

    Raises:
        UserError: a file cannot be read, or is no search or no recipe; a key is unknown, or does not take the whole of
            its range.
    """
    table = parse_toml(find_text(recipe, shipped_recipes(), "recipe"), recipe, "recipe", "mend that line")
    search, source = table.pop("search") if is_search(table) else None, recipe
    if ranges is not None:
        if search is not None:
            raise UserError(f"{recipe} has [search.ranges] of its own: leave --ranges out")
        file = parse_toml(read_text(ranges, "search", "name another file"), ranges, "search", "mend that line")
        search, source = file.pop("search", None), str(ranges)
        if file:
            raise UserError(f"search {ranges}: unknown key {min(file)!r} beside the table [search]")
    if search is None:
        hint = "" if ranges else ", or name a file that has it with --ranges"
        raise UserError(f"{source} has no table [search.ranges]: add one with the ranges of keys{hint}")
    return make_search(Path(recipe).stem, table, search, overrides, source)


def make_search(name: str, table: Table, search: Any, overrides: Table, source: str) -> Search:
    """Validate a search; the first fault is reported in one sentence that names the file `source`."""
    try:
        settings = SearchTable.model_validate(search)
        ranges = tuple(_make_range(key, value) for key, value in _flatten(settings.ranges))
        if not ranges:
            raise UserError("[search.ranges] names no key: there is nothing to search")
        made = Search(name, settings, ranges, table, overrides)
        if not made.base.data.holdout:
            raise UserError("trials are judged by held-out images: set data.holdout above 0")
        keys = [item.key for item in ranges]
        for key in keys:
            if keys.count(key) > 1 or any(other.startswith(f"{key}.") for other in keys):
                raise UserError(f"{key} is named twice")
            if _value_at(overrides, key) is not None:
                raise UserError(f"{key} is searched: leave it out of the command line")
        _refuse_outside(made)
    except ValidationError as error:
        raise UserError(f"search {source}: {_explain(error)}") from None
    except UserError as error:
        raise UserError(f"search {source}: {error}") from None
    return made


def _flatten(table: Table, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys, whether TOML has them as tables in tables or in quotes, and what stands there."""
    for name, value in table.items():
        key = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict) and value and not value.keys() & set(KINDS):
            yield from _flatten(value, key)
        else:
            yield key, value


def _make_range(key: str, value: Any) -> Range:
    """The range of a key, as its file has it."""
    if key in FIXED:
        raise UserError(f"{key} cannot be searched: {FIXED[key]}")
    if not isinstance(value, dict) or len(value) != 1:
        kinds = ", ".join(f"{kind} = [...]" for kind in KINDS)
        raise UserError(f"the range of {key} is one of {{ {kinds} }} (got {shorten(value)})")
    ((kind, values),) = value.items()
    if kind not in KINDS:
        raise UserError(f"the range of {key}: {nearest(kind, KINDS)} (got {shorten(kind)})")
    if not isinstance(values, list) or len(values) < 2:
        raise UserError(f"the range of {key}: {kind} is a list of two values at least (got {shorten(values)})")
    if kind == "choices":
        for number, choice in enumerate(values):
            if choice in values[:number]:
                raise UserError(f"the range of {key}: {shorten(choice)} is named twice")
        return Range(key, kind, tuple(values))
    _refuse_no_numbers(key, kind, values)
    return Range(key, kind, tuple(values if kind == "int" else map(float, values)))


def _refuse_no_numbers(key: str, kind: str, values: list[Any]) -> None:
    """Raise UserError unless the values are the least and the greatest number of a range."""
    taken = (int,) if kind == "int" else (int, float)
    for value in values:
        if not isinstance(value, taken) or isinstance(value, bool) or not abs(value) <= 2**53:
            number = "a whole number" if kind == "int" else "a number"
            raise UserError(f"the range of {key}: {number} is needed (got {shorten(value)})")
    if len(values) > 2:
        raise UserError(f"the range of {key}: {kind} is the least and the greatest value (got {len(values)} values)")
    if not values[0] < values[1]:
        raise UserError(f"the range of {key}: the smaller number comes first (got {shorten(values)})")
    if kind == "log" and not values[0] > 0:
        raise UserError(f"the range of {key}: log needs numbers above 0 (got {shorten(values[0])})")


def _refuse_outside(search: Search) -> None:
    """Raise UserError for values that the recipe does not take, alone or in pairs."""
    first = {item.key: item.values[0] for item in search.ranges}
    for item in search.ranges:
        for value in item.extremes:
            _refuse_other_images(search, first | {item.key: value})
    for one, other in combinations(search.ranges, 2):
        for value, another in product(one.extremes[1:], other.extremes[1:]):
            _refuse_other_images(search, first | {one.key: value, other.key: another})


def _refuse_other_images(search: Search, values: Mapping[str, Any]) -> None:
    """Raise UserError for values that the recipe does not take, or that bring other images by a preset of theirs."""
    base, table = search.base.table(), search.recipe(values).table()
    for key, why in FIXED.items():
        ours, theirs = _value_at(base, key), _value_at(table, key)
        if ours != theirs:
            whose = ", ".join(f"{name} {shorten(value)}" for name, value in values.items())
            change = f"{shorten(theirs)} in place of {shorten(ours)}"
            raise UserError(f"{key} would be {change} under {whose}, but {why}: set it in the recipe")


def _explain(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    key = ".".join(map(str, fault["loc"])) or "search"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r} of [search]: {nearest(key, SearchTable.model_fields)}"
    if fault["type"] == "missing":
        return f"[search] has no {key!r}: it names the keys that are searched"
    return f"key {key!r} of [search]: {fault['msg']} (got {shorten(fault['input'])})"


def _nested(values: Mapping[str, Any]) -> Table:
    """Dotted keys as tables in tables."""
    result: Table = {}
    for key, value in values.items():
        *tables, name = key.split(".")
        nested: Any = value
        for part in (name, *reversed(tables)):
            nested = {part: nested}
        result = merge(result, nested)
    return result


def _value_at(table: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for part in key.split("."):
        table = table.get(part) if isinstance(table, Mapping) else None
    return table

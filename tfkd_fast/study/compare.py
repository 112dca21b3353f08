"""Runs beside each other, whoever trained them: which of them are the same row, and whether they may be compared.

A run of a study is in the row, and under the seed, that its study gives it. Any other is in the row of the runs whose
recipes differ in nothing but the seed and where things lie (our choice).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pprint import pformat
from typing import Any

from tfkd_fast.data import DataIdentity
from tfkd_fast.errors import UserError, nearest, shorten
from tfkd_fast.files import is_there, parse_toml
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.precedence import dotted_values
from tfkd_fast.runs.provenance import CHOICE
from tfkd_fast.study.results import ResultRow, StudyResults, Summary
from tfkd_fast.study.stored import ResultsFiles, read_results

AFTER_SEED = re.compile(r"-seed\d+$")
"""End of the name of a run's folder, which runs of one row have different ones of."""
PLACES = ("data.root", "data.workers", "checkpoint_every", "checkpoint_seconds", "tensorboard", "trackers", "seed")
"""Keys that may differ among the runs of a row."""
MOST_KEYS = 3
"""Keys that the title of a row names."""


@dataclass(frozen=True)
class Comparison:
    """StudyResults, the folders of their runs, and the study that they are all of, if it is one."""

    results: StudyResults
    folders: Mapping[tuple[str, int], RunFolder]
    """Row and seed -> the folder of the run; those of a study may not be there yet, those of a results.json are not."""
    study: Path | None = None
    """The folder of the study."""


@dataclass(frozen=True)
class ComparedRun:
    """A run that somebody named."""

    folder: RunFolder
    summary: Summary | None
    recipe: Mapping[str, Any]
    """Key of the recipe, with dots -> its value."""
    data: DataIdentity | None
    place: tuple[Path, str, int] | None
    """The folder of the study that it is of, its row there and its seed there."""

    @property
    def stem(self) -> str:
        """The name of its folder without the seed."""
        return AFTER_SEED.sub("", self.folder.path.resolve().name)

    @property
    def kind(self) -> str:
        """What it has in common with the runs of its row."""
        values = {key: _without_seed(value) for key, value in self.recipe.items() if key not in PLACES}
        return pformat(values)  # which sorts keys


def load_comparison(paths: Sequence[Path], baseline: str | None = None) -> Comparison:
    """What a study, or several runs, come to.

    Args:
        paths: the folder of a study, or its results.json, alone; or folders of runs, finished or not.
        baseline: name of the row that the others are compared with; by default that of the study, or else the row of
            the first run.

    Raises:
        UserError: a path is neither, a file is damaged, or the runs are not of the same images, training and test.
    """
    is_study = len(paths) == 1 and not _is_run(paths[0])
    found = _study(paths[0]) if is_study else _runs(paths)
    if baseline is None:
        return found
    rows = found.results.rows
    names = [name for name, row in rows.items() if baseline in (name, row.title)]
    if not names:
        raise UserError(f"there is no row {shorten(baseline)} to compare with: {nearest(baseline, rows)}")
    rows = {**rows, names[0]: replace(rows[names[0]], compared=True)}
    return replace(found, results=replace(found.results, baseline=names[0], rows=rows))


def _is_run(path: Path) -> bool:
    folder = RunFolder(path)
    return is_there(folder.recipe) or is_there(folder.next_recipe)


def _study(path: Path) -> Comparison:
    """A study by its folder, whose runs are read anew, or by its results.json alone."""
    if path.is_dir():
        if not is_there(ResultsFiles(path).results):
            raise UserError(f"{path} is no run folder and no study: it has neither recipe.toml nor results.json")
        results = read_results(ResultsFiles(path).results)
    else:
        if path.suffix == ".toml":
            raise UserError(
                f"{path} is no study that was trained: name the folder of one, by default under runs/studies/"
            )
        if not is_there(path):
            raise UserError(f"{path} does not exist: name run folders, or the folder of a study")
        return Comparison(read_results(path), {})
    if not (path / "runs").is_dir():
        return Comparison(results, {}, path)
    folders = {
        (row, seed): RunFolder(path / "runs" / f"{row}-seed{seed}") for row in results.rows for seed in results.seeds
    }
    finished = {key: summary for key, folder in folders.items() if (summary := folder.read_summary())}
    failures = {
        name: why for name, why in results.failures.items() if not RunFolder(path / "runs" / name).summary.exists()
    }
    results = replace(results, runs=_by_row(results.rows, finished), failures=failures)
    return Comparison(results, folders, path)


def _runs(paths: Sequence[Path]) -> Comparison:
    """Runs by their folders, in the rows of their study if they are all of one, or else in rows of equal recipes."""
    read_once = cache(read_results)
    named: dict[Path, Path] = {}
    for path in paths:
        named.setdefault(path.resolve(), path)
    runs = [_read(path, read_once) for path in named.values()]
    places = [run.place for run in runs if run.place is not None]
    studies = {place[0] for place in places}
    if len(places) == len(runs) and len(studies) == 1:
        study = read_once(ResultsFiles(studies.pop()).results)
        name, contrasts, keys = study.name, study.contrasts, [place[1:] for place in places]
        rows = {row: value for row, value in study.rows.items() if row in {key[0] for key in keys}}
        baseline = study.baseline
    else:
        name, contrasts, study = "comparison", {}, None
        titles = _titles(runs)
        keys = [(title, int(run.recipe.get("seed", 0))) for title, run in zip(titles, runs, strict=True)]
        rows = {title: ResultRow(title) for title in titles}
        baseline = titles[0]
    if baseline not in rows:
        baseline = next((row for row in rows if rows[row].compared), keys[0][0])
        rows[baseline] = replace(rows[baseline], compared=True)
    _refuse_equal(runs, keys)
    _refuse_other_images([run for run, key in zip(runs, keys, strict=True) if rows[key[0]].compared], study is None)
    remarks = [f"Named twice and counted once: {path}." for path in named.values() if _count(paths, path) > 1]
    if unfinished := [str(run.folder.path) for run in runs if run.summary is None]:
        remarks.append(f"Not finished, so without test figures: {', '.join(unfinished)}.")
    finished = {
        key: run.summary
        for key, run in sorted(zip(keys, runs, strict=True), key=lambda item: item[0][1])
        if run.summary
    }
    results = StudyResults(
        name=name,
        seeds=tuple(sorted({seed for _, seed in keys})),
        baseline=baseline,
        rows=rows,
        runs=_by_row(rows, finished),
        contrasts={
            contrast: pairs
            for contrast, pairs in contrasts.items()
            if {row for pair in pairs for row in pair} <= rows.keys()
        },
        remarks=tuple(remarks),
    )
    return Comparison(results, {key: run.folder for key, run in zip(keys, runs, strict=True)})


def _read(path: Path, read_once: Callable[[Path], StudyResults]) -> ComparedRun:
    if not _is_run(path) and is_there(ResultsFiles(path).results):
        raise UserError(f"{path} is a study, not a run: name it alone, or the runs in {path / 'runs'}")
    if path.is_file():
        raise UserError(f"{path} is a file, not a run folder: name the folder of the run, or a results.json alone")
    folder = RunFolder(path)
    folder.require_run()
    recipe = dotted_values(parse_toml(folder.read_recipe_text(), folder.recipe, "the recipe", "restore it"))
    own, place = path.resolve(), None
    results = ResultsFiles(own.parent.parent).results
    row, _, number = own.name.rpartition("-seed")
    if own.parent.name == "runs" and is_there(results) and number.isdecimal() and row in read_once(results).rows:
        place = (own.parent.parent, row, int(number))
    return ComparedRun(folder, folder.read_summary(), recipe, folder.read_data(), place)


def _titles(runs: Sequence[ComparedRun]) -> list[str]:
    """A title for each run, the same for those of one recipe: the name of their folders, or of their method, and what
    they differ in from others of that name."""
    kinds: dict[str, list[ComparedRun]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    titles: dict[str, str] = {}
    for kind, own in kinds.items():
        stems = {run.stem for run in own}
        titles[kind] = stems.pop() if len(stems) == 1 else str(own[0].recipe.get("method", "run"))
    for title in set(titles.values()):
        alike = [kind for kind in kinds if titles[kind] == title]
        if len(alike) > 1:
            recipes = {kind: kinds[kind][0].recipe for kind in alike}
            for number, kind in enumerate(alike, start=1):
                titles[kind] = f"{title} ({number}: {_what_differs(recipes[kind], recipes.values())})"
    return [titles[run.kind] for run in runs]


def _what_differs(recipe: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> str:
    """The first keys of a recipe whose values are not those of all others."""
    recipes = list(others)
    keys = [key for key in recipe if key not in PLACES and any(other.get(key) != recipe[key] for other in recipes)]
    return ", ".join(f"{key} {shorten(recipe[key])}" for key in keys[:MOST_KEYS]) or "without what others have"


def _refuse_equal(runs: Sequence[ComparedRun], keys: Sequence[tuple[str, int]]) -> None:
    by_key: dict[tuple[str, int], ComparedRun] = {}
    for run, key in zip(runs, keys, strict=True):
        if other := by_key.get(key):
            raise UserError(
                f"{other.folder.path} and {run.folder.path} are two runs of one recipe under one seed, {key[1]}: name "
                "one of them"
            )
        by_key[key] = run


def _refuse_other_images(runs: Sequence[ComparedRun], holdout: bool) -> None:
    """Raise UserError for a run on other images than the first one's; with `holdout` also where it holds out others,
    which for the rows of a study is what the study wants."""
    for run in runs[1:]:
        if difference := _difference_of_images(runs[0], run, holdout):
            raise UserError(
                f"{run.folder.path} cannot be compared with {runs[0].folder.path}: {difference}; compare runs on the "
                "same images, held out and tested alike"
            )


def _difference_of_images(first: ComparedRun, other: ComparedRun, holdout: bool) -> str | None:
    """How the images of a run differ from those of the first, as a clause; None where they do not."""
    if first.data and other.data and (difference := first.data.difference(other.data)):
        return f"of its data set {difference}" if not difference.startswith("it") else f"in its data set {difference}"
    keys = [f"data.{key}" for key in CHOICE] + ["data.holdout", "data.fold"] * holdout
    for key in keys:
        if first.recipe.get(key) != other.recipe.get(key):
            return f"its {key} is {_value(other.recipe, key)}, not {_value(first.recipe, key)}"
    tested = [images for run in (first, other) if run.summary and (images := run.summary.get("test_images"))]
    if len(set(tested)) > 1:
        return f"it was tested on {tested[1]} images, not {tested[0]}"
    return None


def _value(recipe: Mapping[str, Any], key: str) -> str:
    return shorten(recipe[key]) if key in recipe else "not set"


def _by_row(rows: Iterable[str], finished: Mapping[tuple[str, int], Summary]) -> dict[str, dict[int, Summary]]:
    by_row = {row: {seed: summary for (name, seed), summary in finished.items() if name == row} for row in rows}
    return {row: own for row, own in by_row.items() if own}


def _count(paths: Sequence[Path], path: Path) -> int:
    return sum(other.resolve() == path.resolve() for other in paths)


def _without_seed(value: Any) -> Any:
    """A value of a recipe without the seed in the names of other runs, such as teachers, that are of the same seed."""
    if isinstance(value, str):
        return AFTER_SEED.sub("", value)
    return [_without_seed(part) for part in value] if isinstance(value, list) else value

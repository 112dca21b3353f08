"""Learning of a policy over whole runs, in a folder that the search can continue from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tfkd_fast.errors import UserError
from tfkd_fast.files import PART, from_checked_line, read_bytes, reading, to_checked_line
from tfkd_fast.policies.students import Students
from tfkd_fast.runs.folder import RunFolder, refuse_if_foreign
from tfkd_fast.runs.lock import LOCK
from tfkd_fast.runs.log import LineFile
from tfkd_fast.runs.provenance import refuse_other_data
from tfkd_fast.runs.recipe import Recipe, read_recipe
from tfkd_fast.steering.control.policy_search import Generation, PolicySearch, as_record
from tfkd_fast.steering.control.settings import RandomSettings, SampledPolicySettings


def learn_policy(
    recipe: Recipe,
    out: Path,
    *,
    generations: int,
    students: int,
    on_generation: Callable[[int, Generation], None],
    on_epoch: Callable[[int, int], None] | None = None,
) -> Path:
    """Search for a policy for the recipe's target, see `PolicySearch`.

    The policy file is written after every generation. A folder with fewer generations is continued.

    Args:
        recipe: the recipe that students train by.
        out: folder of the search.
        generations: number of generations in all.
        students: number of students of a generation.
        on_generation: called with the number and the result of every new generation.
        on_epoch: called before the first new generation and after every epoch, with the number of student-epochs that
            are trained by then, and the most that the whole search trains.

    Returns:
        The policy file, `policy.safetensors` in `out`.

    Raises:
        UserError: the folder holds another search, or the recipe leaves nothing to steer.
    """
    folder = RunFolder(out)
    _refuse_if_taken(folder)
    fleet = Students(recipe, students)
    own = fleet.settings.controller  # gives the bounds of the policy's deviation if it has a policy
    search = PolicySearch(
        fleet.space,
        own if isinstance(own, SampledPolicySettings) else RandomSettings(name="random"),
        students,
        recipe.seed,
    )
    with folder.lock():
        finished = _finished(folder, recipe)
        remedy = "delete its damaged lines and all that follow them, or choose another --out"
        with reading(folder.generations, "the search", remedy):
            lines_done = map(from_checked_line, finished.splitlines())
            done = [_generation(line, number) for number, line in enumerate(lines_done)]
            if any(len(generation.qualities) != students for generation in done):
                raise UserError(f"the search in {out} has {len(done[0].qualities)} students at a time: give as many")
            search.restore(done)
        lines = LineFile(  # from now on this is the folder of a search
            folder.generations, keep=len(finished), how_to_go_on="give the same command again"
        )
        if done:
            refuse_other_data(fleet.dataset, folder.read_data(), f"the search in {out}")
            folder.write_bytes(folder.policy.name, search.policy_bytes())  # the last one may have been ended before it
        if not folder.recipe.exists():  # it is there where the first generation was cut short
            folder.create(recipe.to_toml())
        if not folder.data.exists() and not done:
            folder.write_data(fleet.dataset.identity)
        cost = fleet.student_epochs
        for number in range(len(done), generations):
            if on_epoch is not None:
                on_epoch(number * cost, generations * cost)
                fleet.on_epoch = partial(_count_epochs, on_epoch, number * cost, generations * cost)
            generation = search.run_generation(fleet)
            lines.write(to_checked_line({"event": "generation", "number": number} | as_record(generation)))
            lines.sync()
            folder.write_bytes(folder.policy.name, search.policy_bytes())
            on_generation(number, generation)
        lines.close()
    return out / folder.policy.name


def _count_epochs(on_epoch: Callable[[int, int], None], before: int, planned: int, trained: int) -> None:
    """Report an epoch of a generation that began when `before` student-epochs were trained."""
    on_epoch(before + trained, planned)


def _refuse_if_taken(folder: RunFolder) -> None:
    """Raise UserError unless the folder is empty or not there, or holds a search."""
    if folder.generations.exists():
        if not folder.recipe.exists():  # a search that was killed when it began, or a file of somebody else
            empty = folder.generations.stat().st_size == 0
            ours = {LOCK, folder.recipe.name + PART} | ({folder.generations.name} if empty else set())
            refuse_if_foreign(folder.path, ours=ours)
    elif folder.recipe.exists():
        raise _something_else(folder)
    else:
        folder.refuse_if_taken()


def _something_else(folder: RunFolder) -> UserError:
    return UserError(f"{folder.path} holds something else than this search: choose another --out")


def _finished(folder: RunFolder, recipe: Recipe) -> bytes:
    """The whole lines of the search's log, empty before the first generation."""
    if not folder.recipe.exists():
        return b""
    same = folder.generations.exists() and read_recipe(folder).with_data_root(recipe.data.root) == recipe
    if not same:  # but for the place of the data set, which may have moved
        raise _something_else(folder)
    content = read_bytes(folder.generations, "the search", "choose another --out")
    return content[: content.rfind(b"\n") + 1]


def _generation(line: dict[str, Any], number: int) -> Generation:
    """The generation of this number, read from its line.

    Raises:
        ValueError: the line is that of another one, because lines were lost, repeated or moved.
    """
    if line["number"] != number:
        raise ValueError(f"generation {line['number']} stands where {number} belongs")
    return Generation(line["seed"], line["parameters"], line["qualities"])

"""A finished run handed on: its model card, weights and records, in a folder or in a repository of the Hugging Face
Hub."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from tfkd_fast.errors import Notice, UserError, shorten
from tfkd_fast.files import expand_home, from_checked_text, is_there, read_bytes, to_checked_text, write_bytes
from tfkd_fast.models import imports_code
from tfkd_fast.report.card import model_card
from tfkd_fast.report.run import read_run
from tfkd_fast.runs import hub
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.lock import refuse_if_busy
from tfkd_fast.runs.stored import StoredRun, load_run
from tfkd_fast.runs.student import read_student

FOUND_IN_NEW = {"README.md", ".gitattributes"}
"""What a repository may have that nothing was pushed to yet."""
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""The names of licences on the Hub, https://huggingface.co/docs/hub/repositories-licenses."""

Files = dict[str, Path | bytes]
"""Files by name: their content, or where it is."""


def push(
    run_dir: Path | str,
    target: Path | str,
    *,
    licence: str = "unknown",
    private: bool = False,
    overwrite: bool = False,
    say: Callable[[str], object] = print,
) -> str:
    """Hand on a finished run, as `tfkd_fast.from_pretrained` reads it. Files that hold pickles, checkpoints, and the
    folders of this machine in the recipe are left out.

    Args:
        run_dir: the folder of the run.
        target: OWNER/NAME for a repository of the Hub; a `Path`, or a text as "./x" or "/x", for a folder.
        licence: the licence of the weights, by its name on the Hub, such as "apache-2.0".
        private: whether a repository that is made is for its owner only.
        overwrite: whether a run that is there is replaced.
        say: told what is written, and how many bytes that is, before it is.

    Returns:
        The address of the repository, or the path of the folder.

    Raises:
        UserError: the run is not finished or damaged; or the target holds something else, or a run and `overwrite` is
            false, or cannot be written to.
    """
    if not LICENCE.fullmatch(licence):
        raise UserError(
            f"{shorten(licence)} is no licence by its name on the Hub: name it as in apache-2.0 or cc-by-4.0"
        )
    run = load_run(run_dir)
    refuse_if_busy(run.path)
    if hub.is_folder(target):
        if private:
            raise UserError(f"private is for repositories of the Hub, and {target} is a folder: leave --private out")
        folder = expand_home(target)
        files = what_is_handed_on(run, f"./{folder.resolve().name}", licence)
        return _into_folder(folder, files, overwrite=overwrite, say=say)
    files = what_is_handed_on(run, str(target), licence)
    return _into_repository(str(target), files, private=private, overwrite=overwrite, say=say)


def what_is_handed_on(run: StoredRun, name: str, licence: str) -> Files:
    """The files of a finished run that others need, read and checked, with the model card.

    Raises:
        UserError: the run is not finished, or one of its files is damaged.
    """
    folder = run.folder
    header = read_student(folder.student)[0]
    for path in filter(is_there, (folder.best, folder.ema)):
        read_student(path)
    record = read_run(run.path)
    if record.summary is None:
        raise UserError(
            f"the run in {run.path} is not finished: tfkd-fast train {folder.resume_option} goes on with it"
        )
    if imports_code(header.name) or header.name.startswith("python/"):
        notice = f"the code of the network {header.name} is not handed on, but its name is: who loads it needs the code"
        warnings.warn(Notice(notice), stacklevel=3)
    recipe = _without_folders(run.recipe.table())
    text = tomli_w.dumps(recipe)
    made: Files = {
        folder.card.name: model_card(run, record, header, text, name, licence).encode(),
        folder.recipe.name: to_checked_text(text).encode(),
    }
    others = [path for path in (*folder.handed_on(), *sorted(run.path.glob("*.onnx"))) if path.name not in made]
    return made | {path.name: path for path in others if is_there(path)}


def _into_folder(path: Path, files: Files, *, overwrite: bool, say: Callable[[str], object]) -> str:
    """Write files into a folder, which holds no finished run until the last of them is written."""
    folder = RunFolder(path)
    folder.refuse_if_taken(overwrite=overwrite, place="TARGET")
    contents = {name: _content(file) for name, file in files.items()}  # before they are gone, where both are one folder
    _announce(files, str(path), say)
    with folder.lock():
        folder.refuse_if_taken(overwrite=overwrite, place="TARGET")  # another process may have been quicker
        folder.create(from_checked_text(contents.pop(folder.recipe.name).decode()))
        summary = contents.pop(folder.summary.name)
        for name, content in contents.items():
            write_bytes(path / name, content)
        write_bytes(folder.summary, summary)
        folder.drop_replaced()
    return str(path)


def _into_repository(
    repository: str, files: Files, *, private: bool, overwrite: bool, say: Callable[[str], object]
) -> str:
    """Upload files in one commit, which takes out what an earlier run had and this one has not."""
    there, is_private = hub.listing(repository) or (set(), private)
    own = {path.name for path in RunFolder(Path()).handed_on()}
    if there - FOUND_IN_NEW:
        if "recipe.toml" not in there:
            other = min(there - FOUND_IN_NEW)
            raise UserError(
                f"the repository {repository} holds no run of tfkd-fast, but others' files such as {other}: name "
                "another one"
            )
        if not overwrite:
            raise UserError(
                f"the repository {repository} holds a run already: name another one, or pass --overwrite, which "
                "makes a new commit"
            )
    if private and not is_private:
        raise UserError(
            f"the repository {repository} is there and public: make it private on the Hub first, or leave --private out"
        )
    _announce(files, hub.address(repository), say)
    return hub.upload(repository, files, without=sorted((there & own) - files.keys()), private=private)


def _announce(files: Files, where: str, say: Callable[[str], object]) -> None:
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        say(f"{size:>15,} bytes  {name}")
    say(f"{sum(sizes.values()):>15,} bytes in {len(files)} files go to {where}")


def _content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else read_bytes(file, "the file", "restore it")


def _without_folders(value: Any, key: str = "") -> Any:
    """The tables of a recipe with the last part of each path in its place: others have other folders.

    What names networks and classes stays, because the weights have it, too.
    """
    if isinstance(value, dict):
        return {name: _without_folders(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item, key) for item in value]
    is_path = isinstance(value, str) and key not in ("name", "classes") and Path(value).is_absolute()
    return Path(value).name if is_path else value

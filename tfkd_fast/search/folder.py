"""The folder of a search: the names of its files, and what it is known by."""

from pathlib import Path
from typing import Any

from tfkd_fast.errors import UserError
from tfkd_fast.files import PART, is_there, read_checked_json, to_checked_json, write_bytes
from tfkd_fast.runs.folder import RunFolder, refuse_if_foreign
from tfkd_fast.runs.lock import LOCK
from tfkd_fast.search.plan import Search


class SearchFolder:
    """The folder of a search: trials/, recipes/ and logs/ with one entry a trial, the journal, and what was found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = [path / name for name in ("trials", "recipes", "logs")]
        self.record = path / "search.json"
        self.journal = path / "journal.log"
        self.table = path / "trials.json"
        self.csv = path / "trials.csv"
        self.best = path / "best.toml"
        self.page = path / "search.html"

    def trial(self, number: int) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.path / "trials" / str(number))

    def recipe(self, number: int) -> Path:
        """The recipe file that a trial is started with."""
        return self.path / "recipes" / f"{number}.toml"

    def log(self, number: int) -> Path:
        """The file with the output of the process of a trial."""
        return self.path / "logs" / f"{number}.txt"

    def refuse_another(self, search: Search) -> None:
        """Raise UserError if the folder holds something else than this search."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose another --out")
        if not is_there(self.record):
            if self.path.exists():
                refuse_if_foreign(self.path, ours={LOCK, self.record.name + PART})
            return
        remedy = "restore it, or choose another --out"
        begun = read_checked_json(self.record, "the record of the search", remedy)
        if key := _difference(begun, search.record()):
            raise UserError(
                f"{self.path} holds a search with another {key}: choose another --out, or restore what was changed"
            )

    def create(self, search: Search) -> None:
        """Make the folder, and record what is searched.

        Raises:
            UserError: it cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not is_there(self.record):
                write_bytes(self.record, to_checked_json(search.record()).encode())
            for part in self._parts:
                part.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None


def _difference(one: Any, other: Any, path: str = "") -> str | None:
    """The first dotted key whose value differs between two tables; None where none does."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return None if one == other else path
    for key in [*one, *(key for key in other if key not in one)]:
        name = "" if key in ("recipe", "search") and not path else f"{path}.{key}".lstrip(".")
        if found := _difference(one.get(key), other.get(key), name):
            return found
    return None

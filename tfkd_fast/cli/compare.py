"""`tfkd-fast compare`: the table of runs beside each other, and its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tfkd_fast.cli.study import show
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.errors import UserError
from tfkd_fast.runs.folder import refuse_if_foreign
from tfkd_fast.runs.lock import refuse_if_busy
from tfkd_fast.strict_json import to_json
from tfkd_fast.study.compare import load_comparison
from tfkd_fast.study.stored import ResultsFiles, as_json, table_csv


def compare_runs(
    paths: Sequence[Path], *, baseline: str | None, out: Path | None, form: Literal["table", "json", "csv"]
) -> None:
    """Print what runs come to, and write the page and the files of a study, or into the folder `out`."""
    if out is not None and out.exists():
        if not out.is_dir():
            raise UserError(f"{out} is a file: choose another --out")
        refuse_if_foreign(out, ours=ResultsFiles(out).names)
    found = load_comparison(paths, baseline)
    terminal = Terminal()
    match form:
        case "json":
            terminal.print(to_json(as_json(found.results), indent=2), soft_wrap=True)
        case "csv":
            terminal.print(table_csv(found.results), soft_wrap=True, end="")
        case "table":
            show(found.results, terminal)
    own = found.study if out is None and baseline is None and not _is_busy(found.study) else None
    if (folder := out or own) is None:
        return
    from tfkd_fast.study.page import ResultsPage

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    files = ResultsFiles(folder)
    if out is not None:
        files.write(found.results)
    page = ResultsPage(files.page, found.folders).write(found.results)
    if form == "table":
        terminal.say(f"page {page}")


def _is_busy(study: Path | None) -> bool:
    """Whether a study is being trained, which writes its page itself."""
    if study is None:
        return False
    try:
        refuse_if_busy(study)
    except UserError:
        return True
    return False

"""The tables of docs/speed.md, from the stored results: `python -m benchmarks.document` writes them into the page.

With `--cells FILE`, what `tfkd-fast bench --sweep --out FILE` measured takes the place of the same cells of the stored
sweep first.

A table stands between two comments, the first of which names it and the processor, as in

    <!-- steps: amd-epyc-family-26-model-2-2-threads -->
    <!-- end -->
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks import step_profile
from benchmarks.end_to_end import GROUPS, read_rows
from benchmarks.run import STORED
from tfkd_fast.strict_json import to_json

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
PLACE = re.compile(r"(<!-- (?P<table>[a-z]+): (?P<processor>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

NOT_MEASURED = "(not measured)"


def table(name: str, processor: str) -> str:
    """The lines of a table: a group of `benchmarks.end_to_end`, the profiles of `benchmarks.step_profile`, or the sweep
    of `tfkd-fast bench --sweep`."""
    if name == "sweep":
        file = STORED / f"sweep-{processor}.json"
        return sweep_table(json.loads(file.read_text())["cells"]) if file.is_file() else NOT_MEASURED
    if name == "profile":
        file = STORED / f"profile-{processor}.json"
        comparisons = json.loads(file.read_text())["comparisons"] if file.is_file() else []
        return step_profile.markdown(step_profile.from_json(comparisons)) if comparisons else NOT_MEASURED
    if name not in GROUPS:
        raise ValueError(f"no table is called {name!r}: choose of sweep, profile, {', '.join(GROUPS)}")
    rows = [row for row in read_rows(STORED / f"end-to-end-{processor}.json") if row.group == name]
    if not rows:
        return NOT_MEASURED
    return "\n".join(["| what | beside | figure | |", "|---|---|---|---|", *(row.markdown for row in rows)])


def sweep_table(cells: list[dict[str, Any]]) -> str:
    """The ratios of each network at each width, in the order of the batch sizes."""
    widths = sorted({cell["model"]["width"] for cell in cells})
    lines = [
        f"| | {' | '.join(f'x{width:g}' for width in widths)} |",
        f"|---{'|---' * len(widths)}|",
    ]
    for model in dict.fromkeys(cell["model"]["name"] for cell in cells):
        columns = []
        for width in widths:
            here = [cell for cell in cells if cell["model"] == {"name": model, "width": width}]
            ratios = [cell["ratio"] for cell in sorted(here, key=lambda cell: cell["batch_size"])]
            columns.append(", ".join(f"{ratio:.2f}" for ratio in ratios))
        lines.append(f"| {model} | {' | '.join(columns)} |")
    return "\n".join(lines)


def keep_cells(measured: dict[str, Any], folder: Path = STORED) -> None:
    """Put the cells of a sweep into the stored one of its processor; cells that were not measured stay as they are."""
    name = f"{measured['device']}, {measured['threads']} threads"
    file = folder / f"sweep-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    stored = json.loads(file.read_text())
    new = {_shape(cell): cell for cell in measured["cells"]}
    if unknown := new.keys() - {_shape(cell) for cell in stored["cells"]}:
        raise ValueError(f"{file} has no cell {unknown.pop()}")
    stored["cells"] = [new.get(_shape(cell), cell) for cell in stored["cells"]]
    file.write_text(to_json(stored, indent=1) + "\n")


def _shape(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["model"]["name"], cell["model"]["width"], cell["batch_size"], cell["method"]


def fill(page: str) -> str:
    """The page with every table made anew."""
    return PLACE.sub(lambda place: f"{place[1]}\n{table(place['table'], place['processor'])}\n\n{place[4]}", page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, metavar="FILE", help="figures of a sweep over some of the cells")
    if (chosen := parser.parse_args().cells) is not None:
        keep_cells(json.loads(chosen.read_text()))
    PAGE.write_text(fill(PAGE.read_text()))

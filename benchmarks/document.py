"""The tables of docs/speed.md, from the stored results: `python -m benchmarks.document` writes them into the page.

A table stands between two comments, the first of which names it and the processor, as in

    <!-- steps: amd-epyc-family-26-model-2-2-threads -->
    <!-- end -->
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import step_profile
from benchmarks.end_to_end import GROUPS, read_rows
from benchmarks.run import STORED

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


def fill(page: str) -> str:
    """The page with every table made anew."""
    return PLACE.sub(lambda place: f"{place[1]}\n{table(place['table'], place['processor'])}\n\n{place[4]}", page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))

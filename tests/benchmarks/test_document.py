"""The tables of docs/speed.md are those of the stored results."""

import json
from pathlib import Path

import pytest

from benchmarks import document

CELLS = [
    {"model": {"name": name, "width": width}, "batch_size": batch, "ratio": ratio}
    for name, width, batch, ratio in [
        ("vgg8", 0.5, 64, 1.25),
        ("vgg8", 0.5, 16, 1.1),
        ("vgg8", 1.0, 16, 1.5),
        ("vgg8", 1.0, 64, 1.75),
        ("resnet20", 0.5, 16, 0.9),
    ]
]


def test_the_page_shows_the_stored_results() -> None:
    page = document.PAGE.read_text()
    assert len(document.PLACE.findall(page)) >= 10
    assert document.fill(page) == page  # python -m benchmarks.document writes it


def test_a_sweep_is_a_table_of_networks_and_widths() -> None:
    assert document.sweep_table(CELLS).splitlines() == [
        "| | x0.5 | x1 |",
        "|---|---|---|",
        "| vgg8 | 1.10, 1.25 | 1.50, 1.75 |",
        "| resnet20 | 0.90 |  |",
    ]


def test_cells_that_were_measured_again_take_the_place_of_the_stored_ones(tmp_path: Path) -> None:
    machine = {"device": "Some Processor (model 1)", "threads": 2}
    cells = [{**cell, "method": "ce"} for cell in CELLS]
    file = tmp_path / "sweep-some-processor-model-1-2-threads.json"
    file.write_text(json.dumps({**machine, "cells": cells}))
    document.keep_cells({**machine, "cells": [{**cells[-1], "ratio": 1.3}]}, tmp_path)
    assert json.loads(file.read_text())["cells"] == [*cells[:-1], {**cells[-1], "ratio": 1.3}]
    with pytest.raises(ValueError, match="has no cell"):
        document.keep_cells({**machine, "cells": [{**cells[0], "batch_size": 7}]}, tmp_path)

"""`tfkd-fast bench`: its measurements and their tables."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import ValidationError
from rich.table import Table

import tfkd_fast
from tfkd_fast import throughput as bench
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.data import LoaderName, missing_loaders
from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.models import MODELS, ModelSettings

Figures = dict[str, Any]

SWEEP_IMAGES = 256
"""Images of a measurement where several workloads are measured, unless one batch has more."""


def workloads(
    compute: Compute,
    models: Sequence[str],
    widths: Sequence[float],
    batch_sizes: Sequence[int],
    method: bench.MethodName,
    teacher: str | None,
    steps: int | None,
) -> list[bench.Workload]:
    """Return every network in every width with every batch size.

    Args:
        compute: device and precision.
        models: names of networks, or "all" for those of this package that are written out.
        widths: factors of their channels; networks of others have one width.
        batch_sizes: numbers of images of a batch.
        method: how the student is taught.
        teacher: name of the teacher's network; None without a teacher.
        steps: training steps of a measurement; None to choose them.

    Raises:
        UserError: a network is not known, not written out in torch's layers, or has one width only, or the method and
            the teacher do not go together.
    """
    if (method == "kd") != (teacher is not None):
        raise UserError("method kd and a teacher go together: give both or none")
    names = list(bench.WRITTEN_OUT) if "all" in models else list(dict.fromkeys(models))
    teaching = find_network(teacher, 1.0) if teacher else None
    networks = [find_network(name, width) for name in names for width in widths_of(name, widths)]
    cells = [(network, batch) for network in networks for batch in batch_sizes]
    few = 10 if len(cells) == 1 else None
    return [
        bench.Workload(compute, network, batch, steps or few or max(1, SWEEP_IMAGES // batch), method, teaching)
        for network, batch in cells
    ]


def widths_of(name: str, widths: Sequence[float]) -> Sequence[float]:
    """The widths that a network is measured in."""
    if name in MODELS or 1.0 not in widths:
        return widths
    return [1.0]


def find_network(name: str, width: float) -> ModelSettings:
    """The `[model]` table of a network that can be measured.

    Raises:
        UserError: see `workloads`.
    """
    if name in MODELS and name not in bench.WRITTEN_OUT:
        written = ", ".join(bench.WRITTEN_OUT)
        raise UserError(
            f"{name} is measured beside the same network in torch's own layers, which is not written out: choose from "
            f"{written}, or a network of torchvision, of timm, or of your own"
        )
    try:
        return ModelSettings(name=name, width=width)
    except ValidationError as error:
        fault = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--model {name}: {fault}") from None


def measure(workload: bench.Workload, *, rounds: int, compiled: bool, candidates: Sequence[int]) -> Figures:
    """Measure all that the tables of one workload show; the result can be written as JSON."""
    loops = bench.measure_training(workload, rounds, compiled=compiled)
    evaluation = bench.measure_evaluation(workload, rounds)
    whole_batches: tuple[LoaderName, ...] = ("resident", "dali")
    installed = [name for name in whole_batches if missing_loaders()[name] is None]
    ways = bench.measure_populations(workload, candidates, ("sequential", "streams", "stacked"), rounds)
    return {
        **_machine(workload.compute),
        **_description(workload),
        "training": _rows(loops),
        "evaluation": _rows(evaluation),
        "loaders": _rows(bench.measure_loaders(workload, installed, rounds)),
        "saving": bench.measure_saving(workload, rounds)._asdict(),
        "flops_per_image": bench.flops_per_image(workload),
        "matrix_flops_per_second": bench.matrix_rate(workload.compute),
        "population": {size: _rows(rows) for size, rows in ways.items()},
    }


def sweep(workloads: Sequence[bench.Workload], rounds: int, terminal: Terminal) -> Figures:
    """Measure the training step of several workloads; a line for each is printed as soon as it is measured."""
    cells = []
    terminal.print(_title(_machine(workloads[0].compute)))
    terminal.print(f"tfkd-fast beside the loop {bench.careful_loop(workloads[0].compute)}: ratio, images/s of both")
    for cell in bench.sweep(workloads, rounds):
        figures = {**_description(cell.workload), "ratio": cell.ratio.median, "spread": cell.ratio.spread}
        cells.append({**figures, "training": _rows([cell.ours, cell.by_hand])})
        speeds = f"{cell.ours.images_per_second:>7,.0f} {cell.by_hand.images_per_second:>7,.0f}"
        terminal.print(f"{_times(figures)} {speeds}  {_name(figures)}")
    return {**_machine(workloads[0].compute), "cells": cells}


def show_worst(figures: Figures, terminal: Terminal) -> None:
    """Print the cell of a sweep with the lowest ratio, and all whose ratio is below 1."""
    worst, *others = sorted(figures["cells"], key=lambda cell: cell["ratio"])
    terminal.print(f"the worst of {1 + len(others)}: {_name(worst)}, {_times(worst)}")
    slower = [cell for cell in (worst, *others) if cell["ratio"] < 1]
    for cell in slower:
        terminal.print(f"slower than by hand: {_name(cell)}, {_times(cell)}")
    if not slower:
        terminal.print("slower than by hand: none")


def show(figures: Figures, terminal: Terminal) -> None:
    """Print the tables of one workload: how fast a student trains and is judged, and candidates side by side."""
    table = Table(title=f"{_title(figures)} · {_name(figures)}", title_justify="left")
    for heading in ("training step", "images/s", "±", "tfkd-fast", "of the matrix rate"):
        table.add_column(heading, justify="left" if heading == "training step" else "right")
    rate = figures["matrix_flops_per_second"]
    ours = figures["training"][0]["images_per_second"]
    for row in figures["training"]:
        share = row["images_per_second"] * figures["flops_per_image"] / rate
        table.add_row(*_cells(row, figures["training"][0]), f"{share:.0%}")
    table.add_section()
    for row in figures["evaluation"]:
        table.add_row(*_cells({**row, "variant": f"{row['variant']}, evaluation"}, figures["evaluation"][0]), "")
    table.add_section()
    for row in figures["loaders"]:
        speed = row["images_per_second"]
        table.add_row(row["variant"], f"{speed:,.0f}", f"{row['spread']:.0%}", f"{ours / speed:.3f}x", "")
    terminal.print(table)
    terminal.print(
        f"At this rate 240 epochs of CIFAR's 50,000 images take tfkd-fast {240 * 50_000 / ours:,.0f} s, "
        "without evaluation."
    )
    terminal.print(
        f"The matrix rate, {rate / 1e12:.2f} TFLOP/s, is that of one large product in "
        f"{figures['precision']}; a step takes {figures['flops_per_image'] / 1e9:.3f} GFLOP an image, padding included."
    )
    saving = bench.Saving(**figures["saving"])
    wait, write = 1e3 * saving.wait, 1e3 * saving.write
    terminal.print(f"A checkpoint holds training up for {wait:,.1f} ms, and is on disk {write:,.1f} ms later.")
    if figures["population"]:
        _show_population(figures, terminal)


def _show_population(figures: Figures, terminal: Terminal) -> None:
    """Print the speeds of several candidates, a row for each number of them and a column for each way."""
    table = Table(title="candidates side by side, images/s of all together", title_justify="left")
    table.add_column("candidates", justify="right")
    ways = list(dict.fromkeys(row["variant"] for rows in figures["population"].values() for row in rows))
    for way in ways:
        table.add_column(way, justify="right")
    for size, rows in figures["population"].items():
        single = rows[0]["images_per_second"]
        speeds = {row["variant"]: row["images_per_second"] for row in rows}
        cells = (f"{speeds[way]:,.0f} ({speeds[way] / single:.2f}x)" if way in speeds else "" for way in ways)
        table.add_row(str(size), *cells)
    terminal.print(table)


def _machine(compute: Compute) -> Figures:
    return {
        "device": compute.device_name,
        "threads": torch.get_num_threads(),
        "precision": compute.precision,
        "version": tfkd_fast.__version__,
        "torch": str(torch.__version__),
    }


def _description(workload: bench.Workload) -> Figures:
    return {
        "model": workload.model.model_dump(),
        "method": workload.method,
        "teacher": workload.teacher and workload.teacher.model_dump(),
        "batch_size": workload.batch_size,
    }


def _rows(measurements: Sequence[bench.Measurement]) -> list[Figures]:
    return [row._asdict() for row in measurements]


def _title(figures: Figures) -> str:
    return f"{figures['device']}, {figures['threads']} threads · {figures['precision']}"


def _name(figures: Figures) -> str:
    """The workload in words."""
    model, teacher = figures["model"], figures["teacher"]
    network = f"{model['name']} x{model['width']:g}"
    by = "" if teacher is None else f" by {teacher['name']} x{teacher['width']:g}"
    method = "" if figures["method"] == "ce" else f" {figures['method']}"
    return f"{network}{method}{by} · batch {figures['batch_size']}"


def _times(cell: Figures) -> str:
    return f"{cell['ratio']:.2f}x ±{cell['spread']:>4.0%}"


def _cells(row: Figures, ours: Figures) -> tuple[str, str, str, str]:
    """Name, speed and spread of a variant, and how many times as fast ours is."""
    times = bench.ratio(bench.Measurement(**ours), bench.Measurement(**row)).median
    return row["variant"], f"{row['images_per_second']:,.0f}", f"{row['spread']:.0%}", f"{times:.2f}x"

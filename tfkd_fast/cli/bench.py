"""`tfkd-fast bench`: its measurements and their tables."""

from typing import Any

import torch
from rich.table import Table

import tfkd_fast
from tfkd_fast import throughput as bench
from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.data import LoaderName, missing_loaders
from tfkd_fast.device import Compute
from tfkd_fast.models import ModelSettings

Figures = dict[str, Any]


def measure(
    compute: Compute,
    model: ModelSettings,
    *,
    batch_size: int,
    steps: int,
    rounds: int,
    compiled: bool,
    candidates: list[int],
) -> Figures:
    """Measure all that the tables show; the result can be written as JSON."""
    workload = bench.Workload(compute, model, batch_size, steps)
    loops = bench.measure_training(workload, rounds, compiled=compiled)
    whole_batches: tuple[LoaderName, ...] = ("resident", "dali")
    installed = [name for name in whole_batches if missing_loaders()[name] is None]
    ways = bench.measure_populations(workload, candidates, ("sequential", "streams", "stacked"), rounds)
    return {
        "device": compute.device_name,
        "threads": torch.get_num_threads(),
        "precision": compute.precision,
        "model": model.model_dump(),
        "batch_size": batch_size,
        "version": tfkd_fast.__version__,
        "torch": str(torch.__version__),
        "training": [row._asdict() for row in loops],
        "loaders": [row._asdict() for row in bench.measure_loaders(workload, installed, rounds)],
        "flops_per_image": bench.flops_per_image(workload),
        "matrix_flops_per_second": bench.matrix_rate(compute),
        "population": {size: [row._asdict() for row in rows] for size, rows in ways.items()},
    }


def show(figures: Figures, terminal: Terminal) -> None:
    """Print the tables: how fast a student trains, and how fast candidates train side by side."""
    on = f"{figures['device']}, {figures['threads']} threads · {figures['precision']} · {figures['model']['name']}"
    table = Table(title=f"{on} · batch {figures['batch_size']}", title_justify="left")
    for heading in ("training step", "images/s", "±", "tfkd-fast", "of the matrix rate"):
        table.add_column(heading, justify="left" if heading == "training step" else "right")
    ours = figures["training"][0]["images_per_second"]
    for row in figures["training"]:
        speed = row["images_per_second"]
        share = speed * figures["flops_per_image"] / figures["matrix_flops_per_second"]
        table.add_row(row["variant"], f"{speed:,.0f}", f"{row['spread']:.0%}", f"{ours / speed:.2f}x", f"{share:.0%}")
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
        f"The matrix rate, {figures['matrix_flops_per_second'] / 1e12:.2f} TFLOP/s, is that of one large product in "
        f"{figures['precision']}; a step takes {figures['flops_per_image'] / 1e9:.3f} GFLOP an image, padding included."
    )
    if figures["population"]:
        show_population(figures, terminal)


def show_population(figures: Figures, terminal: Terminal) -> None:
    """Print the speeds of several candidates, a row for each number of them and a column for each way."""
    table = Table(title="candidates side by side, images/s of all together", title_justify="left")
    table.add_column("candidates", justify="right")
    ways = [row["variant"] for row in next(iter(figures["population"].values()))]
    for way in ways:
        table.add_column(way, justify="right")
    for size, rows in figures["population"].items():
        single = rows[0]["images_per_second"]
        speeds = (row["images_per_second"] for row in rows)
        table.add_row(str(size), *(f"{speed:,.0f} ({speed / single:.2f}x)" for speed in speeds))
    terminal.print(table)

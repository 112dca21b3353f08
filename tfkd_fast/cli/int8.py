"""`export --int8`: what integers of 8 bits cost and save, as a table."""

from collections.abc import Sequence

import torch
from rich.table import Table

from tfkd_fast.cli.terminal import Terminal
from tfkd_fast.device import processor_name
from tfkd_fast.runs.int8 import BATCH, MeasuredExport


def show_measured(files: Sequence[MeasuredExport], terminal: Terminal) -> None:
    """Print a row for each file: its size, its accuracy on the test images, and its speed."""
    threads = torch.get_num_threads()
    table = Table(title=f"ONNX Runtime on {processor_name()}, threads: {threads}", title_justify="left")
    table.add_column("file")
    for heading in ("KiB", "test top-1, %", "ms an image", f"images/s, batch {BATCH}"):
        table.add_column(heading, justify="right")
    for each in files:
        speed = f"{each.milliseconds:.3f}", f"{each.images_per_second:,.0f}"
        table.add_row(each.file.name, f"{each.size / 1024:,.0f}", f"{each.test_top1:.2f}", *speed)
    terminal.say(str(files[-1].file))
    terminal.print(table)

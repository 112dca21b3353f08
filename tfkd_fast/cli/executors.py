"""The options of `study` and `search` that say where their runs train."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tfkd_fast.errors import UserError, shorten

if TYPE_CHECKING:
    from tfkd_fast.study.executors import Executor

JOBS = 64
"""Runs that a cluster is given at a time where --jobs is not (our choice): those beyond its room wait there."""

ExecutorName = Literal["local", "ray", "slurm"]
ExecutorChoice = Annotated[
    ExecutorName,
    typer.Option(
        "--executor", metavar="NAME", help="Where runs train: local (this machine), ray, or slurm; see docs/scale.md."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Address of the Ray cluster; by default the one that this machine is of."),
]
CpusPerRun = Annotated[
    int | None, typer.Option(min=1, max=1_024, help="Cores of a run in a cluster, and its threads; by default 1.")
]
GpusPerRun = Annotated[
    float | None,
    typer.Option(min=0, max=1_024, help="GPUs of a run in a cluster; for ray also a part of one; by default none."),
]
SlurmParameters = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="Parameter of a Slurm job, such as partition or time, in minutes; may be given again."
    ),
]


def choose_executor(
    name: ExecutorName,
    jobs: int | None,
    address: str | None,
    cpus: int | None,
    gpus: float | None,
    slurm: Sequence[str] | None,
) -> "Executor | None":
    """The executor that the options ask for; None for processes of this machine.

    Raises:
        UserError: an option is for another executor, or has no such value there.
    """
    values = {"--address": address, "--cpus-per-run": cpus, "--gpus-per-run": gpus, "--slurm": slurm}
    read_by = {"--address": ("ray",), "--slurm": ("slurm",)}
    for option, value in values.items():
        executors = read_by.get(option, ("ray", "slurm"))
        if value is not None and name not in executors:
            raise UserError(f"{option} is for --executor {' or '.join(executors)}: leave it out for {name}")
    if name == "local":
        return None
    if name == "ray":
        from tfkd_fast.study.executors.ray_tasks import RayExecutor

        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise UserError(f"--gpus-per-run {gpus:g}: Ray takes whole numbers of GPUs above 1")
        return RayExecutor(jobs or JOBS, address=address or "auto", cpus=cpus or 1, gpus=gpus or 0)
    from tfkd_fast.study.executors.slurm_jobs import SlurmExecutor

    if gpus is not None and gpus != int(gpus):
        raise UserError(f"--gpus-per-run {gpus:g}: Slurm takes whole numbers of GPUs")
    return SlurmExecutor(jobs or JOBS, cpus=cpus or 1, gpus=int(gpus or 0), parameters=dict(map(_pair, slurm or ())))


def _pair(assignment: str) -> tuple[str, str]:
    key, sign, value = assignment.partition("=")
    if not (key and sign and value):
        raise UserError(f"--slurm {shorten(assignment)}: write KEY=VALUE, such as partition=gpu")
    return key, value

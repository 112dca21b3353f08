"""Commands and their options. Each is a few calls into the package; what a person reads is printed here."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tfkd_fast import api
from tfkd_fast.cli.bench import measure, show
from tfkd_fast.cli.display import Display
from tfkd_fast.cli.doctor import examine
from tfkd_fast.cli.methods import show_method, show_methods
from tfkd_fast.cli.study import train_study
from tfkd_fast.data import LoaderName
from tfkd_fast.device import resolve_compute
from tfkd_fast.errors import UserError
from tfkd_fast.models import ModelSettings
from tfkd_fast.policies import learn_policy
from tfkd_fast.runs.export import export_student
from tfkd_fast.runs.precedence import set_override
from tfkd_fast.runs.recipe import load_recipe
from tfkd_fast.runs.replay import replay_recipe
from tfkd_fast.steering.control.policy_search import Generation
from tfkd_fast.study import load_study

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a small classifier by distillation without a teacher.",
)
DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data set; for npz, the file.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in --out.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Any value of the recipe.")
]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)]


def main() -> None:
    """Run the command; bad input is one sentence on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A recipe file, or the name of a shipped recipe.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="digits, cifar10, cifar100, svhn, folder or npz.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    method: Annotated[str | None, typer.Option(help="By name: tfkd-fast methods lists them.")] = None,
    model: Annotated[str | None, typer.Option(help="The student, by name.")] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN_DIR", help="A finished run that the student learns from; may be given again."),
    ] = None,
    epochs: Annotated[int | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option()] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, typer.Option()] = None,
    loader: Annotated[LoaderName | None, typer.Option()] = None,
    compile: Annotated[Literal["auto", "on", "off"] | None, typer.Option(help="torch.compile of the step.")] = None,
    population: Annotated[
        Literal["auto", "sequential", "streams", "stacked"] | None,
        typer.Option(help="How candidates train side by side."),
    ] = None,
    ops: Annotated[Literal["auto", "reference", "cpp", "cuda", "triton"] | None, typer.Option()] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default under runs/.")] = None,
    overwrite: Overwrite = False,
    resume: Annotated[Path | None, typer.Option(metavar="RUN_DIR", help="Go on with an unfinished run.")] = None,
    assignments: Assignments = None,
) -> None:
    """Train a student, test it once at the end, and leave a run folder with a report."""
    data = {
        "dataset": dataset,
        "root": str(data_root) if data_root else None,
        "loader": loader,
        "batch_size": batch_size,
    }
    overrides = _given(
        {"method": method, "epochs": epochs, "seed": seed, "device": device, "precision": precision, "ops": ops}
        | {"compile": compile, "population": population}
        | {"data": _given(data), "model": _given({"name": model})}
        | {"teachers": _given({"runs": [str(run_dir) for run_dir in teacher or []] or None})}
    )
    _assign(overrides, assignments)
    if resume is not None:
        if recipe or overrides or out or overwrite or download:
            raise UserError("--resume goes on with the recipe of the run folder and takes no other option")
        out, run = resume, partial(api.resume, resume)
    else:
        resolved = load_recipe(recipe, overrides)
        out = out or Path("runs", f"{resolved.data.dataset}-{resolved.method}-seed{resolved.seed}")
        run = partial(api.train, resolved, out, overwrite=overwrite, download=download)
    _watch(run, out)


@app.command()
def replay(
    run_dir: RunDir,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default under runs/.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another one than the run's own.")] = None,
    overwrite: Overwrite = False,
    assignments: Assignments = None,
) -> None:
    """Train again on all training images, none held out, by the targets that a finished run was taught with."""
    overrides = _given({"seed": seed})
    _assign(overrides, assignments)
    recipe = replay_recipe(run_dir, overrides)
    out = out or Path("runs", f"{run_dir.resolve().name}-replay{'' if seed is None else f'-seed{seed}'}")
    _watch(partial(api.train, recipe, out, overwrite=overwrite), out)


@app.command()
def study(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")],
    out: Annotated[Path | None, typer.Option(help="The study's folder; by default under runs/studies/.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one on CUDA, otherwise one a core.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(min=0, help="Train these instead of the study's; may be given again.")
    ] = None,
    rows: Annotated[list[str] | None, typer.Option(help="Train these alone; may be given again.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    assignments: Assignments = None,
) -> None:
    """Train the rows of a table under several seeds and compare them; given again, go on with what is left."""
    overrides = _given({"data": _given({"root": str(data_root) if data_root else None})})
    _assign(overrides, assignments)
    plan = load_study(name, overrides)
    out = out or Path("runs", "studies", plan.name)
    code = train_study(plan, out, rows=plan.choose(rows or []), seeds=seeds or [], jobs=jobs, download=download)
    raise typer.Exit(code)


@app.command()
def learn(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    out: Annotated[Path, typer.Option(help="A folder for the policy; one with fewer generations goes on.")],
    generations: Annotated[int, typer.Option(min=1, help="Runs of several students each.")] = 10,
    students: Annotated[int, typer.Option(min=4, help="That train side by side, each under a policy of its own.")] = 6,
    data_root: DataRoot = None,
    assignments: Assignments = None,
) -> None:
    """Learn a policy from what becomes of students at the end of whole runs: for controller.policy of other runs."""
    overrides: dict[str, Any] = {"data": {"root": str(data_root)}} if data_root else {}
    _assign(overrides, assignments)

    def on_generation(number: int, generation: Generation) -> None:
        best, mean = max(generation.qualities), sum(generation.qualities) / students
        print(f"generation {number + 1}/{generations} · quality {mean:.3f} in the mean, {best:.3f} at best", flush=True)

    resolved = load_recipe(recipe, overrides)
    path = learn_policy(resolved, out, generations=generations, students=students, on_generation=on_generation)
    print(f"policy {path}")


@app.command("eval")
def evaluate(
    run_dir: RunDir,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option()] = "auto",
) -> None:
    """Test accuracy, NLL and ECE of a finished run, as JSON."""
    print(json.dumps(api.evaluate(run_dir, device=device, precision=precision), indent=2))


@app.command()
def report(run_dir: RunDir) -> None:
    """Write the HTML page of a run again."""
    from tfkd_fast.report import write_report  # imports matplotlib, which takes a second

    print(write_report(run_dir))


@app.command()
def export(run_dir: RunDir) -> None:
    """Write the student of a finished run for torch.export and as ONNX."""
    for path in export_student(run_dir):
        print(path)


@app.command()
def doctor() -> None:
    """What this installation can do, what is missing, and how to get it."""
    console = Console()
    for title, rows in examine().items():
        table = Table(title=title, title_justify="left", title_style="bold")
        for heading in rows[0]:
            table.add_column(heading, overflow="fold")
        for row in rows[1:]:
            table.add_row(*map(escape, row))
        console.print(table)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, with all its options.")] = None,
) -> None:
    """The training methods: where each is from, what it needs, and what can be set."""
    if name is None:
        show_methods(Console())
    else:
        show_method(name, Console())


@app.command()
def bench(
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option()] = "auto",
    model: Annotated[str, typer.Option(help="The student, by name.")] = "vgg8",
    width: Annotated[float, typer.Option(help="Multiplies every channel count.")] = 1.0,
    batch_size: Annotated[int, typer.Option()] = 128,
    steps: Annotated[int, typer.Option(min=2, help="Of one measurement.")] = 10,
    rounds: Annotated[int, typer.Option(min=2, help="Measurements of each variant.")] = 7,
    compiled: Annotated[bool, typer.Option(help="Also beside torch.compile, which takes a minute to compile.")] = True,
    candidates: Annotated[
        list[int] | None, typer.Option(help="Also train so many candidates, in every way; may be given again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
) -> None:
    """Images a second of the training step on this machine, beside plain PyTorch, with the limit beside it."""
    figures = measure(
        resolve_compute(device, precision, "auto"),
        ModelSettings(name=model, width=width),
        batch_size=batch_size,
        steps=steps,
        rounds=rounds,
        compiled=compiled,
        candidates=candidates or [],
    )
    show(figures, Console())
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")


def _watch(train: Callable[..., dict[str, Any]], out: Path) -> None:
    """Train into the run folder `out` before a person's eyes, then write its report."""
    try:
        with Display() as display:
            summary = train(listeners=[display])
    except KeyboardInterrupt:
        print(f"stopped: tfkd-fast train --resume {out} goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None
    from tfkd_fast.report import write_report  # imports matplotlib, which takes a second

    report = write_report(out)
    print(f"test accuracy {summary['test_top1']:.2f} %")
    print(f"report {report}")


def _assign(overrides: dict[str, Any], assignments: list[str] | None) -> None:
    for assignment in assignments or []:
        set_override(overrides, assignment)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Only what was given on the command line."""
    return {key: value for key, value in values.items() if value not in (None, {})}

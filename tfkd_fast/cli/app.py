"""Commands and their options. Each is a few calls into the package, whose results are printed here.

What a command calls is imported in it: neither a help page nor a mistyped option waits for torch.
"""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
import typer.core

import tfkd_fast
from tfkd_fast.cli.devices import is_rank, join_for_command, prints, start, was_restarted
from tfkd_fast.cli.executors import (
    Address,
    CpusPerRun,
    ExecutorChoice,
    GpusPerRun,
    SlurmParameters,
    choose_executor,
)
from tfkd_fast.cli.terminal import Terminal, replace_unknown_characters
from tfkd_fast.errors import Notice, UserError, nearest, shorten
from tfkd_fast.machine import is_lack_of_memory
from tfkd_fast.runs.stop import Stop
from tfkd_fast.served import DeviceName, PrecisionName, check_device, check_precision

if TYPE_CHECKING:
    from tfkd_fast.runs.log import Listener
    from tfkd_fast.training.ranks import Ranks

INSTEAD = {
    "test": "tfkd-fast eval tests a finished run again",
}
"""What does the work of commands that people ask for and that do not exist."""


class Commands(typer.core.TyperGroup):
    """The commands; another one is refused in one sentence."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments begin with, as typer has it.

        Raises:
            UserError: there is none.
        """
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise UserError(
                f"no command {shorten(name)}: {INSTEAD.get(name) or nearest(name, self.list_commands(ctx))}"
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a small classifier by distillation without a teacher.",
)

LoaderName = Literal["auto", "dali", "resident", "torchvision"]
CompileName = Literal["auto", "on", "off"]
PopulationName = Literal["auto", "sequential", "streams", "stacked"]
OpsName = Literal["auto", "reference", "cpp", "cuda", "triton"]
BenchMethodName = Literal["ce", "label-smoothing", "kd"]
FormatName = Literal["json", "csv"]
TableFormatName = Literal["table", "json", "csv"]


def _refusing(check: Callable[[object], object]) -> Callable[[str], Any]:
    """The parser of an option whose values `check` knows."""

    def parse(value: str) -> Any:
        try:
            return check(value)
        except ValueError as error:
            raise UserError(str(error)) from None

    return parse


DEVICE = typer.Option(metavar="DEVICE", parser=_refusing(check_device), help="Device to compute on: auto, cpu or cuda.")
PRECISION = typer.Option(
    metavar="FORMAT", parser=_refusing(check_precision), help="Number format of the passes: auto, fp32 or bf16."
)
MODEL = typer.Option(metavar="NAME", help="Name of the network that is trained.")
OUT = typer.Option(metavar="RUN_DIR", help="Folder of the new run; by default one under runs/.")

DataRoot = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Folder of the data set; for npz, the file.", show_default=False)
]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in --out.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="TABLE.KEY=VALUE",
        help="Set any value of the recipe; may be given again. tfkd-fast options lists them.",
    ),
]
Best = Annotated[bool, typer.Option("--best", help="Take the student of the epoch that was best on held-out images.")]
Ema = Annotated[bool, typer.Option("--ema", help="Take the moving average of the student's weights.")]
RunDir = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.", show_default=False)]


@contextmanager
def faults_in_sentences() -> Iterator[None]:
    """Context manager for a command: bad input is one sentence on standard error and exit code 2."""
    replace_unknown_characters()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", Notice)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            yield
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # of a place that no sentence is written for
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        _fail("there is not enough memory: lower data.batch_size, model.width or the number of candidates")


def _fail(sentence: str) -> NoReturn:
    Terminal(error=True).say(f"error: {sentence}")
    sys.exit(2)


def _show_warning(other: Callable[..., None], message: Warning | str, kind: type[Warning], *place: Any) -> None:
    """Print the sentence of a `Notice`, and give all other warnings to `other`."""
    if issubclass(kind, Notice):
        Terminal(error=True).say(f"note: {message}")
    else:
        other(message, kind, *place)


def _print_version(wanted: bool) -> None:
    if wanted:
        Terminal().say(tfkd_fast.__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before a command; its help is that of the program."""


@app.command()
def train(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the data set: digits, cifar10, folder, npz, imagenet, food101, ..."),
    ] = None,
    data_root: DataRoot = None,
    download: Download = False,
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the training method; tfkd-fast methods lists them.")
    ] = None,
    model: Annotated[str | None, MODEL] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEACHER",
            help="What the student learns from: a finished run, MODEL@FILE for a network with the weights of a file, "
            "or timm/NAME or torchvision/NAME with published weights; may be given again.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Number of images in a batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is random in the run.")] = None,
    device: Annotated[DeviceName | None, DEVICE] = None,
    precision: Annotated[PrecisionName | None, PRECISION] = None,
    loader: Annotated[
        LoaderName | None,
        typer.Option(metavar="NAME", help="Loader of the images: auto, resident, dali or torchvision."),
    ] = None,
    compiling: Annotated[
        CompileName | None,
        typer.Option(
            "--compile", metavar="WHEN", help="Whether torch.compile makes the training step: auto, on or off."
        ),
    ] = None,
    population: Annotated[
        PopulationName | None,
        typer.Option(metavar="HOW", help="How candidates train side by side: auto, sequential, streams or stacked."),
    ] = None,
    ops: Annotated[
        OpsName | None,
        typer.Option(metavar="BACKEND", help="Implementation of the operators: auto, reference, cpp, cuda or triton."),
    ] = None,
    out: Annotated[Path | None, OUT] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Go on with the unfinished run in this folder, by its own recipe."),
    ] = None,
    devices: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Number of processes that the candidates are spread over, each with a GPU where there are any.",
        ),
    ] = 1,
    rank_timeout: Annotated[
        int,
        typer.Option(
            min=1,
            max=1_000_000,
            metavar="SECONDS",
            help="How long these processes wait for each other: longer than an epoch of the candidates of one.",
        ),
    ] = 1800,
    assignments: Assignments = None,
) -> None:
    """Train a student, test it once at the end, and leave a run folder with a report."""
    from tfkd_fast import api
    from tfkd_fast.runs.folder import RunFolder
    from tfkd_fast.runs.recipe import load_recipe

    if devices > 1 and not is_rank():
        start(devices, sys.argv[1:])
    data = {
        "dataset": dataset,
        "root": str(data_root) if data_root and resume is None else None,
        "loader": loader,
        "batch_size": batch_size,
    }
    overrides = _drop_unset(
        {"method": method, "epochs": epochs, "seed": seed, "device": device, "precision": precision, "ops": ops}
        | {"compile": compiling, "population": population}
        | {"data": _drop_unset(data), "model": _drop_unset({"name": model})}
        | {"teachers": _teacher_table(teacher or [])}
    )
    _add_assignments(overrides, assignments)
    if resume is not None and (recipe or overrides or out or overwrite):
        raise UserError(
            "--resume goes on with the recipe of the run folder and takes no other option than --data-root, for a data "
            "set that has moved, --download, --devices and --rank-timeout"
        )
    with join_for_command(rank_timeout) as ranks:
        if resume is not None:
            _go_on(context, ranks, resume, data_root=data_root, download=download)
            return
        chosen = load_recipe(recipe, overrides)
        out = out or Path("runs", f"{chosen.data.dataset}-{chosen.method}-seed{chosen.seed}")
        if was_restarted() and ranks.decide(lambda: RunFolder(out).holds_unfinished(chosen.to_toml())):
            _go_on(context, ranks, out, data_root=None, download=download)
            return
        with _display_run(context, out, visible=prints()) as (listeners, stop, tell):
            summary = api.train(
                chosen, out, overwrite=overwrite, download=download, listeners=listeners, stop=stop, ranks=ranks
            )
        tell(summary)


def _go_on(context: typer.Context, ranks: "Ranks", out: Path, *, data_root: Path | None, download: bool) -> None:
    from tfkd_fast import api
    from tfkd_fast.runs.folder import RunFolder

    if ranks.decide(lambda: RunFolder(out).lacks_report_only):
        if prints():
            Terminal().say(f"the run in {out} is finished; its report was missing and is written now")
            Terminal().say(f"report {_report(out)}")
        return
    with _display_run(context, out, visible=prints()) as (listeners, stop, tell):
        summary = api.resume(out, listeners=listeners, data_root=data_root, download=download, stop=stop, ranks=ranks)
    tell(summary)


@app.command()
def replay(
    context: typer.Context,
    run_dir: RunDir,
    out: Annotated[Path | None, OUT] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the new run; by default that of the replayed one.")] = None,
    overwrite: Overwrite = False,
    assignments: Assignments = None,
) -> None:
    """Train again on all training images, none held out, by the targets that a finished run was taught with."""
    from tfkd_fast import api

    overrides = _drop_unset({"seed": seed})
    _add_assignments(overrides, assignments)
    out = out or Path("runs", f"{run_dir.resolve().name}-replay{'' if seed is None else f'-seed{seed}'}")
    with _display_run(context, out) as (listeners, stop, tell):
        summary = api.replay(run_dir, out, overrides=overrides, overwrite=overwrite, listeners=listeners, stop=stop)
    tell(summary)


@app.command()
def study(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the study; by default one under runs/studies/.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=1_024, help="Number of runs at a time; by default one on CUDA, otherwise one for each core."
        ),
    ] = None,
    executor: ExecutorChoice = "local",
    address: Address = None,
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    slurm: SlurmParameters = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(min=0, max=2**63 - 1, help="A seed to train instead of those of the study; may be given again."),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A row to train instead of all of them; may be given again."),
    ] = None,
    data_root: DataRoot = None,
    download: Download = False,
    assignments: Assignments = None,
) -> None:
    """Train the rows of a table under several seeds and compare them; given again, go on with what is left."""
    from tfkd_fast.cli.study import train_study
    from tfkd_fast.study import load_study

    overrides = _drop_unset({"data": _drop_unset({"root": str(data_root) if data_root else None})})
    _add_assignments(overrides, assignments)
    plan = load_study(name, overrides)
    out = out or Path("runs", "studies", plan.name)
    stop = _stop(context, "the same command again goes on from the last checkpoints")
    cluster = choose_executor(executor, jobs, address, cpus_per_run, gpus_per_run, slurm)
    code = train_study(
        plan,
        out,
        rows=plan.choose(rows or []),
        seeds=seeds or [],
        jobs=jobs,
        executor=cluster,
        download=download,
        stop=stop,
    )
    raise typer.Exit(code)


@app.command()
def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR",
            help="Folders of runs, finished or not; or alone the folder of a study, or a results.json.",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="ROW",
            help="The row that others are compared with; by default that of the study, or of the first run.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the page and the table as Markdown, CSV and JSON; a study has its own."
        ),
    ] = None,
    form: Annotated[
        TableFormatName, typer.Option("--format", metavar="FORMAT", help="What is printed: table, json or csv.")
    ] = "table",
) -> None:
    """Put runs beside each other: means over seeds, paired differences, a page with curves, costs and calibration."""
    from tfkd_fast.cli.compare import compare_runs

    compare_runs(paths, baseline=baseline, out=out, form=form)


@app.command()
def learn(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for the policy; a search in it that has fewer generations goes on."),
    ],
    generations: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Number of generations, each of which trains --students students.")
    ] = 10,
    students: Annotated[
        int, typer.Option(min=4, max=64, help="Number of students in a generation, each under a policy of its own.")
    ] = 6,
    data_root: DataRoot = None,
    assignments: Assignments = None,
) -> None:
    """Learn a policy from what becomes of students at the end of whole runs: for controller.policy of other runs."""
    from tfkd_fast.cli.learn import SearchDisplay
    from tfkd_fast.policies import learn_policy
    from tfkd_fast.runs.recipe import load_recipe

    overrides: dict[str, Any] = {"data": {"root": str(data_root)}} if data_root else {}
    _add_assignments(overrides, assignments)
    resolved = load_recipe(recipe, overrides)
    _stop(context, "the same command again goes on after the last generation").resumable = True
    with SearchDisplay(Terminal(optional=True), generations, students, resolved.epochs) as display:
        path = learn_policy(
            resolved,
            out,
            generations=generations,
            students=students,
            on_generation=display.end_generation,
            on_epoch=display.end_epoch,
        )
    Terminal(optional=True).say(f"policy {path}")


@app.command()
def search(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.", show_default=False),
    ],
    trials: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of trials in all; a search that has fewer goes on.")
    ],
    ranges: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the ranges, where the recipe file has none."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the search; by default one under runs/searches/.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=1_024, help="Number of trials at a time; by default one on CUDA, otherwise one for each core."
        ),
    ] = None,
    executor: ExecutorChoice = "local",
    address: Address = None,
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    slurm: SlurmParameters = None,
    data_root: DataRoot = None,
    download: Download = False,
    assignments: Assignments = None,
) -> None:
    """Search values of a recipe by what held-out images say of students; given again, go on with what is left."""
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise UserError("a search needs Optuna: pip install 'tfkd-fast[search]'")
    from tfkd_fast.cli.search import train_trials
    from tfkd_fast.search.plan import load_search

    overrides = _drop_unset({"data": _drop_unset({"root": str(data_root) if data_root else None})})
    _add_assignments(overrides, assignments)
    plan = load_search(recipe, ranges, overrides)
    out = out or Path("runs", "searches", plan.name)
    stop = _stop(context, "the same command again goes on from the last checkpoints")
    cluster = choose_executor(executor, jobs, address, cpus_per_run, gpus_per_run, slurm)
    code = train_trials(plan, out, trials=trials, jobs=jobs, executor=cluster, download=download, stop=stop)
    raise typer.Exit(code)


@app.command("eval")
def evaluate(
    run_dir: RunDir,
    device: Annotated[DeviceName, DEVICE] = "auto",
    precision: Annotated[PrecisionName, PRECISION] = "auto",
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Print the test accuracy, NLL and ECE of a finished run as JSON."""
    from tfkd_fast import api
    from tfkd_fast.strict_json import to_json

    figures = api.evaluate(run_dir, device=device, precision=precision, data_root=data_root, download=download)
    Terminal().print(to_json(figures, indent=2), soft_wrap=True)


@app.command("predict")
def predict_images(
    run_dir: RunDir,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, and folders of them.", show_default=False)
    ],
    best: Best = False,
    ema: Ema = False,
    top: Annotated[int, typer.Option(min=1, max=100_000, help="Number of classes that are named of each image.")] = 1,
    form: Annotated[
        FormatName, typer.Option("--format", metavar="FORMAT", help="What is printed: json or csv.")
    ] = "json",
    batch_size: Annotated[int, typer.Option(min=1, max=65_536, help="Number of images in a batch.")] = 64,
    device: Annotated[DeviceName, DEVICE] = "auto",
    precision: Annotated[PrecisionName, PRECISION] = "auto",
) -> None:
    """Print the likeliest classes of images by the student of a finished run, as JSON or CSV."""
    from tfkd_fast.cli.predict import as_csv, as_json
    from tfkd_fast.runs.predictions import predict
    from tfkd_fast.runs.stored import load_run

    run, weights = load_run(run_dir), _weights(best=best, ema=ema)
    found = predict(run, images, weights=weights, top=top, batch_size=batch_size, device=device, precision=precision)
    if run.temperature(weights) is None:
        warnings.warn(
            Notice(f"no temperature is known of {run_dir}: probabilities are as sure as its logits"), stacklevel=2
        )
    Terminal().print(as_csv(found) if form == "csv" else as_json(run, weights, found), soft_wrap=True)


@app.command()
def report(
    run_dir: RunDir,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Show the test images that the student is surest of and wrong about.")
    ] = False,
    data_root: DataRoot = None,
) -> None:
    """Write the HTML page of a run again."""
    if not pictures:
        Terminal().say(str(_report(run_dir)))
        return
    from tfkd_fast import api
    from tfkd_fast.report import write_report

    Terminal().say(str(write_report(run_dir, api.mistakes(run_dir, data_root=data_root))))


@app.command()
def export(
    run_dir: RunDir,
    best: Best = False,
    ema: Ema = False,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="Put the normalisation inside: it takes pixels 0..255 as uint8.")
    ] = False,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Divide logits inside by the temperature of the run.")
    ] = False,
    softmax: Annotated[bool, typer.Option("--softmax", help="Give probabilities instead of logits.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Write an ONNX file with 8-bit weights and activations, too, and compare.")
    ] = False,
    data_root: DataRoot = None,
) -> None:
    """Write the student of a finished run for torch.export and as ONNX, compared with it on images of its data set."""
    from tfkd_fast.runs.export import Inside, export_student

    weights, inside = _weights(best=best, ema=ema), Inside(uint8=uint8, temperature=temperature, softmax=softmax)
    for path in export_student(run_dir, weights=weights, inside=inside, data_root=data_root):
        Terminal().say(str(path))
    if int8:
        from tfkd_fast.cli.int8 import show_measured
        from tfkd_fast.runs.int8 import quantise_student

        measured = quantise_student(run_dir, weights=weights, inside=inside, data_root=data_root)
        show_measured(measured, Terminal())


def _weights(*, best: bool, ema: bool) -> Literal["last", "best", "ema"]:
    if best and ema:
        raise UserError("--best and --ema name different weights of the run: leave one of them out")
    return "best" if best else "ema" if ema else "last"


@app.command()
def push(
    run_dir: RunDir,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A repository of the Hugging Face Hub, OWNER/NAME, or a folder, ./NAME or /PLACE/NAME.",
            show_default=False,
        ),
    ],
    folder: Annotated[bool, typer.Option("--folder", help="Take TARGET for a folder, whatever it looks like.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository for its owner only.")] = False,
    licence: Annotated[
        str, typer.Option("--license", metavar="NAME", help="Licence of the weights, such as apache-2.0.")
    ] = "unknown",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
) -> None:
    """Hand a finished run on, with a model card, to the Hugging Face Hub or into a folder."""
    from tfkd_fast.report.push import push as hand_on

    to = Path(target) if folder else target
    place = hand_on(run_dir, to, licence=licence, private=private, overwrite=overwrite, say=Terminal(optional=True).say)
    Terminal().say(f"pushed to {place}")


@app.command()
def doctor() -> None:
    """Show what this installation can do, what is missing, and how to get it."""
    from rich.table import Table

    from tfkd_fast.cli.doctor import examine

    terminal = Terminal()
    for title, rows in examine().items():
        table = Table(title=title, title_justify="left", title_style="bold")
        for heading in rows[0]:
            table.add_column(heading, overflow="fold")
        for row in rows[1:]:
            table.add_row(*row)
        terminal.print(table)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method to show with all that it reads.")] = None,
) -> None:
    """List the training methods, or show where one is from and what it reads."""
    from tfkd_fast.cli.methods import show_method, show_methods

    if name is None:
        show_methods(Terminal())
    else:
        show_method(name, Terminal())


@app.command()
def options(
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="A table of the recipe, such as data or controller.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema of recipe files instead, for editors.")
    ] = False,
) -> None:
    """List every key of a recipe, or of one table, with its values, its default and what it is."""
    from tfkd_fast.cli.options import show_options
    from tfkd_fast.runs.schema import recipe_schema
    from tfkd_fast.strict_json import to_json

    if schema:
        Terminal().print(to_json(recipe_schema(), indent=2), soft_wrap=True)
    else:
        show_options(table, Terminal())


@app.command()
def bench(
    device: Annotated[DeviceName, DEVICE] = "auto",
    precision: Annotated[PrecisionName, PRECISION] = "auto",
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Network that is trained, as --model of train, or all of this package that are written out to measure "
            "against; may be given again. By default vgg8.",
        ),
    ] = None,
    width: Annotated[
        list[float] | None,
        typer.Option(min=0.01, max=8, help="Factor of the channels of every layer; may be given again. By default 1."),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, max=65_536, help="Images in a batch; may be given again. By default 128."),
    ] = None,
    method: Annotated[
        BenchMethodName | None,
        typer.Option(metavar="NAME", help="How the student is taught: ce, label-smoothing, or kd with --teacher."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(metavar="NAME", help="Network of the teacher, at full width.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Training steps in a measurement. By default 10, in a sweep as many as 256 images make.",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=2, max=10_000, help="Measurements of each variant. By default 7, in a sweep 3."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option(help="Whether torch.compile is measured, too, which takes a minute to compile.")
    ] = True,
    candidates: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=64, help="A number of candidates to train in every way side by side; may be given again."
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Measure all networks, widths 0.25, 0.5 and 1, and batches of 16, 64, 128 and 512, "
            "where no others are named.",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file that the figures are written to.")] = None,
) -> None:
    """Measure the images a second of the training step on this machine, beside plain PyTorch and the limit.

    With several networks, widths or batch sizes, or with --sweep, only the training step is measured, beside a careful
    loop written by hand; the worst ratio stands at the end.
    """
    from tfkd_fast.cli import bench as command
    from tfkd_fast.device import resolve_compute
    from tfkd_fast.files import refuse_unwritable, write_bytes
    from tfkd_fast.strict_json import to_json

    if out is not None:
        refuse_unwritable(out)
    workloads = command.workloads(
        resolve_compute(device, precision, "auto"),
        model or (["all"] if sweep else ["vgg8"]),
        width or ([0.25, 0.5, 1.0] if sweep else [1.0]),
        batch_size or ([16, 64, 128, 512] if sweep else [128]),
        method or ("ce" if teacher is None else "kd"),
        teacher,
        steps,
    )
    terminal = Terminal()
    if len(workloads) > 1:
        figures = command.sweep(workloads, rounds or 3, terminal)
        command.show_worst(figures, terminal)
    else:
        figures = command.measure(workloads[0], rounds=rounds or 7, compiled=compiled, candidates=candidates or [])
        command.show(figures, terminal)
    if out is not None:
        write_bytes(out, (to_json(figures, indent=1) + "\n").encode())


@contextmanager
def _display_run(
    context: typer.Context, out: Path, *, visible: bool = True
) -> Iterator[tuple[list["Listener"], Stop, Callable[[dict[str, Any]], None]]]:
    """What shows a run into the folder `out` if it is to be seen, what ends it on a signal, and what tells of its
    summary in the end."""
    from tfkd_fast.cli.display import Display
    from tfkd_fast.runs.folder import RunFolder

    stop = _stop(context, f"tfkd-fast train {RunFolder(out).resume_option} goes on from the last checkpoint")
    if not visible:
        yield [], stop, lambda _: None
        return
    tell = partial(_report_run, out, out.absolute())  # the code of a network may change the current folder
    with Display() as display:
        yield [display], stop, tell


def _stop(context: typer.Context, how_to_go_on: str) -> Stop:
    """What ends the command on a signal; a sentence then tells how to go on."""
    stop = context.ensure_object(Stop)
    stop.how_to_go_on = how_to_go_on
    return stop


def _report_run(out: Path, place: Path, summary: dict[str, Any]) -> None:
    """Write the report of a finished run in the folder `out`, which is in `place`, and print what came of it."""
    report = out / _report(place).name
    tested = "test_top1" in summary
    accuracy = f"test accuracy {summary['test_top1']:.2f} %" if tested else "not tested: tfkd-fast eval does that"
    Terminal(optional=True).say(accuracy)
    Terminal(optional=True).say(f"report {report}")


def _report(run_dir: Path) -> Path:
    """Write the page of a run and return its path."""
    from tfkd_fast.report import write_report

    return write_report(run_dir)


def _add_assignments(overrides: dict[str, Any], assignments: list[str] | None) -> None:
    from tfkd_fast.runs.precedence import set_override

    for assignment in assignments or []:
        set_override(overrides, assignment)


def _teacher_table(teachers: list[str]) -> dict[str, Any]:
    """The `[teachers]` table of what --teacher names: runs, and networks with their weights."""
    from tfkd_fast.files import is_there

    runs: list[str] = []
    networks: list[dict[str, str]] = []
    for teacher in teachers:
        named = re.fullmatch(r"(.*?\.py:\w+|[^@]*)@(.*)", teacher)  # of names of networks, paths alone may have an @
        is_network = named or teacher.startswith(("timm/", "torchvision/", "hf-hub:", "hf_hub:"))
        if is_there(Path(teacher)) or not is_network:
            runs.append(teacher)
        else:
            networks.append({"name": named[1], "weights": named[2]} if named else {"name": teacher})
    return _drop_unset({"runs": runs or None, "networks": networks or None})


def _drop_unset(values: dict[str, Any]) -> dict[str, Any]:
    """The values that were given on the command line."""
    return {key: value for key, value in values.items() if value not in (None, {})}

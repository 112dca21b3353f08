"""Kills commands at random moments, goes on as a person would, and compares with commands that were not disturbed.

    python -m tests.kills --kills 100 --seed 0 [--only train,learn] [--signals]

A command is forked from this process, which has imported all that takes long to import, and killed (SIGKILL) after a
random time or before a random one of its operations on files. With --signals it gets one or two of the signals that end
a run instead, and has to say in one sentence how to go on. Then the folder is gone on with, by the command that the
documents name, which may be killed in its turn. At the end every file that counts has the bytes that it has after the
same command undisturbed, and no part of a file and no process is left.
"""

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import SMALL
from tests.support.runs import without_clocks
from tfkd_fast.cli import main
from tfkd_fast.files import PART, from_checked_text
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.stop import SIGNALS

Command = list[str | Path]

OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
"""The operations of Python (audit events) before which a process is killed, where they concern the folder."""
STUDENTS = ("student.safetensors", "best.safetensors", "recipe.toml")
TRAIN: Command = ["train", "digits", *SMALL, "--epochs", "3", "--set", "data.holdout=0.8"]
MRS: Command = ["--method", "tfkd-mrs", "--set", "selection.interval=1", "--set", "selection.candidates=2"]
MRS += ["--set", "controller.name=ppo"]
CE: Command = [*TRAIN, "--method", "ce"]
DISTIL: Command = ["--method", "kd", "--set", "teachers.views=1"]
BENCH: Command = ["bench", "--device", "cpu", "--width", "0.125", "--batch-size", "8", "--steps", "2", "--rounds", "2"]
BENCH += ["--no-compiled"]
LEARN: Command = ["learn", "digits", "--generations", "2", "--students", "4", "--set", "model.width=0.125"]
LEARN += [part for value in ("epochs=1", "data.holdout=0.8", "target.family=scalar") for part in ("--set", value)]
LEARN += ["--set", "method=tfkd", "--set", "precision=fp32", "--set", "device=cpu"]
STUDY = """
seeds = [0]
baseline = "ce"
[base]
epochs = 2
device = "cpu"
precision = "fp32"
data.batch_size = 128
data.holdout = 0.8
model.width = 0.125
[rows.ce]
method = "ce"
[rows.kd]
method = "kd"
teachers.runs = ["row:ce"]
"""


# A command in a process of its own.


@dataclass(frozen=True)
class Kill:
    """When a process is killed, and by which signals."""

    seconds: float | None = None
    operation: int | None = None
    """The number of an operation, from 0, before which it is killed."""
    signals: Sequence[int] = (signal.SIGKILL,)


def start(command: Command, folder: Path, kill: Kill, printed: Path) -> int:
    """Fork a process that runs the command, and kills itself before an operation on a file of the folder; returns its
    number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["tfkd-fast", *map(str, command)]
    own, done = os.getpid(), 0

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        if event in OPERATIONS and os.getpid() == own and str(arguments[0]).startswith(str(folder)):
            done += 1
            if done - 1 == kill.operation:
                for number in kill.signals:
                    os.kill(own, number)

    sys.addaudithook(audit)
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        printed.with_suffix(".operations").write_text(str(done))
        os._exit(code)


def run(command: Command, folder: Path, kill: Kill, printed: Path) -> int:
    """Run a command; returns its exit code, or -9 if it was killed."""
    child = start(command, folder, kill, printed)
    if kill.seconds is not None:
        time.sleep(kill.seconds)
        for number in kill.signals:
            os.kill(child, number)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


# What is killed, and how one goes on.


def resume_run(folder: Path, command: Command) -> Command | None:
    """How to go on with a run: None if it is whole."""
    run_folder = RunFolder(folder)
    if not run_folder.recipe.exists():
        return command
    if run_folder.summary.exists() and run_folder.report.exists() and not run_folder.next_recipe.exists():
        return None
    return ["train", "--resume", folder]


def repeat(_: Path, command: Command) -> Command | None:
    """How to go on with a command that is to be given again."""
    return command


@dataclass(frozen=True)
class Case:
    """A command in a folder."""

    command: Callable[[Path], Command]
    files: Sequence[str]
    """Those that must have the same bytes in the end, as far as they are there."""
    go_on: Callable[[Path, Command], Command | None] = resume_run
    prepare: Command | None = None
    """A command that comes before, in the same folder, and is not killed."""
    halfway: bool = False
    """Whether the folder is that of a run that was killed after the first epoch."""
    learns_from_source: bool = False
    """Whether it needs the folder `source`, that of a run, beside its own."""
    runs: Sequence[str] = (".",)
    """Run folders whose logs must be the same."""
    weight: float = 2.0
    """How often it is killed, beside the others; those that take long are killed less."""


def replaces(folder: Path) -> bool:
    """Whether the new run of "overwrite" has begun to take the place of the old one."""
    return RunFolder(folder).next_recipe.exists() or "label-smoothing" in read(RunFolder(folder).recipe)


def study(folder: Path) -> Command:
    file = folder.with_suffix(".toml")
    file.write_text(STUDY)
    return ["study", file, "--out", folder, "--jobs", "1"]


STUDY_RUNS = ("runs/ce-seed0", "runs/kd-seed0")

CASES: dict[str, Case] = {
    "train": Case(lambda out: [*CE, "--out", out], STUDENTS, weight=4),
    "mrs": Case(lambda out: [*TRAIN, *MRS, "--out", out], (*STUDENTS, "policy.safetensors"), weight=4),
    "workers": Case(
        lambda out: [*CE, "--loader", "torchvision", "--set", "data.workers=1", "--out", out],
        STUDENTS,
    ),
    "resume": Case(lambda out: ["train", "--resume", out], STUDENTS, halfway=True, weight=4),
    "overwrite": Case(
        lambda out: [*TRAIN, "--method", "label-smoothing", "--out", out, "--overwrite"],
        STUDENTS,
        lambda out, command: resume_run(out, command) if replaces(out) else command,
        prepare=[*TRAIN, *MRS],
        weight=4,
    ),
    "replay": Case(lambda out: ["replay", out.parent / "source", "--out", out], STUDENTS, learns_from_source=True),
    "cache": Case(
        lambda out: [
            *(*TRAIN, *DISTIL, "--teacher", out.parent / "source", f"--set=teachers.cache={out}.cache", "--out", out)
        ],
        (*STUDENTS, "../out.cache"),
        learns_from_source=True,
    ),
    "learn": Case(
        lambda out: [*LEARN, "--out", out], ("policy.safetensors", "generations.jsonl"), repeat, runs=(), weight=4
    ),
    "export": Case(lambda out: ["export", out], (*STUDENTS, "student.onnx", "student.pt2"), repeat, prepare=CE),
    "report": Case(lambda out: ["report", out], STUDENTS, repeat, prepare=CE),
    "eval": Case(lambda out: ["eval", out], (*STUDENTS, "summary.json"), repeat, prepare=CE, weight=1),
    "bench": Case(lambda out: [*BENCH, "--out", out / "figures.json"], (), repeat, prepare=CE, weight=0.3),
    "study": Case(
        study, [f"{run}/{name}" for run in STUDY_RUNS for name in STUDENTS], repeat, runs=STUDY_RUNS, weight=1
    ),
}
"""By name."""


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# An undisturbed command, and one that is killed.


class Kills:
    """The commands that are killed, in a folder of their own."""

    def __init__(self, folder: Path, seed: int, *, signals: bool) -> None:
        self.folder, self.random, self._signals = folder, random.Random(seed), signals
        self.printed = folder / "printed.txt"
        self._undisturbed: dict[str, tuple[Path, float, int]] = {}

    def prepare(self, case: Case, out: Path) -> None:
        """What is in the folder before the command."""
        if case.halfway:
            shutil.copytree(self._halfway(), out)
        elif case.prepare:
            shutil.copytree(self._made(case.prepare), out)

    def undisturbed(self, name: str) -> tuple[Path, float, int]:
        """The folder of a command that was left alone, the seconds that it took and its operations on files."""
        if name not in self._undisturbed:
            whole, case = self.folder / f"whole-{name}" / "out", CASES[name]
            if case.learns_from_source:
                self._source()
            whole.parent.mkdir()
            (whole.parent / "source").symlink_to(self.folder / "source")
            self.prepare(case, whole)
            started = time.monotonic()
            self._finish(case.command(whole), whole)
            seconds = time.monotonic() - started
            operations = int(self.printed.with_suffix(".operations").read_text())
            self._undisturbed[name] = whole, seconds, operations
        return self._undisturbed[name]

    def disturb(self, name: str, most: int) -> int:
        """Kill a command up to `most` times, and go on with it to the end; returns the number of kills."""
        case = CASES[name]
        whole, seconds, operations = self.undisturbed(name)
        out = self.folder / "killed" / "out"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        (out.parent / "source").symlink_to(self.folder / "source")
        self.prepare(case, out)
        command: Command | None = case.command(out)
        kills, wanted, said = 0, self.random.randint(1, min(most, 3)), []
        while kills < wanted and command is not None:
            numbers = self.random.choices(SIGNALS, k=self.random.choice((1, 2))) if self._signals else [signal.SIGKILL]
            if self.random.random() < 0.5:
                kill = Kill(self.random.uniform(0.1 if self._signals else 0.0, seconds), None, numbers)
            else:
                kill = Kill(None, self.random.randrange(operations), numbers)
            code = run(command, out, kill, self.printed)
            if code == 2 and "is at work" in read(self.printed):  # a run of a killed study is still ending
                time.sleep(1)
                continue
            said.append(f"{kill}, code {code}: {' '.join(map(str, command))}\n{read(self.printed)}")
            ended = code != 0
            if ended and self._signals:
                assert code in [128 + number for number in numbers], "\n".join(said)
                assert read(self.printed).count("stopped: ") == 1, "\n".join(said)
                assert "Traceback" not in read(self.printed), "\n".join(said)
            elif ended:
                assert code == -signal.SIGKILL, "\n".join(said)
            kills += ended
            command = case.go_on(out, case.command(out))
        for _ in range(20):  # a study whose runs are still ending is refused for a moment
            if command is None:
                break
            code = run(command, out, Kill(), self.printed)
            if code == 0:
                break
            assert "is at work" in read(self.printed), "\n".join([*said, read(self.printed)])
            time.sleep(1)
        self._compare(case, whole, out, "\n".join(said))
        return kills

    def _compare(self, case: Case, whole: Path, out: Path, said: str) -> None:
        for name in case.files:
            before, after = ((folder / name) for folder in (whole, out))
            assert before.exists() == after.exists(), f"{name}\n{said}"
            if before.exists():
                assert normalised(before, whole) == normalised(after, out), f"{name}\n{said}"
        for run_folder in case.runs:
            assert without_clocks(whole / run_folder) == without_clocks(out / run_folder), said
        for file in out.rglob("*.json"):
            json.loads(file.read_text())
        parts = [file.name for file in out.parent.rglob(f"*{PART}")]
        assert not parts, f"{parts}\n{said}"
        names = [sorted(file.name for file in folder.iterdir()) for folder in (whole, out)]
        assert names[0] == names[1], f"{names}\n{said}"
        left = [pid for pid in processes(out) if gone_after(pid, 15)]
        assert not left, f"{left}\n{said}"

    def _finish(self, command: Command, folder: Path) -> None:
        assert run(command, folder, Kill(), self.printed) == 0, read(self.printed)

    def _made(self, command: Command) -> Path:
        """The folder of a run by a command, made once."""
        out = self.folder / f"made-{abs(hash(tuple(map(str, command))))}"
        if not out.exists():
            self._finish([*command, "--out", out], out)
        return out

    def _source(self) -> None:
        """A run for others to learn from or to replay."""
        out = self.folder / "source"
        if not out.exists():
            self._finish([*TRAIN, "--method", "ce", "--out", out], out)

    def _halfway(self) -> Path:
        """The folder of a run that was killed when its second checkpoint was about to be written."""
        out = self.folder / "halfway"
        if not out.exists():
            child = start([*TRAIN, *MRS, "--epochs", "4", "--out", out], out, Kill(), self.printed)
            while not (out / "checkpoints" / "epoch-00002.ckpt").exists():
                time.sleep(0.001)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return out


def normalised(file: Path, folder: Path) -> bytes:
    """The content of a file without the name of the folder, and of a recipe without its checksum."""
    content = file.read_bytes()
    if file.suffix == ".toml":
        content = from_checked_text(content.decode()).encode()
    return content.replace(str(folder.parent).encode(), b"FOLDER")


def processes(folder: Path) -> list[int]:
    """The other processes that know of the folder, by their commands."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            known = str(folder).encode() in file.read_bytes()
        except OSError:  # it ended
            continue
        if known and int(file.parent.name) != os.getpid():
            found.append(int(file.parent.name))
    return found


def gone_after(pid: int, seconds: float) -> bool:
    """Whether a process still lives after some seconds."""
    deadline = time.monotonic() + seconds
    while Path("/proc", str(pid)).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return Path("/proc", str(pid)).exists()


def warm_up() -> None:
    """Import what takes long to import."""
    import onnxscript  # noqa: F401
    import torch.onnx  # noqa: F401
    import torchvision.transforms.v2  # noqa: F401

    import tfkd_fast.api
    import tfkd_fast.cli.app
    import tfkd_fast.cli.learn
    import tfkd_fast.cli.study
    import tfkd_fast.policies
    import tfkd_fast.report  # noqa: F401

    gc.collect()
    gc.freeze()  # so that no process copies memory to look for garbage in what is imported


def kill_all(kills: int, seed: int, names: Sequence[str], *, signals: bool) -> None:
    """Kill commands so many times in all, and say what came of it."""
    warm_up()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        work, done, counts = Kills(Path(folder), seed, signals=signals), 0, dict.fromkeys(names, 0)
        while done < kills:
            (name,) = work.random.choices(names, [CASES[name].weight for name in names])
            more = work.disturb(name, kills - done)
            done, counts[name] = done + more, counts[name] + more
            print(f"{done} kills, last {name}", flush=True)
    print(f"{done} of {kills} kills went on to the same bits: {counts}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--signals", action="store_true")
    options = parser.parse_args()
    kill_all(options.kills, options.seed, options.only.split(","), signals=options.signals)

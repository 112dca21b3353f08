"""Runs of a study as tasks of a Ray cluster and as jobs of Slurm: the students of this machine's own processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import parent_of, refusal, run
from tests.support.once import Once
from tests.support.runs import without_clocks
from tfkd_fast.cli.executors import choose_executor
from tfkd_fast.errors import UserError
from tfkd_fast.study.executors import RunOrder
from tfkd_fast.study.executors.on_node import make_task, train
from tfkd_fast.study.executors.slurm_jobs import CLUSTER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

STUDY = """
seeds = [0]
baseline = "ce"
[base]
epochs = 6
device = "cpu"
precision = "fp32"
data.batch_size = 32
data.loader = "resident"
model.width = 0.125
[rows.ce]
method = "ce"
"""


@pytest.fixture(scope="module")
def local(once: Once) -> tuple[Path, Path]:
    """The study, and its folder as a process of this machine left it, with one thread."""

    def train(folder: Path) -> None:
        (folder / "study.toml").write_text(STUDY)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            run("study", folder / "study.toml", "--out", folder / "out")

    folder = once("local-study", train)
    return folder / "study.toml", folder / "out"


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """The address of a cluster of this machine, with two cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # names of sockets are short
        options = ("--num-cpus=2", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false")
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait()


def wait_until(true: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trains(folder: Path) -> bool:
    """Whether a run has finished an epoch, and not the last but one."""
    log = folder / "metrics.jsonl"
    return log.exists() and 1 <= log.read_text().count('"event": "epoch"') <= 4


def trainers(folder: Path) -> dict[int, int]:
    """The processes that train the run in a folder, and the parent of each."""
    found = {}
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = arguments.read_bytes().decode().split("\0")
        except OSError:  # it ended
            continue
        if "tfkd_fast" in words and "train" in words and str(folder) in " ".join(words):
            process = int(arguments.parent.name)
            if (parent := parent_of(process)) is not None:
                found[process] = parent
    return found


def start(study: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tfkd_fast", "study", str(study), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
    )


def table(out: Path) -> str:
    """The table without its seconds."""
    return re.sub(r"\| \d+ \|$", "", (out / "table.md").read_text(), flags=re.MULTILINE)


def assert_same(out: Path, local: Path) -> None:
    ours, theirs = (folder / "runs" / "ce-seed0" for folder in (out, local))
    assert (ours / "student.safetensors").read_bytes() == (theirs / "student.safetensors").read_bytes()
    assert without_clocks(ours) == without_clocks(theirs)
    assert table(out) == table(local)


def test_a_task_of_ray_that_is_killed_and_stopped_trains_the_student_of_a_local_run(
    local: tuple[Path, Path], ray_cluster: str, tmp_path: Path
) -> None:
    """Ray begins a task again whose worker was killed, and the same command goes on with what was stopped."""
    study, expected = local
    process = start(study, tmp_path, "--executor", "ray", "--address", ray_cluster)
    folder = tmp_path / "runs" / "ce-seed0"
    wait_until(lambda: trains(folder) or process.poll() is not None)
    ((first, worker),) = trainers(folder).items()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: trainers(folder).keys() - {first} or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate()
    assert printed.decode().endswith("stopped: the same command again goes on from the last checkpoints\n")
    assert process.returncode == 128 + signal.SIGINT
    assert not trainers(folder)
    assert not (folder / "summary.json").exists()
    assert list((folder / "checkpoints").glob("*.ckpt"))
    run("study", study, "--out", tmp_path, "--executor", "ray", "--address", ray_cluster)
    assert_same(tmp_path, expected)


def test_more_than_the_ray_cluster_has_is_refused(local: tuple[Path, Path], ray_cluster: str, tmp_path: Path) -> None:
    study, _ = local
    options = ("--executor", "ray", "--address", ray_cluster, "--gpus-per-run", "0.25")
    assert "the Ray cluster has 0 GPUs, and a run asks for 0.25: lower --gpus-per-run" in refusal(
        "study", study, "--out", tmp_path / "out", *options
    )


def test_a_preempted_job_of_slurm_goes_on_to_the_student_of_a_local_run(
    local: tuple[Path, Path], tmp_path: Path
) -> None:
    """By submitit's executor for one machine, which sends and takes the signals that Slurm's does."""
    study, expected = local
    process = start(study, tmp_path, "--executor", "slurm", **{CLUSTER: "local"})
    folder = tmp_path / "runs" / "ce-seed0"
    wait_until(lambda: trains(folder) or process.poll() is not None)
    (job,) = trainers(folder).values()
    os.kill(job, signal.SIGUSR2)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed.decode()
    assert any("Requeued job" in file.read_text() for file in (tmp_path / "slurm").glob("*_log.out"))
    assert_same(tmp_path, expected)


def test_submitits_debug_executor_runs_a_job_as_it_is_asked_for(
    local: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, expected = local
    monkeypatch.setenv(CLUSTER, "debug")
    run("study", study, "--out", tmp_path, "--executor", "slurm")
    assert_same(tmp_path, expected)


def test_what_no_cluster_can_do_is_one_sentence(
    local: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = local

    def refused(*options: str) -> str:
        return refusal("study", study, "--out", tmp_path / "out", *options)

    assert "--address is for --executor ray: leave it out for local" in refused("--address", "here:1")
    assert "--gpus-per-run is for --executor ray or slurm" in refused("--gpus-per-run", "1")
    assert "Slurm takes whole numbers of GPUs" in refused("--executor", "slurm", "--gpus-per-run", "0.5")
    assert "--slurm 'partition': write KEY=VALUE" in refused("--executor", "slurm", "--slurm", "partition")
    assert "there is no command sbatch" in refused("--executor", "slurm")
    monkeypatch.setenv(CLUSTER, "local")
    assert "Unknown argument 'partitoin'" in refused("--executor", "slurm", "--slurm", "partitoin=gpu")
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert "pip install 'tfkd-fast[ray]'" in refused("--executor", "ray")
    with pytest.raises(UserError, match="whole numbers of GPUs above 1"):
        choose_executor("ray", None, None, None, 1.5, None)


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    order = RunOrder(tmp_path / "recipe.toml", tmp_path / "run", tmp_path / "missing" / "log.txt")
    with pytest.raises(UserError, match=r"does not see .*log\.txt: put the study and its data on storage that all"):
        train(make_task(order, threads=1))
    assert not (tmp_path / "run").exists()


def test_a_cluster_is_imported_only_where_one_is_asked_for(local: tuple[Path, Path]) -> None:
    study, out = local
    code = (
        "import sys\nfrom tfkd_fast.cli import main\n"
        f"sys.argv = ['tfkd-fast', 'study', {str(study)!r}, '--out', {str(out)!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    print(*{name.partition('.')[0] for name in sys.modules})"
    )
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in words
    assert not {"ray", "submitit", "cloudpickle"} & {*words}

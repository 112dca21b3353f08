"""A folder that one process at a time writes into, tried with processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import SMALL, command, refusal, run, sentence_of, wait_for
from tests.support.runs import recipe
from tfkd_fast import api
from tfkd_fast.errors import UserError
from tfkd_fast.runs.lock import lock_folder, refuse_if_busy

HOLD = """
import sys
from pathlib import Path
from tfkd_fast.runs.lock import lock_folder

with lock_folder(Path(sys.argv[1])):
    print("taken", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has taken the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_is_taken_until_its_process_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with holder(folder) as process:
        with (
            pytest.raises(UserError, match=r"another tfkd-fast is at work in .*folder: wait for it"),
            lock_folder(folder),
        ):
            pass
        with pytest.raises(UserError, match="is at work"):
            refuse_if_busy(folder)
        process.kill()
        process.wait()
        refuse_if_busy(folder)
        with lock_folder(folder):
            refuse_if_busy(folder)  # it is we


def test_a_process_that_inherits_the_lock_holds_it(tmp_path: Path) -> None:
    """As the runs of a study do, which may outlive it."""
    with lock_folder(tmp_path) as inherited:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=inherited)
    with pytest.raises(UserError, match="is at work"):
        refuse_if_busy(tmp_path)
    child.kill()
    child.communicate()
    refuse_if_busy(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_worker_that_was_forked_does_not_hold_the_lock(tmp_path: Path) -> None:
    """It may outlive a run that was killed by seconds, in which the run is resumed."""
    read, write = os.pipe()
    started, says = os.pipe()
    with lock_folder(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.write(says, b"!")  # what a forked process has to do was done before it comes here
            os.read(read, 1)  # until the other end is closed
            os._exit(0)
    try:
        assert os.read(started, 1) == b"!"
        refuse_if_busy(tmp_path)
    finally:
        for end in (write, read, started, says):
            os.close(end)
        os.waitpid(child, 0)


def test_looking_whether_a_folder_is_busy_writes_nothing(tmp_path: Path) -> None:
    refuse_if_busy(tmp_path)
    refuse_if_busy(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_no_command_writes_into_a_run_that_another_process_trains(tmp_path: Path) -> None:
    folder, finished = tmp_path / "run", tmp_path / "finished"
    api.train(recipe("ce", epochs=1), finished)
    train = ["train", "digits", *SMALL, "--method", "ce"]
    with subprocess.Popen(
        command(*train, "--epochs", "1000", "--out", folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            wait_for(folder / "checkpoints" / "epoch-00001.ckpt", process)
            busy = f"another tfkd-fast is at work in {folder}: wait for it, or end it first"
            for arguments in (
                [*train, "--out", folder],
                [*train, "--out", folder, "--overwrite"],
                ["train", "--resume", folder],
                ["replay", finished, "--out", folder],
                ["replay", finished, "--out", folder, "--overwrite"],
                ["export", folder],
            ):
                assert busy in refusal(*arguments), arguments
            assert "holds something else than this search" in refusal("learn", "digits", "--out", folder)
            assert "run is not finished, go on with --resume" in refusal("eval", folder)
            assert run("report", folder).stdout.strip() == str(folder / "report.html")
            assert process.poll() is None
        finally:
            process.kill()
    assert (folder / "recipe.toml").read_text().count("epochs = 1000") == 1
    assert "This run is not finished." in (folder / "report.html").read_text()


LEARN = ["learn", "digits", *map("--set={}".format, ["method=tfkd", "target.family=scalar", "model.width=0.125"])]


def test_no_command_writes_into_a_folder_that_another_process_holds(tmp_path: Path) -> None:
    """Whatever it holds, and by whichever of its names it is called."""
    finished, unfinished, empty, link = (tmp_path / name for name in ("finished", "unfinished", "empty", "link"))
    api.train(recipe("ce", epochs=1), finished)
    shutil.copytree(finished, unfinished)
    (unfinished / "summary.json").unlink()
    link.symlink_to(unfinished, target_is_directory=True)
    study = tmp_path / "study.toml"
    study.write_text('seeds = [0]\nbaseline = "ce"\n[rows.ce]\nmethod = "ce"\n')
    train = ["train", "digits", *SMALL, "--method", "ce"]
    tried: dict[Path, list[list[str | Path]]] = {
        finished: [["export", finished], [*train, "--out", finished, "--overwrite"]],
        unfinished: [["train", "--resume", unfinished], ["train", "--resume", link], [*train, "--out", link]],
        empty: [["study", study, "--out", empty], [*LEARN, "--out", empty], [*train, "--out", empty]],
    }
    for folder, commands in tried.items():
        with holder(folder):
            before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for arguments in commands:
                refused = run(*arguments, ok=False)
                assert "is at work" in sentence_of(refused), arguments
                assert not refused.stdout, "nothing is said of what will not be done"
            assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

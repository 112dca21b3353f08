"""Loses ranks of a run at random moments, goes on as a person would, and compares with runs that were not disturbed.

    python -m tests.lost_ranks --faults 50 --seed 0 [--only kill,hang,full]

One of two or three ranks, processes over loopback, is killed (SIGKILL) or stopped (SIGSTOP) after a random time, or
the disk of rank 0 is full from then on. All others have to end in time, one of them with a sentence that says why.
Then the run goes on, in another number of processes where each has candidates of its own, and in the same number where
they share batches. At the end it has the bytes of a run that nobody disturbed.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from tests.kills import resume_run
from tests.support import ranks
from tests.support.ranks import FORKED, Rank, start_ranks
from tests.support.runs import without_clocks
from tfkd_fast.files import PART
from tfkd_fast.runs.precedence import merge

SMALL: dict[str, Any] = {
    "epochs": 3,
    "device": "cpu",
    "precision": "fp32",
    "data": {"dataset": "digits", "batch_size": 53, "per_class": 20},
    "model": {"width": 0.125},
}
RUNS: dict[str, dict[str, Any]] = {
    "candidates": {
        "method": "tfkd-mrs",
        "selection": {"candidates": 3, "interval": 1},
        "controller": {"warmup_epochs": 0},
    },
    "batches": {"method": "tfkd", "target": {"sources": ["memory"]}, "controller": {"name": "ucb", "interval": 1}},
}
"""What the ranks of a run have a part of."""
FAULTS = ("kill", "hang", "full")
FILES = ("student.safetensors", "best.safetensors", "policy.safetensors", "recipe.toml")
FEWEST_BYTES = 8192
"""The disk is full no sooner than this, so that rank 0 can still print."""
SENTENCES = ("did not come", "ended", "did not answer", "fell silent", "cannot write", "connection")
"""What the sentences of lost ranks are known by."""


class Runs:
    """Runs in a folder, disturbed and undisturbed."""

    def __init__(self, folder: Path, seed: int, timeout: int) -> None:
        self.folder, self.random, self.timeout = folder, random.Random(seed), timeout
        self._undisturbed: dict[tuple[str, int], tuple[Path, float]] = {}

    def command(self, kind: str, out: Path) -> list[str]:
        """The command that trains a run."""
        recipe = self.folder / f"{kind}.toml"
        recipe.write_text(tomli_w.dumps(merge(SMALL, RUNS[kind])))
        return ["train", str(recipe), "--out", str(out)]

    def start(self, size: int, command: Sequence[str]) -> list[Rank]:
        """Start the ranks of a command."""
        call = partial(ranks.command, *map(str, command), "--rank-timeout", str(self.timeout))
        return start_ranks(size, self.folder, [call] * size)

    def undisturbed(self, kind: str, size: int) -> tuple[Path, float]:
        """The folder of a run that was left alone, and the seconds that it took."""
        if (kind, size) not in self._undisturbed:
            out = self.folder / f"whole-{kind}-{size}"
            started = time.monotonic()
            ends = [rank.end() for rank in self.start(size, self.command(kind, out))]
            assert [code for code, _ in ends] == [0] * size, ends
            self._undisturbed[kind, size] = out, time.monotonic() - started
        return self._undisturbed[kind, size]

    def disturb(self, fault: str) -> str:
        """Let a fault happen to a run, and go on with it to the end; returns the outcome."""
        kind, size = self.random.choice(list(RUNS)), self.random.choice((2, 3))
        whole, seconds = self.undisturbed(kind, size)
        out = self.folder / "disturbed"
        shutil.rmtree(out, ignore_errors=True)
        lost = 0 if fault == "full" else self.random.randrange(size)
        moment = self.random.uniform(0.0, seconds)
        command = self.command(kind, out)
        said = [f"{fault} of rank {lost} of {size} after {moment:.2f} s of {seconds:.2f} s, {kind}"]
        started = self.start(size, command)
        time.sleep(moment)
        over = not started[lost].process.is_alive()
        if not over:
            _inflict(fault, started[lost], out)
        living = [rank for number, rank in enumerate(started) if number != lost or fault == "full"]
        for rank in living:
            rank.process.join(self.timeout + 60)
        late = [rank for rank in living if rank.process.is_alive()]
        for rank in [started[lost], *late]:
            rank.process.kill()
        ends = [rank.end() for rank in started]
        said += [f"rank {number}: code {code}\n{printed}" for number, (code, printed) in enumerate(ends)]
        assert not late, "\n".join(said)
        outcome = self._outcome([ends[number] for number in range(size) if started[number] in living], said)
        other = self.random.choice((1, 2, 3)) if kind == "candidates" else size
        while (again := resume_run(out, command)) is not None:
            ends = [rank.end() for rank in self.start(other, again)]
            said += [f"{again} by {other}: {ends}"]
            assert [code for code, _ in ends] == [0] * other, "\n".join(said)
        self._compare(whole, out, "\n".join(said))
        return f"{kind}, {fault}: {'too late' if over else outcome}"

    def _outcome(self, ends: Sequence[tuple[int | None, str]], said: list[str]) -> str:
        """What the ranks that live say: nothing, where the run was complete; or one sentence, or the same one by all
        where it is rank 0 that is lost."""
        report = "\n".join(said)
        assert "Traceback" not in report, report
        codes = {code for code, _ in ends}
        assert codes <= {0, 2}, report
        errors = [line for _, printed in ends for line in printed.splitlines() if line.startswith("error: ")]
        if codes == {0}:
            assert not errors, report
            return "the others had finished"
        assert errors, report
        (sentence,) = {next(part for part in SENTENCES if part in line) for line in errors}
        return sentence

    def _compare(self, whole: Path, out: Path, said: str) -> None:
        for name in FILES:
            before, after = ((folder / name) for folder in (whole, out))
            assert before.exists() == after.exists(), f"{name}\n{said}"
            if before.exists():
                assert before.read_bytes() == after.read_bytes(), f"{name}\n{said}"
        assert without_clocks(whole) == without_clocks(out), said
        assert not list(out.rglob(f"*{PART}")), said


def _inflict(fault: str, rank: Rank, out: Path) -> None:
    """Let a fault happen to a process that trains the run in `out`."""
    if fault == "full":
        log = out / "metrics.jsonl"
        most = max(FEWEST_BYTES, log.stat().st_size if log.exists() else 0)
        resource.prlimit(rank.number(), resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    else:
        os.kill(rank.number(), signal.SIGKILL if fault == "kill" else signal.SIGSTOP)


def lose_all(faults: int, seed: int, kinds: Sequence[str], timeout: int) -> None:
    """Let so many faults happen, and say what came of them."""
    first = FORKED.Process(target=int)  # begins the server of processes, which imports what takes long to import
    first.start()
    first.join()
    with tempfile.TemporaryDirectory(prefix="lost-ranks-") as folder:
        runs, outcomes = Runs(Path(folder), seed, timeout), Counter[str]()
        for number in range(faults):
            outcome = runs.disturb(kinds[number % len(kinds)])
            outcomes[outcome] += 1
            print(f"{number + 1} faults, the last {outcome}", flush=True)
    print(f"{faults} faults, after which all runs went on to the same bytes:")
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:4} {outcome}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--timeout", type=int, default=15, help="seconds that ranks wait for each other")
    options = parser.parse_args()
    lose_all(options.faults, options.seed, options.only.split(","), options.timeout)

"""What a process may use of its machine, and within the limits of a container."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tfkd_fast import machine

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 2**20


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of that of the control groups; this process is in /outer/inner of version 2, and in /docker/1
    of both controllers of version 1."""
    (tmp_path / "membership").write_text("5:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/outer/inner\n")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    return tmp_path / "groups"


UNLIMITED = {"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 1"}


def test_where_no_limit_is_set_there_is_the_whole_machine(groups: Path) -> None:
    free = machine.available_memory()
    assert 0 < free <= MEMORY
    assert machine.available_cores() == 64
    write(groups / "outer/inner", UNLIMITED)
    write(groups / "cpu,cpuacct", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})
    assert machine.available_cores() == 64
    assert machine.available_memory() > free / 2


@pytest.mark.parametrize(("quota", "cores"), [("400000", 4), ("250000", 2), ("50000", 1), ("12800000", 64)])
def test_a_quota_of_a_group_or_of_one_around_it_limits_the_cores(groups: Path, quota: str, cores: int) -> None:
    write(groups / "outer/inner", UNLIMITED)
    write(groups / "outer", {"cpu.max": f"{quota} 100000"})
    assert machine.available_cores() == cores
    write(groups / "outer", {"cpu.max": "max 100000"})
    write(groups / "cpu,cpuacct", {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"})  # seen from within
    assert machine.available_cores() == cores


def test_what_is_left_of_the_memory_counts_files_that_can_be_given_back(groups: Path) -> None:
    write(
        groups / "outer/inner",
        {
            "memory.max": f"{64 * MIB}",
            "memory.current": f"{40 * MIB}",
            "memory.stat": f"anon 7\ninactive_file {8 * MIB}",
        },
    )
    assert machine.available_memory() == 32 * MIB
    write(
        groups / "memory/docker/1",
        {
            "memory.limit_in_bytes": f"{32 * MIB}",
            "memory.usage_in_bytes": f"{20 * MIB}",
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * MIB}",
        },
    )
    assert machine.available_memory() == 14 * MIB
    write(groups / "outer", {"memory.max": f"{MIB}", "memory.current": f"{2 * MIB}", "memory.stat": ""})
    assert machine.available_memory() == 0


@pytest.mark.parametrize(
    ("cores", "processes", "most", "threads"),
    [(8, 2, None, 4), (2, 4, None, 1), (8, 2, "3", 3), (8, 2, "16", 4), (8, 2, "0", 4), (8, 2, "4,2", 4)],
)
def test_processes_share_the_cores_and_have_no_more_threads_than_the_user_says(
    cores: int, processes: int, most: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if most is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", most)
    assert machine.threads_per_process(processes) == threads


REPORT = """
import json, os, sys
from tfkd_fast import machine
machine.keep_to_the_time_of_a_container()
import torch
print(json.dumps([machine.available_cores(), machine.available_memory(), torch.get_num_threads()]))
"""


@pytest.fixture
def limited() -> Iterator[list[Path]]:
    """Control groups of this machine with a quota of one core and a limit of memory; skips where none can be made."""
    name, made = f"tfkd-fast-test-{os.getpid()}", []
    try:
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            folders = [Path("/sys/fs/cgroup") / name]
            limits = [(folders[0] / "cpu.max", "100000 100000"), (folders[0] / "memory.max", str(4096 * MIB))]
        else:
            folders = [Path("/sys/fs/cgroup/cpu") / name, Path("/sys/fs/cgroup/memory") / name]
            limits = [
                (folders[0] / "cpu.cfs_quota_us", "100000"),
                (folders[1] / "memory.limit_in_bytes", str(4096 * MIB)),
            ]
        for folder in folders:
            folder.mkdir()
            made.append(folder)
        for file, limit in limits:
            file.write_text(limit)
    except OSError as error:
        for folder in made:
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield folders
    for folder in folders:
        folder.rmdir()


def test_a_process_in_a_container_starts_as_many_threads_as_its_quota_has_time_for(limited: list[Path]) -> None:
    def join() -> None:
        for folder in limited:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    printed = subprocess.run(
        [sys.executable, "-c", REPORT], preexec_fn=join, env=environment, check=True, capture_output=True, text=True
    ).stdout
    cores, memory, threads = json.loads(printed)
    assert (cores, threads) == (1, 1)
    assert memory <= 4096 * MIB


def test_a_lack_of_memory_is_known_by_what_python_and_torch_say_of_it() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**50)  # more than there are addresses
    assert machine.is_lack_of_memory(of_torch.value)
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
    ):
        assert machine.is_lack_of_memory(error)
    assert not machine.is_lack_of_memory(RuntimeError("shapes differ"))
    assert not machine.is_lack_of_memory(ValueError("out of memory"))

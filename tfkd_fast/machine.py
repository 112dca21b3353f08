"""What this process may use of its machine: cores and memory, within the limits of a container."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CONTROL_GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of control groups, of which containers are made, in either version of them."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""The control groups of this process."""


def available_cores() -> int:
    """Number of cores that this process may use: those of its affinity, and no more than its container has time for."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([affinity, *map(_cores_of, _groups("cpu"))])))


def threads_per_process(processes: int) -> int:
    """Number of threads of each of some processes that share the cores, and no more than OMP_NUM_THREADS where it is
    set."""
    share, most = max(1, available_cores() // processes), os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(most)) if most.isdecimal() and int(most) > 0 else share


def keep_to_the_time_of_a_container() -> None:
    """Let OpenMP, before it is loaded, start no more threads than the container has time for.

    It counts the cores of the machine by itself. An OMP_NUM_THREADS that is set stays as it is.
    """
    if any(map(math.isfinite, map(_cores_of, _groups("cpu")))):
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))


def available_memory() -> int:
    """Memory in bytes that this process may still use: on Linux what is available, in a container what is left of its
    limit if that is less; elsewhere all memory."""
    try:
        kibibytes = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        kibibytes = None
    free = 1024 * int(kibibytes[1]) if kibibytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(min([free, *map(_memory_of, _groups("memory"))]))


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had: one of Python, or of torch on any device."""
    words = ("out of memory", "DefaultCPUAllocator")  # of CUDA, whose errors have several classes, and of the CPU
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _groups(controller: str) -> Iterator[Path]:
    """The folders with the limits of the control groups of this process, and of those that they are in."""
    with suppress(OSError):  # not on Linux
        for line in MEMBERSHIP.read_text().splitlines():
            _, controllers, name = line.split(":", 2)  # version 2 names no controllers
            if not controllers or controller in controllers.split(","):
                group = PurePosixPath(name.lstrip("/"))
                yield from (CONTROL_GROUPS / controllers / part for part in (group, *group.parents))


def _cores_of(group: Path) -> float:
    """The cores that the quota of a control group has time for; infinity without one."""
    with suppress(OSError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if quota == "-1" else int(quota) / int(period)
    return math.inf


def _memory_of(group: Path) -> float:
    """The bytes that a control group may still use, with those of files that it can give back; infinity without a
    limit."""
    versions = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit, usage, given_back in versions:
        with suppress(OSError):
            most, used = ((group / name).read_text().strip() for name in (limit, usage))
            files = re.search(rf"^{given_back} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
            return math.inf if most == "max" else max(0, int(most) - int(used) + int(files[1] if files else 0))
    return math.inf

"""How the processes of a study share a machine."""

import pytest

from tfkd_fast import machine
from tfkd_fast.study.executors import local


@pytest.mark.parametrize(
    ("cores", "jobs", "on_cuda", "most", "wanted"),
    [
        (8, None, False, None, (8, 1)),
        (8, None, True, None, (1, 8)),
        (8, 3, False, None, (3, 2)),
        (2, 4, False, None, (4, 1)),
        (8, 2, False, "3", (2, 3)),  # two studies beside each other, say, that are to leave each other their cores
    ],
)
def test_processes_of_a_study_share_the_cores(
    cores: int,
    jobs: int | None,
    on_cuda: bool,
    most: str | None,
    wanted: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    monkeypatch.setattr(local, "available_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if most is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", most)
    executor = local.LocalExecutor(jobs, on_cuda=on_cuda)
    assert (executor.jobs, executor.threads) == wanted

"""How the processes of a study share a machine."""

import pytest

from tfkd_fast.study.executors import local


@pytest.mark.parametrize(
    ("cores", "jobs", "on_cuda", "most", "wanted"),
    [
        (8, None, False, None, (8, 1)),
        (8, None, True, None, (1, 8)),
        (8, 3, False, None, (3, 2)),
        (2, 4, False, None, (4, 1)),
        (8, 2, False, "3", (2, 3)),  # two studies beside each other, say, that are to leave each other their cores
        (8, 2, False, "16", (2, 4)),
        (8, 2, False, "0", (2, 4)),
    ],
)
def test_processes_share_the_cores_and_have_no_more_threads_than_the_user_says(
    cores: int,
    jobs: int | None,
    on_cuda: bool,
    most: str | None,
    wanted: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "available_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if most is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", most)
    executor = local.LocalExecutor(jobs, on_cuda=on_cuda)
    assert (executor.jobs, executor.threads) == wanted

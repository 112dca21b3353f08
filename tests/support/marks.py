"""Which tests `make test` leaves out, those marked `apart`, and which `make test-fast`, those marked `slow`.

`make durations` measures anew what is slow.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[1] / "durations.txt"
"""The tests that took longer than `LIMIT`: seconds and name, a line each."""
LIMIT = 0.5
"""Seconds of a processor, with the fixtures that a test needs and the processes that it starts."""
COMPILING = ("tests/cuda_on_host/", "tests/kernels/", "tests/wheel/")
"""Folders whose tests compile for minutes, in a fresh checkout."""
KEPT = (
    "tests/cli/test_train.py::test_bad_input_is_one_sentence",
    "tests/cli/test_train.py::test_doctor_lists_every_operator_and_says_why_a_backend_is_refused",
    "tests/methods/test_every_method.py::test_it_learns_and_goes_on_from_a_checkpoint[tfkd-mrs]",
    "tests/methods/test_every_step.py::test_no_step_waits_for_the_device[cs-kd]",
    "tests/methods/test_every_step.py::test_no_step_waits_for_the_device[dkd]",
    "tests/methods/test_every_step.py::test_no_step_waits_for_the_device[education]",
    "tests/policies/test_students.py::test_wrong_calls_are_refused",
    "tests/report/test_page.py::test_a_run_with_everything_shows_everything",
    "tests/training/test_resume.py::test_a_run_goes_on_from_any_epoch[tfkd, schedule]",
    "tests/training/test_trainer.py::test_training_never_reads_the_test_images[ce]",
)
"""Tests that stay however long they take, so that the command, the engine and every package are among them."""


APART = (*COMPILING, "tests/cli/test_executors.py")
"""Tests that take long and that few changes concern: kernels of a GPU without one, builds, clusters."""


def mark_apart(items: list[pytest.Item]) -> None:
    """Mark what is in `APART`, and where there is no GPU the operators' cases that emulate or interpret its kernels."""
    for item in items:
        callspec = getattr(item, "callspec", None)  # of a test with parameters
        names = {value for value in callspec.params.values() if isinstance(value, str)} if callspec else set()
        of_kernel = item.nodeid.startswith("tests/ops/") and names & {"cuda", "triton"}
        if item.nodeid.startswith(APART) or (of_kernel and not torch.cuda.is_available()):
            item.add_marker(pytest.mark.apart)


def mark_slow(items: list[pytest.Item]) -> None:
    """Mark what took longer than `LIMIT`, what compiles, and of an operator's tests every case but the first."""
    measured = {line.split(maxsplit=1)[1] for line in FILE.read_text().splitlines()}
    seen = set()
    for item in items:
        of_operator = item.nodeid.startswith("tests/ops/")
        callspec = getattr(item, "callspec", None)  # of a test with parameters
        backend = callspec.params.get("backend") if callspec else None
        case = item.nodeid.partition("[")[0], backend
        repeated = of_operator and case in seen
        seen.add(case)
        compiles = item.nodeid.startswith(COMPILING) or (backend == "cuda" and not torch.cuda.is_available())
        if (compiles or repeated or item.nodeid in measured) and not item.nodeid.startswith(KEPT):
            item.add_marker(pytest.mark.slow)


class Durations:
    """A plugin that measures every test and writes `FILE`.

    In processor time, which other work on the machine does not change. A fixture that several tests share counts,
    for each of its parameters, for each of them: whichever of them runs first has to wait for it.
    """

    def __init__(self) -> None:
        self._of_fixture: dict[tuple[str, str, int], float] = defaultdict(float)
        """Where it is defined, its name, and which of its parameters it has -> the longest that it took."""
        self._of_test: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Iterator[None]:
        started = _now()
        try:
            return (yield)
        finally:
            name = fixturedef.baseid, fixturedef.argname, getattr(request, "param_index", 0)
            self._of_fixture[name] = max(self._of_fixture[name], _now() - started)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        started = _now()
        try:
            return (yield)
        finally:
            names = getattr(item, "fixturenames", ())
            callspec = getattr(item, "callspec", None)
            parameters = callspec.indices if callspec else {}
            fixtures = (
                seconds
                for (base, name, parameter), seconds in self._of_fixture.items()
                if name in names and parameter == parameters.get(name, 0) and item.nodeid.startswith(base)
            )
            item.user_properties.append(("processor seconds", _now() - started + sum(fixtures)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """In the process that all tests report to."""
        if report.when == "call":
            self._of_test[report.nodeid] = dict(report.user_properties).get("processor seconds", 0.0)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):  # no worker of pytest-xdist
            lines = {line.split(maxsplit=1)[1]: line for line in FILE.read_text().splitlines()}
            for name, seconds in self._of_test.items():
                lines[name] = f"{seconds:.1f} {name}" if seconds > LIMIT else ""
            FILE.write_text("".join(f"{lines[name]}\n" for name in sorted(lines) if lines[name]))


def _now() -> float:
    """Seconds of a processor that this process and those that it waited for have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

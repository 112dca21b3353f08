"""`pytest --benchmark`, from the root of the project: the benchmarks alone, reduced to a few minutes.

Without it pytest-benchmark's own options serve: `pytest benchmarks --benchmark-save NAME`, `--benchmark-compare`,
`--benchmark-only`.
"""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark",
        action="store_true",
        help="run the benchmarks alone, reduced to a few minutes, and print a comparison of throughput",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--benchmark needs pytest-benchmark: pip install 'tfkd-fast[benchmarks]'")
    from benchmarks import recorded

    recorded.now.effort = recorded.REDUCED
    if config.args_source is config.ArgsSource.TESTPATHS:  # nothing else was named
        config.args = [str(Path(__file__).parent)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from benchmarks.recorded import throughput

    if not throughput:
        return
    terminalreporter.section("throughput")
    for case in dict.fromkeys(case for case, _, _ in throughput):
        terminalreporter.write_line(case)
        for _, variant, speed in (row for row in throughput if row[0] == case):
            terminalreporter.write_line(f"    {variant:<56} {speed}")

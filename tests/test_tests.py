"""What holds for the tests themselves."""

import ast
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent


def imported(file: Path) -> set[str]:
    """The full names of the modules that a file imports, or imports names of."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            modules |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def test_no_test_imports_a_test() -> None:
    """What two tests share is in a module of its own, which pytest does not collect."""
    files = [*HERE.rglob("*.py")]
    assert len(files) > 100
    tests = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    tests = {name for name in tests if name.rpartition(".")[2].startswith(("test_", "conftest"))}
    for file in files:
        assert not imported(file) & tests, file

"""What holds for the tests themselves."""

import ast
import re
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


README = (HERE / "README.md").read_text()


def files_of(cell: str) -> list[str]:
    """The names in backquotes, of which `a/{b,c}` stands for two."""
    names = []
    for name in re.findall(r"`([^`]+)`", cell):
        head, _, rest = name.partition("{")
        endings, _, tail = rest.partition("}")
        names += [head + ending + tail for ending in endings.split(",")] if rest else [name]
    return names


def behaviours() -> list[tuple[list[str], list[str]]]:
    """The rows of the table: tests that are named for a behaviour, and modules that have no test of their own."""
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("| `")]
    return [(files_of(row[0]), files_of(row[2])) for row in rows]


def own_test(module: str) -> str:
    """The test that is a module's by its name."""
    folder, _, name = module.rpartition("/")
    return f"{'ops' if folder == 'kernels' else folder}/test_{name}.py".lstrip("/")


def test_every_module_has_its_test_and_every_test_its_place() -> None:
    package = ROOT / "tfkd_fast"
    files = [*package.rglob("*.py"), *(package / "kernels").glob("*.py")]
    modules = {str(file.relative_to(package).with_suffix("")) for file in files if not file.stem.startswith("__")}
    tests = {str(file.relative_to(HERE)) for file in HERE.rglob("test_*.py")}
    covering = [test for row, _ in behaviours() for test in row]
    covered = [module for _, row in behaviours() for module in row]
    with_own = {module for module in modules if own_test(module) in tests}
    named = set(covering) | {own_test(module) for module in with_own}
    assert len(modules) > 150
    assert set(covering) <= tests, "the table names tests that there are not"
    assert set(covered) <= modules, "the table names modules that there are not"
    assert not set(covered) & with_own, "the table names modules that have a test of their own"
    assert len(covered) == len(set(covered)), "the table names a module twice"
    assert modules - set(covered) - with_own == set(), "these modules have no test"
    assert tests - named == set(), "these tests are named for no module, and not in the table"

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


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_names() -> set[str]:
    """All names with an underscore that the package defines: of functions, classes, attributes and variables."""
    names: set[str] = set()
    for file in [*(ROOT / "tfkd_fast").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return {name for name in names if is_private(name)}


def private_accesses(file: Path, names: set[str]) -> list[str]:
    """Where a test reads, sets or imports one of these names of an object that is not its own."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in names:
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found += [] if own else [f"{file.name}:{node.lineno} .{node.attr}"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "setattr",
            "getattr",
            "delattr",
        ):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            found += [f"{file.name}:{node.lineno} {text}" for text in texts if text.rpartition(".")[2] in names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfkd_fast"):
            found += [f"{file.name}:{node.lineno} {each.name}" for each in node.names if is_private(each.name)]
    return found


def test_tests_use_public_names() -> None:
    names = private_names()
    assert len(names) > 100
    assert [place for file in HERE.rglob("*.py") for place in private_accesses(file, names)] == []

"""The documents say what is there: links, files, commands, modules, operators; their programs run."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image

import tfkd_fast
from tfkd_fast import ops

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "tests" / "README.md"]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its programs."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Those of headings, as GitHub and MkDocs make them, and those that a page sets itself."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([\w-]+)">', page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[\w-]+)?\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor[1:] in anchors(file), target + anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_and_paths_of_the_tree_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)|^make ([\w-]+)", text, re.MULTILINE))
    assert {first or second for first, second in named} <= targets
    assert not re.search(r"/(work|root|home|tmp)/", text)


def test_the_readme_is_short_and_its_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 110
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert '"epochs": 8' in program
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(
        compile(
            program.replace('"epochs": 8', '"epochs": 1, "device": "cpu", "model": {"width": 0.125}'),
            "README.md",
            "exec",
        ),
        names,
    )
    assert names["logits"].grad is not None  # type: ignore[attr-defined]


def test_the_programs_of_the_training_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    program = "".join(programs).replace('"epochs": 8', '"epochs": 1, "device": "cpu", "model": {"width": 0.125}')
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"pixels": torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)}
    exec(compile(program, "training.md", "exec"), names)
    assert len(names["names"]) == 3  # type: ignore[arg-type]


def test_the_program_about_images_of_ones_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-images.md").read_text(), re.DOTALL)
    small = '"epochs": 1, "device": "cpu", "model": {"width": 0.125}'
    monkeypatch.chdir(tmp_path)
    for number in range(16):
        file = Path("photos", ("train", "test")[number % 4 == 0], "ab"[number // 8], f"{number}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80 + number, 120), (200 * (number // 8), 100, 9 * number)).save(file)
    names: dict[str, dict[str, object]] = {}
    exec(compile(program.replace('"epochs": 8', small), "own-images.md", "exec"), names)
    assert names["summary"]["dataset"] == "python"


def tree() -> set[str]:
    """The files of the tree in docs/architecture.md; folders end in a slash."""
    (text,) = re.findall(r"^## The tree\n\n```\n(.*?)^```", ARCHITECTURE, re.DOTALL | re.MULTILINE)
    found, folders = set(), []
    for line in text.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        folders = folders[: len(indent) // 2]
        assert line.endswith("/") or len(line.split(maxsplit=1)) == 2, f"{name} has no words beside it"
        if name.endswith("/"):
            folders.append(name)
            found.add("".join(folders))
        else:
            found.add("".join(folders) + name)
    return found


def test_the_tree_has_every_module_and_nothing_else() -> None:
    package = ROOT / "tfkd_fast"
    modules = [file for folder in (package, package / "kernels") for file in folder.rglob("*.py")]
    names = {str(file.relative_to(ROOT)) for file in modules if "native" not in file.parts}
    top = {"tfkd_fast/__init__.py", "tfkd_fast/__main__.py"}
    expected = {name for name in names if not name.endswith("__init__.py")} | top
    folders = {name.rpartition("/")[0] + "/" for name in names}
    assert tree() == expected | folders


def test_the_reference_has_every_operator() -> None:
    page = (ROOT / "docs" / "reference" / "ops.md").read_text()
    assert {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)} == set(ops.__all__)


def test_decisions_are_numbered_without_gaps() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text()
    numbers = [(int(anchor), int(number)) for anchor, number in re.findall(r'<a id="d(\d+)"></a>\*\*(\d+)\. ', text)]
    assert all(anchor == number for anchor, number in numbers)
    assert sorted(number for _, number in numbers) == list(range(1, len(numbers) + 1))
    assert text.count("<a id=") == len(numbers)


def test_versions_and_extras_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = dict(re.findall(r"^(\w+): (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert project["version"] == citation["version"] == tfkd_fast.__version__
    assert project["license"] == citation["license"]
    assert f"release will be {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    for page in PAGES:
        for extra in re.findall(r"tfkd-fast\[(\w+)\]", page.read_text()):
            assert extra in project["optional-dependencies"]

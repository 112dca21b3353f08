"""What is in a wheel, and that it is the same however the source came."""

import shutil
import subprocess
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.wheel.builds import ROOT, build, call_backend

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree, not an installation")


def built(kind: str, source: Path) -> Path:
    """A wheel or an sdist, without the compiled parts."""
    run = build(kind, source, CXX="/nonexistent/c++")
    assert run.returncode == 0, run.stderr
    (file,) = (source / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


def installed_by(wheel: Path) -> Counter[str]:
    """The files that a wheel installs, and how often it holds each."""
    with zipfile.ZipFile(wheel) as archive:
        return Counter(name for name in archive.namelist() if ".dist-info/" not in name)


def sources_in(folder: Path) -> set[Path]:
    return {file.relative_to(folder) for file in (folder / "csrc").rglob("*") if file.is_file()}


def test_the_kernels_are_installed_once_however_the_source_came(source: Path, tmp_path: Path) -> None:
    """With the link to their folder, from an sdist, and with the text file that git makes where there are no links."""
    unlinked = tmp_path / "unlinked"
    shutil.copytree(source, unlinked, symlinks=True)
    (unlinked / "tfkd_fast" / "kernels").unlink()
    (unlinked / "tfkd_fast" / "kernels").write_text("../kernels")

    with tarfile.open(built("sdist", source)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert sources_in(unpacked) == sources_in(ROOT)

    files = installed_by(built("wheel", source))
    assert set(files.values()) == {1}
    kernels = {f"tfkd_fast/kernels/{file.name}" for file in (ROOT / "kernels").glob("*.py")}
    assert {name for name in files if "kernels" in name} == kernels
    assert installed_by(built("wheel", unpacked)) == files
    assert installed_by(built("wheel", unlinked)) == files


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_source_distribution_holds_the_repository_and_needs_no_torch(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    names = {name for name in listed.stdout.split("\0") if name}
    copy = tmp_path / "copy"
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    (copy / "tfkd_fast" / "native").mkdir()
    (copy / "tfkd_fast" / "native" / "libtfkd_fast.so").touch()
    (copy / "tests" / "__pycache__").mkdir()
    (copy / "tests" / "__pycache__" / "left.pyc").touch()

    asked = {"PYTHONPATH": f"{hide_torch(tmp_path / 'hidden')}"}
    for kind, needed in (("sdist", "[]"), ("wheel", "['torch>=2.11']")):
        hook = call_backend(f"get_requires_for_build_{kind}()", copy, **asked)
        assert hook.stdout.splitlines()[-1:] == [needed], hook.stdout + hook.stderr
    with tarfile.open(built("sdist", copy)) as archive:
        held = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    assert names - held == {"tfkd_fast/kernels"}  # the link, of which there is the folder
    made = {name for name in held - names if "egg-info" not in name and not name.startswith("tfkd_fast/kernels/")}
    assert made == {"PKG-INFO", "setup.cfg"}


def hide_torch(folder: Path) -> Path:
    """A folder for PYTHONPATH that lets setup.py find no torch, as in an environment that has none."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "every = m.distributions\n"
        "m.distributions = lambda **asked: () if asked.get('name') == 'torch' else every(**asked)\n"
    )
    return folder

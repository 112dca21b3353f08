"""What is in a wheel, and that it is the same however the source came."""

import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.wheel.builds import ROOT, build

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

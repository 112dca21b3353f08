"""Fuzzing: whatever is in a recipe or in a file, it is read as it was written or refused in one sentence.

`TFKD_FAST_FUZZ=1000 pytest tests/test_fuzz.py` tries a thousand random examples of each kind.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.data_files import arrays
from tests.support.fuzz import damages, fuzzed, outcome
from tests.support.once import Once
from tests.support.runs import recipe
from tfkd_fast import api
from tfkd_fast.data import DataSettings, open_dataset
from tfkd_fast.data.images import FileImages, read_rgb
from tfkd_fast.errors import UserError
from tfkd_fast.methods import METHODS
from tfkd_fast.methods.distpro.pathways import Pathway
from tfkd_fast.methods.distpro.process import Process, load_process
from tfkd_fast.models import ModelSettings
from tfkd_fast.report.run import read_run
from tfkd_fast.runs.checkpoint import load_checkpoint
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.precedence import set_override
from tfkd_fast.runs.recipe import Recipe, core_fields, load_recipe, make_recipe, read_recipe
from tfkd_fast.runs.stored import load_run
from tfkd_fast.runs.student import load_student, read_student_header
from tfkd_fast.settings import table_forms
from tfkd_fast.study import load_study


def known_keys() -> list[tuple[str, ...]]:
    """Every key of every table of every method."""
    found: set[tuple[str, ...]] = set()
    fields = core_fields() | {
        key: field for entry in METHODS.values() for key, field in entry.settings.model_fields.items()
    }
    for name, field in fields.items():
        forms = table_forms(field)
        found |= {(name,)} | {(name, key) for key in (forms.known() if forms else ())}
    return sorted(found)


KEYS = known_keys()
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63 - 1, 2**63, 10**400, 1e308, 1e-320, 0.5, float("inf"), float("nan")]),
)
WORDS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "auto", "none", "digits", "npz", "folder", "ce", "kd", "full", "ppo", "fixed", "dali", "a" * 5000]
    ),
    st.sampled_from(sorted(METHODS)),
)
VALUES = st.recursive(
    st.one_of(NUMBERS, st.booleans(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
KEY = st.one_of(st.sampled_from(KEYS), st.tuples(st.text(min_size=1, max_size=10)), st.just(("options",)))
TABLES = st.lists(st.tuples(KEY, VALUES), max_size=5)


def nested(assignments: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for path, value in assignments:
        place = table
        for key in path[:-1]:
            inner = place.setdefault(key, {})
            place = inner if isinstance(inner, dict) else place
        place[path[-1]] = value
    return table


def assert_sound(made: Recipe | UserError) -> None:
    """A recipe that was taken is written and read again as it is."""
    if isinstance(made, Recipe):
        assert make_recipe(made.table()) == made


@fuzzed(150)
@given(assignments=TABLES, method=st.sampled_from(sorted(METHODS)))
def test_tables_are_a_recipe_or_a_sentence(assignments: list[tuple[tuple[str, ...], Any]], method: str) -> None:
    assert_sound(outcome(lambda: load_recipe(None, nested([(("method",), method), *assignments]))))


@fuzzed(100)
@given(
    assignments=st.lists(
        st.tuples(
            st.one_of(KEY.map(".".join), st.text(max_size=20)),
            st.one_of(
                VALUES.map(repr), st.text(max_size=40), st.sampled_from(["[" * 9999, "1" * 5000, "{a=1}\nb=2", "nan"])
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_assignments_of_the_command_line_are_a_recipe_or_a_sentence(assignments: list[tuple[str, str]]) -> None:
    def load() -> Recipe:
        overrides: dict[str, Any] = {}
        for key, value in assignments:
            set_override(overrides, f"{key}={value}")
        return load_recipe(None, overrides)

    assert_sound(outcome(load))


RECIPE = tomli_w.dumps(recipe("tfkd-mrs").table()).encode()
STUDY = b"""seeds = [0, 1]
baseline = "ce"
[base]
epochs = 2
[rows.ce]
method = "ce"
[rows.again]
replay = "ce"
[contrasts]
one = [["again", "ce"]]
"""


@fuzzed(60)
@given(content=damages(RECIPE))
def test_a_recipe_file_is_a_recipe_or_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.toml").write_bytes(content)
    assert_sound(outcome(lambda: load_recipe(str(tmp_path / "recipe.toml"))))


@fuzzed(40)
@given(content=damages(STUDY))
def test_a_study_file_is_a_study_or_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.toml").write_bytes(content)
    outcome(lambda: load_study(str(tmp_path / "study.toml")))


@fuzzed(60)
@given(values=st.dictionaries(st.sampled_from(["seeds", "baseline", "base", "rows", "contrasts", "x"]), VALUES))
def test_tables_are_a_study_or_a_sentence(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "study.toml").write_text(tomli_w.dumps(values), "utf-8", "surrogatepass")
    outcome(lambda: load_study(str(tmp_path / "study.toml")))


# Files that this package wrote.


@pytest.fixture(scope="module")
def finished(once: Once) -> Path:
    """A run of one epoch, with its checkpoint, policy and everything else."""

    def make(folder: Path) -> None:
        settings = recipe("tfkd-mrs", epochs=1, controller={"name": "ppo"}, selection={"candidates": 2})
        api.train(settings, folder / "run")

    return once("fuzzed run", make) / "run"


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return repr(one) == repr(other)  # NaN is like NaN


def read_student(path: Path) -> Any:
    header = read_student_header(path)
    model = load_student(path, ModelSettings(name=header.name, width=header.width), len(header.classes), (1, 32, 32))
    return header, model.state_dict()


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "student": ("student.safetensors", read_student),
    "policy": ("policy.safetensors", lambda path: load_policy_tensors(path)),
    "checkpoint": ("checkpoints/epoch-00001.ckpt", load_checkpoint),
    "log": ("metrics.jsonl", lambda path: load_run(path.parent).events),
    "report": ("metrics.jsonl", lambda path: read_run(path.parent)),
    "summary": ("summary.json", lambda path: RunFolder(path.parent).read_summary()),
    "recipe": ("recipe.toml", lambda path: read_recipe(RunFolder(path.parent))),
}


def load_policy_tensors(path: Path) -> Any:
    from tfkd_fast.steering.control.policy_file import FILES

    return FILES.read(path)


@pytest.mark.parametrize("kind", READERS)
@fuzzed(40)
@given(data=st.data())
def test_a_damaged_file_of_a_run_is_refused_or_nothing_differs(
    finished: Path, tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    name, read = READERS[kind]
    path = tmp_path / name
    for file in ("recipe.toml", "metrics.jsonl", "summary.json", name):  # what the reader looks at beside it
        path.parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((finished / file).read_bytes())
    right = read(finished / name)
    path.write_bytes(data.draw(damages((finished / name).read_bytes())))
    found = outcome(lambda: read(path))
    assert isinstance(found, UserError) or same(found, right) or kind in ("log", "report"), found
    if not isinstance(found, UserError) and kind == "log":
        assert same(found, right[: len(found)])  # a last line that was cut off is left out


PROCESS = Process(
    (Pathway(0, 0, "identity-1x1", 0.0, 0.0), Pathway(1, 1, "identity-1x1", 0.5, 0.5)),
    torch.tensor([0.0, 0.5], dtype=torch.float64),
    torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
)
PROCESS_BYTES = PROCESS.to_bytes("vgg13", "vgg8")


@fuzzed(40)
@given(content=damages(PROCESS_BYTES))
def test_a_damaged_process_is_refused_or_nothing_differs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "process.safetensors").write_bytes(content)
    found = outcome(lambda: load_process(tmp_path / "process.safetensors"))
    assert isinstance(found, UserError) or same(
        (found.pathways, found.times, found.alpha), (PROCESS.pathways, PROCESS.times, PROCESS.alpha)
    )


# Files of others.


def npz_bytes(save: Callable[..., None]) -> bytes:
    content = io.BytesIO()
    save(content, **arrays())
    return content.getvalue()


NPZ = {"plain": npz_bytes(np.savez), "compressed": npz_bytes(np.savez_compressed)}


@pytest.mark.parametrize("kind", NPZ)
@fuzzed(60)
@given(data=st.data())
def test_a_damaged_npz_file_is_refused_or_nothing_differs(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    path = tmp_path / "data.npz"

    def read() -> Any:
        dataset = open_dataset(DataSettings(dataset="npz", root=str(path)))
        parts = dataset.read_train(), dataset.read_test()
        return dataset.classes, [(part.all_images(), part.labels) for part in parts]

    path.write_bytes(NPZ[kind])
    right = read()
    path.write_bytes(data.draw(damages(NPZ[kind])))
    found = outcome(read)
    assert isinstance(found, UserError) or same(found, right)


def image_bytes(form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, form, **options)
    return content.getvalue()


IMAGES = {
    "png": image_bytes("PNG"),
    "jpg": image_bytes("JPEG"),
    "gif": image_bytes("GIF"),
    "bmp": image_bytes("BMP"),
    "webp": image_bytes("WEBP"),
    "tif": image_bytes("TIFF"),
    "lzw.tif": image_bytes("TIFF", compression="tiff_lzw"),
    "ppm": image_bytes("PPM"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged metadata
@pytest.mark.parametrize("kind", IMAGES)
@fuzzed(25)
@given(data=st.data())
def test_a_damaged_image_is_read_or_refused_by_name(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """A cut one never passes; of the formats only PNG has checksums that tell a flipped bit."""
    path = tmp_path / f"image.{kind}"
    path.write_bytes(IMAGES[kind])
    right = read_rgb(path).tobytes()
    content = data.draw(damages(IMAGES[kind]))
    path.write_bytes(content)
    found = outcome(lambda: FileImages([path], torch.zeros(1, dtype=torch.int64), 32).image(0))
    if isinstance(found, UserError):
        assert str(path) in str(found)
    else:
        assert found.shape == (3, 32, 32)
        if kind == "png" or IMAGES[kind].startswith(content):
            assert read_rgb(path).tobytes() == right

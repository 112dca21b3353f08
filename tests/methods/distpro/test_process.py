"""A process between its moments, on another pair of networks, and as a file."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.methods.distpro.steps import shapes
from tfkd_fast.errors import UserError
from tfkd_fast.methods.distpro.pathways import Pathway, PathwaySettings, biased_softmax, find_pathways
from tfkd_fast.methods.distpro.process import FILE, Process, load_process

NEAREST = (0, 1, 3, 4)
"""The stage of a VGG that lies nearest to each of a residual network."""


def pathways(teacher: str = "vgg13", student: str = "vgg8", **settings: object) -> tuple[Pathway, ...]:
    return find_pathways(shapes(teacher), shapes(student), PathwaySettings(**settings))


def searched(*transforms: str) -> Process:
    """Found for a VGG-13 and a VGG-8."""
    of = pathways(transforms=transforms) if transforms else pathways()
    times = torch.tensor([0.0, 0.3, 0.4, 1.0], dtype=torch.float64)
    return Process(of, times, torch.randn(4, len(of), generator=torch.Generator().manual_seed(0)))


def test_a_process_is_exact_at_its_moments_and_straight_between_them() -> None:
    process = searched()
    for time, alpha in zip(process.times.tolist(), process.alpha, strict=True):
        assert torch.equal(process.at(time), alpha)
    expected = 0.25 * process.alpha[2] + 0.75 * process.alpha[3]
    torch.testing.assert_close(process.at(0.85), expected, rtol=1e-6, atol=1e-6)


def test_before_the_first_moment_and_after_the_last_a_process_stands_still() -> None:
    process = Process(pathways(), torch.tensor([0.2, 0.6], dtype=torch.float64), searched().alpha[:2])
    assert torch.equal(process.at(0.0), process.alpha[0])
    assert torch.equal(process.at(1.0), process.alpha[1])


def test_on_the_pair_that_it_was_found_for_a_process_stays_what_it_is() -> None:
    process = searched()
    moved = process.transfer(pathways())
    assert moved.pathways == process.pathways
    assert torch.equal(moved.alpha, process.alpha)


def test_on_another_pair_a_pathway_takes_after_the_nearest_in_relative_depth() -> None:
    """A residual network has stages at depths 0, 1/3, 2/3 and 1; a VGG at 0, 1/4, 1/2, 3/4 and 1."""
    process = searched()
    moved = process.transfer(pathways("resnet20", "resnet20"))
    known = [pathway[:3] for pathway in process.pathways]
    for number, (teacher, student, transform, *_) in enumerate(moved.pathways):
        source = known.index((NEAREST[teacher], NEAREST[student], transform))
        shift = moved.alpha[:, number] - process.alpha[:, source]
        if not number:
            first = shift
        torch.testing.assert_close(shift, first, rtol=0, atol=1e-6)
    before, after = (biased_softmax(each.alpha.double()).sum(-1) for each in (process, moved))
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)


def test_a_transform_that_the_process_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r'no pathways through complex: set pathways.transforms to \["identity-1x1"\]'):
        searched("identity-1x1").transfer(pathways())


def test_a_file_brings_the_same_process_back(tmp_path: Path) -> None:
    process, path = searched(), tmp_path / FILE
    path.write_bytes(process.to_bytes("vgg13", "vgg8"))
    for place in (path, tmp_path):
        loaded = load_process(place)
        assert loaded.pathways == process.pathways
        assert torch.equal(loaded.times, process.times)
        assert torch.equal(loaded.alpha, process.alpha)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"the process {tmp_path / 'none'} does not exist: for process\.file, give"):
        load_process(tmp_path / "none")
    with pytest.raises(UserError, match=r"process\.safetensors does not exist: for process\.file, give the folder"):
        load_process(tmp_path)


def rewritten(process: Process, **changes: object) -> bytes:
    """A file with another header or with other tensors."""
    header = {"format": 1, "teacher": "vgg13", "student": "vgg8", "pathways": process.pathways}
    tensors = {"times": process.times, "alpha": process.alpha}
    header |= {key: value for key, value in changes.items() if key in header}
    tensors |= {key: value for key, value in changes.items() if key in tensors}
    return safetensors.torch.save(tensors, metadata={"process": json.dumps(header)})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is damaged or of another kind"),
        (searched().to_bytes("a", "b")[:-1], "is damaged or of another kind"),
        (safetensors.torch.save({"alpha": torch.ones(1)}), "is damaged or of another kind"),
        (rewritten(searched(), format=2), "has format 2, but this version of tfkd-fast reads format 1"),
        (rewritten(searched(), pathways=searched().pathways[1:]), "is damaged or of another kind"),
        (rewritten(searched(), pathways=[[0, 0, "cubic", 0.0, 0.0]]), "is damaged or of another kind"),
        (rewritten(searched(), times=searched().times.flip(0)), "is damaged or of another kind"),
        (rewritten(searched(), times=searched().times[1:]), "is damaged or of another kind"),
        (rewritten(searched(), alpha=searched().alpha / 0.0), "is damaged or of another kind"),
        (rewritten(searched(), alpha=searched().alpha.double()), "is damaged or of another kind"),
    ],
)
def test_what_is_no_process_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load_process(path)

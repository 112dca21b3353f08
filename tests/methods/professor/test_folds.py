"""Professors of teachers that held out different images: each learns from its own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.methods.short_runs import train
from tfkd_fast.data import Batch
from tfkd_fast.errors import UserError
from tfkd_fast.events import ProfessorJudged
from tfkd_fast.methods import METHODS, Context, Method
from tfkd_fast.methods.base import Material, TeacherFacts, TeacherOutputs
from tfkd_fast.models import Features, FeatureShapes
from tfkd_fast.runs.student import read_student_header

CLASSES, SIZE, COUNT = 4, 2, 800
FEATURES = 3 * SIZE * SIZE


def build() -> Method:
    shapes = FeatureShapes(((3, SIZE, SIZE),), FEATURES)
    facts = tuple(TeacherFacts(f"fold-{m}", "vgg13", tuple(range(CLASSES)), shapes) for m in range(2))
    context = Context(CLASSES, COUNT, 4, 0, torch.device("cpu"), lambda epoch: 1.0, teachers=facts)
    entry = METHODS["kd-average"]
    professor = {"epochs": 2, "learning_rate": 2e-3, "cutout": 0, "jitter": 0.0}
    return entry.build(entry.settings.model_validate({"professor": professor}), context)


def material(held_out: Tensor, *, confuse: int | None = None) -> Material:
    """Images around the means of their classes, and teachers that take another class each for class 0. With `confuse`,
    the labels of images that this teacher did not hold out are others."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, FEATURES, generator=generator)
    labels = torch.randint(CLASSES, (COUNT,), generator=generator)
    flat = means[labels] + torch.randn(COUNT, FEATURES, generator=generator)
    images = flat.view(COUNT, 3, SIZE, SIZE)
    if confuse is not None:
        labels = torch.where(held_out[confuse], labels, (labels + 1) % CLASSES)

    def unseen(epoch: int) -> Iterator[Batch]:
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(100):
            yield Batch(images[rows], labels[rows], rows)

    def teach(shown: Tensor) -> tuple[TeacherOutputs, ...]:
        pooled = shown.flatten(1)
        scores = pooled @ means.T - 0.5 * means.square().sum(1)
        outputs = []
        for wrong in (1, 2):
            logits = scores.clone()
            logits[:, wrong] += 4.0
            outputs.append(TeacherOutputs(logits.unsqueeze(0), Features([], [], pooled.unsqueeze(0))))
        return tuple(outputs)

    return Material(unseen, unseen, teach, held_out)


HALVES = torch.stack([torch.arange(COUNT) % 2 == 0, torch.arange(COUNT) % 2 == 1])


def test_a_professor_learns_from_what_its_own_teacher_held_out_and_from_nothing_else() -> None:
    """The same bits, whatever the labels of the other images are."""
    states = []
    for confuse in (None, 0):
        method = build()
        events = list(method.prepare(material(HALVES, confuse=confuse)))
        assert [event.teacher for event in events if isinstance(event, ProfessorJudged)] == ["fold-0", "fold-1"]
        states.append(method.state_dict()["professors"]["professors"])
    plain, confused = states
    assert all(torch.equal(plain[0][name], confused[0][name]) for name in plain[0])
    assert not all(torch.equal(plain[1][name], confused[1][name]) for name in plain[1])
    assert not all(torch.equal(plain[0][name], plain[1][name]) for name in plain[0])
    for event in events:
        assert isinstance(event, ProfessorJudged)
        assert 300 < event.images + event.kept_images < 400  # nine tenths of a half


def test_a_teacher_that_held_out_next_to_nothing_is_refused() -> None:
    few = HALVES.clone()
    few[1] = False
    few[1, :2] = True
    with pytest.raises(UserError, match=r"held out too few images .* larger data\.holdout"):
        list(build().prepare(material(few)))


def test_a_run_gives_each_professor_the_fold_of_its_teacher(tmp_path: Path) -> None:
    """The student holds out two fifths of the first half. A tenth of a professor's images chooses its epoch."""
    runs = [str(tmp_path / f"fold-{fold}") for fold in range(2)]
    for fold, run in enumerate(runs):
        train(Path(run), "ce", {"epochs": 1, "data": {"holdout": 0.5, "fold": fold}})
        assert read_student_header(Path(run) / "student.safetensors").fold == fold
    teachers = {"teachers": {"runs": runs}, "professor": {"epochs": 1}, "epochs": 1}
    trainer = train(tmp_path / "student", "kd-average", teachers)
    total = len(trainer.dataset.read_train())
    lines = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "kept_images" in line]
    assert [line["teacher"] for line in judged] == ["fold-0", "fold-1"]
    for figures, share in zip(judged, (0.3, 0.5), strict=True):
        assert abs(figures["images"] + figures["kept_images"] - 0.9 * share * total) < 0.05 * total

"""Professors in front of the teachers of a student, one each.

Bang, Lee, Shim, "Distilling from professors: Enhancing the knowledge distillation of teachers", Information Sciences
576, 2021: a network refines what a teacher says so that it is right more often and keeps the correlations between
classes, and the student learns from both. What the two strategies of the paper are, and how a professor is built and
trained, cannot be read in public: all of it is our choice.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.errors import UserError
from tfkd_fast.events import Event, ProfessorJudged
from tfkd_fast.methods.base import Context, Material, StepBatch, TeacherOutputs
from tfkd_fast.methods.professor.lessons import Lessons
from tfkd_fast.methods.professor.networks import Professor
from tfkd_fast.methods.professor.settings import (
    JointProfessorSettings,
    ProfessorSettings,
    ReplaceProfessorSettings,
    SelectiveProfessorSettings,
    StagedProfessorSettings,
)
from tfkd_fast.methods.professor.training import Training, judge
from tfkd_fast.methods.taught.corrections import mixed
from tfkd_fast.randomness import seeded


class Professors:
    """Trained before the first epoch, on images that no teacher was trained on; fixed from then on."""

    def __init__(self, settings: ProfessorSettings, context: Context, temperature: float) -> None:
        """`temperature`: that the student is taught at."""
        self._settings, self._context = settings, context
        self._temperature = temperature
        self.late = torch.zeros((), dtype=torch.bool, device=context.device)
        """() bool: whether the run is in its second half; written in place."""
        self.networks = self._built()
        """The professors, one for each teacher."""
        self._judged: list[ProfessorJudged] = []

    def fit(self, material: Material) -> Iterator[Event]:
        """Train them, and tell how each compares with its teacher.

        Raises:
            UserError: where there are too few images that the teachers held out.
        """
        if material.unseen is None:
            raise UserError(
                "a professor learns from images that its teacher was not trained on, and there are none: train the "
                "teachers on the same images, with a data.holdout larger than that of this run, such as 0.2"
            )
        settings, context = self._settings, self._context
        lessons = Lessons(material.unseen, settings, context.seed)
        trainings = self._trainings()
        kept = list(lessons.kept())
        choice = [(batch, material.teach(batch.images)) for batch in lessons.choice()]

        def taught(epoch: int) -> Iterator[tuple[Training, TeacherOutputs, Batch]]:
            for batch in lessons.learned(epoch):
                for training, outputs in zip(trainings, material.teach(batch.images), strict=True):
                    yield training, outputs, batch

        for training, outputs, batch in taught(0):
            training.look(outputs.logits[0], batch.labels)
        if not kept or not trainings[0].images:
            raise UserError(
                "the teachers held out too few images for a professor to learn from and to be judged by: train them "
                "with a larger data.holdout"
            )
        self._choose(trainings, choice, 0)
        for epoch in range(settings.epochs):
            for training in trainings:
                training.begin_epoch(epoch)
            for training, outputs, batch in taught(epoch):
                training.step(pooled(outputs)[0], outputs.logits[0], batch.labels, batch.indices, epoch)
            self._choose(trainings, choice, epoch + 1)
        for training in trainings:
            training.take_best()
        self._judged = self._judge(kept, material, trainings)
        yield from self._judged

    def begin_epoch(self, epoch: int) -> None:
        """0-based, of the student."""
        self.late.fill_(2 * epoch >= self._context.epochs)

    def refine(self, batch: StepBatch) -> Tensor:
        """(n,M,B,C) float32: what the student learns from in place of the teachers' logits."""
        heard = zip(batch.teachers, self._refined(batch.teachers, batch.labels), strict=True)
        return torch.stack([self._taught(outputs.logits, refined, batch.labels) for outputs, refined in heard], dim=1)

    def summary(self) -> list[dict[str, Any]]:
        """What became of the professor of each teacher, by the name of the figure."""
        return [judged.model_dump(exclude={"warning"}) for judged in self._judged]

    def state_dict(self) -> dict[str, Any]:
        return {
            "professors": [professor.state_dict() for professor in self.networks],
            "judged": [judged.model_dump() for judged in self._judged],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for professor, saved in zip(self.networks, state["professors"], strict=True):
            professor.load_state_dict(saved)
        self._judged = [ProfessorJudged(**values) for values in state["judged"]]

    def _built(self) -> list[Professor]:
        """Initialised from the seed of the run without touching the global random state."""
        settings, context = self._settings, self._context
        with seeded(context.seed):
            professors = [
                Professor(
                    teacher.shapes.pooled,
                    context.num_classes,
                    settings.code_size,
                    settings.temperature,
                    told=settings.variant == "label-conditioned",
                )
                for teacher in context.teachers
            ]
        return [professor.to(context.device).eval().requires_grad_(False) for professor in professors]

    def _trainings(self) -> list[Training]:
        settings, context = self._settings, self._context
        with seeded(context.seed):
            return [
                Training(professor, settings, context.num_classes, seed=context.seed, number=number)
                for number, professor in enumerate(self.networks)
            ]

    @torch.no_grad()
    def _refined(self, teachers: Sequence[TeacherOutputs], labels: Tensor) -> list[Tensor]:
        """Logits (n,B,C) of each professor, for labels (n,B)."""
        return [
            professor(pooled(outputs).flatten(0, 1), outputs.logits.flatten(0, 1), labels.flatten())[0].view_as(
                outputs.logits
            )
            for professor, outputs in zip(self.networks, teachers, strict=True)
        ]

    def _choose(
        self, trainings: list[Training], choice: list[tuple[Batch, tuple[TeacherOutputs, ...]]], epochs: int
    ) -> None:
        """Keep each professor as it is after so many epochs, if it is the best so far on the images to choose by."""
        for training in trainings:
            training.professor.eval()
        losses = [0.0] * len(trainings)
        for batch, teachers in choice:
            for number, refined in enumerate(self._refined(teachers, batch.labels.unsqueeze(0))):
                losses[number] += float(F.cross_entropy(refined[0], batch.labels, reduction="sum"))
        for training, loss in zip(trainings, losses, strict=True):
            training.keep_if_best(loss, epochs)

    def _judge(self, kept: list[Batch], material: Material, trainings: list[Training]) -> list[ProfessorJudged]:
        said: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in trainings]
        for batch in kept:
            teachers = material.teach(batch.images)
            for own, outputs, refined in zip(
                said, teachers, self._refined(teachers, batch.labels.unsqueeze(0)), strict=True
            ):
                own.append((outputs.logits[0], refined[0], batch.labels))
        return [
            judge(facts.name, training, own)
            for facts, training, own in zip(self._context.teachers, trainings, said, strict=True)
        ]

    def _taught(self, said: Tensor, refined: Tensor, labels: Tensor) -> Tensor:
        """Logits (n,B,C) float32 that the student learns from: those of teacher and professor, by the strategy."""
        match self._settings:
            case ReplaceProfessorSettings():
                return refined
            case JointProfessorSettings(share=share):
                return mixed(said, refined, share, self._temperature)
            case SelectiveProfessorSettings(margin=margin):
                return selected(said, refined, labels, margin)
            case StagedProfessorSettings():
                return torch.where(self.late, refined, said)


def selected(said: Tensor, refined: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Choose logits (...,C) sample by sample: those of the professor, `refined`, where the teacher's argmax is wrong,
    or where the professor gives the label (...) a probability that is higher by more than `margin`; else the
    teacher's."""
    label = labels.unsqueeze(-1)
    surer = refined.softmax(-1).gather(-1, label) - said.softmax(-1).gather(-1, label) > margin
    return torch.where(surer | (said.argmax(-1, keepdim=True) != label), refined, said)


def pooled(outputs: TeacherOutputs) -> Tensor:
    """The pooled features of a teacher, (n,B,F) float32."""
    return outputs.need_features().pooled.float()

"""Professors in front of the teachers of a student, one each.

Bang, Lee, Shim, "Distilling from professors: Enhancing the knowledge distillation of teachers", Information Sciences
576, 2021: a network refines the predictions of a teacher so that they are right more often and keep the correlations
between classes, and the student learns from both. What the two strategies of the paper are, and how a professor is
built and trained, cannot be read in public: all of it is our choice.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.data import Batch
from tfkd_fast.errors import UserError
from tfkd_fast.events import Event, ProfessorJudged
from tfkd_fast.finiteness import nonfinite_names
from tfkd_fast.methods.base import Context, Material, StepBatch, TeacherOutputs
from tfkd_fast.methods.professor.images import ProfessorImages
from tfkd_fast.methods.professor.networks import Professor
from tfkd_fast.methods.professor.settings import (
    JointProfessorSettings,
    ProfessorSettings,
    ReplaceProfessorSettings,
    SelectiveProfessorSettings,
    StagedProfessorSettings,
)
from tfkd_fast.methods.professor.training import ProfessorTraining, judge
from tfkd_fast.methods.taught.corrections import mix_logits
from tfkd_fast.randomness import seeded


class Professors:
    """The professors of a run, which are trained before the first epoch on images that no teacher was trained on, and
    fixed from then on."""

    def __init__(self, settings: ProfessorSettings, context: Context, temperature: float) -> None:
        """`temperature` is that at which the student learns from logits."""
        self._settings, self._context = settings, context
        self._temperature = temperature
        self.second_half = torch.zeros((), dtype=torch.bool, device=context.device)
        """() bool: whether the run is in its second half; written in place."""
        self.networks = self._build_networks()
        """The professors, one for each teacher."""
        self._judged: list[ProfessorJudged] = []

    def fit(self, material: Material) -> Iterator[Event]:
        """Train the professors; yields an event for each that compares it with its teacher.

        Raises:
            UserError: where there are too few images that the teachers held out, or a professor diverged.
        """
        if material.unseen is None:
            raise UserError(
                "a professor learns from images that its teacher was not trained on, and there are none: train the "
                "teachers on the same images, with a data.holdout larger than that of this run, such as 0.2"
            )
        settings, context = self._settings, self._context
        images = ProfessorImages(material.unseen, settings, context.seed)
        trainings = self._make_trainings()
        evaluation = list(images.evaluation_batches())
        validation = [(batch, material.teach(batch.images)) for batch in images.validation_batches()]

        def teacher_batches(epoch: int) -> Iterator[tuple[ProfessorTraining, TeacherOutputs, Batch]]:
            for batch in images.training_batches(epoch):
                for training, outputs in zip(trainings, material.teach(batch.images), strict=True):
                    yield training, outputs, batch

        for training, outputs, batch in teacher_batches(0):
            training.observe(outputs.logits[0], batch.labels)
        if not evaluation or not trainings[0].images:
            raise UserError(
                "the teachers held out too few images for a professor to learn from and to be judged by: train them "
                "with a larger data.holdout"
            )
        self._keep_best(trainings, validation, 0)
        for epoch in range(settings.epochs):
            for training in trainings:
                training.begin_epoch(epoch)
            for training, outputs, batch in teacher_batches(epoch):
                training.step(pooled_features(outputs)[0], outputs.logits[0], batch.labels, batch.indices, epoch)
            self._keep_best(trainings, validation, epoch + 1)
        for training, teacher in zip(trainings, context.teachers, strict=True):
            training.restore_best()
            if names := nonfinite_names(training.professor.state_dict().items()):
                raise UserError(
                    f"the professor of teacher {teacher.name} diverged, {names[0]} is not finite: lower "
                    "professor.learning_rate"
                )
        self._judged = self._judge(evaluation, material, trainings)
        yield from self._judged

    def begin_epoch(self, epoch: int) -> None:
        """Called before every 0-based epoch of the student."""
        self.second_half.fill_(2 * epoch >= self._context.epochs)

    def refine(self, batch: StepBatch) -> Tensor:
        """(n,M,B,C) float32: what the student learns from in place of the teachers' logits."""
        pairs = zip(batch.teachers, self._refine_logits(batch.teachers, batch.labels), strict=True)
        return torch.stack(
            [self._apply_strategy(outputs.logits, refined, batch.labels) for outputs, refined in pairs], dim=1
        )

    def summary(self) -> list[dict[str, Any]]:
        """The figures of the professor of each teacher, by name."""
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

    def _build_networks(self) -> list[Professor]:
        """Build the professors, initialised from the seed of the run without the global random state."""
        settings, context = self._settings, self._context
        with seeded(context.seed):
            professors = [
                Professor(
                    teacher.shapes.pooled,
                    context.num_classes,
                    settings.code_size,
                    settings.temperature,
                    label_conditioned=settings.variant == "label-conditioned",
                )
                for teacher in context.teachers
            ]
        return [professor.to(context.device).eval().requires_grad_(False) for professor in professors]

    def _make_trainings(self) -> list[ProfessorTraining]:
        settings, context = self._settings, self._context
        with seeded(context.seed):
            return [
                ProfessorTraining(professor, settings, context.num_classes, seed=context.seed, number=number)
                for number, professor in enumerate(self.networks)
            ]

    @torch.no_grad()
    def _refine_logits(self, teachers: Sequence[TeacherOutputs], labels: Tensor) -> list[Tensor]:
        """Logits (n,B,C) of each professor, for labels (n,B)."""
        return [
            refined.view_as(outputs.logits)
            for professor, outputs in zip(self.networks, teachers, strict=True)
            for refined, _ in [
                professor(pooled_features(outputs).flatten(0, 1), outputs.logits.flatten(0, 1), labels.flatten())
            ]
        ]

    def _keep_best(
        self,
        trainings: list[ProfessorTraining],
        validation: list[tuple[Batch, tuple[TeacherOutputs, ...]]],
        epochs: int,
    ) -> None:
        """Keep each professor as it is after so many epochs, if it is the best so far on the images to choose by."""
        for training in trainings:
            training.professor.eval()
        losses = [0.0] * len(trainings)
        for batch, teachers in validation:
            for number, refined in enumerate(self._refine_logits(teachers, batch.labels.unsqueeze(0))):
                losses[number] += float(F.cross_entropy(refined[0], batch.labels, reduction="sum"))
        for training, loss in zip(trainings, losses, strict=True):
            training.keep_if_best(loss, epochs)

    def _judge(
        self, evaluation: list[Batch], material: Material, trainings: list[ProfessorTraining]
    ) -> list[ProfessorJudged]:
        batches: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in trainings]
        for batch in evaluation:
            teachers = material.teach(batch.images)
            for own, outputs, refined in zip(
                batches, teachers, self._refine_logits(teachers, batch.labels.unsqueeze(0)), strict=True
            ):
                own.append((outputs.logits[0], refined[0], batch.labels))
        return [
            judge(facts.name, training, own)
            for facts, training, own in zip(self._context.teachers, trainings, batches, strict=True)
        ]

    def _apply_strategy(self, teacher: Tensor, refined: Tensor, labels: Tensor) -> Tensor:
        """Logits (n,B,C) float32 that the student learns from: those of teacher and professor, by the strategy."""
        match self._settings:
            case ReplaceProfessorSettings():
                return refined
            case JointProfessorSettings(share=share):
                return mix_logits(teacher, refined, share, self._temperature)
            case SelectiveProfessorSettings(margin=margin):
                return select_logits(teacher, refined, labels, margin)
            case StagedProfessorSettings():
                return torch.where(self.second_half, refined, teacher)


def select_logits(teacher: Tensor, refined: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Choose logits (...,C) sample by sample: those of the professor, `refined`, where the teacher's argmax is wrong,
    or where the professor gives the label (...) a probability that is higher by more than `margin`; else the
    teacher's."""
    label = labels.unsqueeze(-1)
    more_certain = refined.softmax(-1).gather(-1, label) - teacher.softmax(-1).gather(-1, label) > margin
    return torch.where(more_certain | (teacher.argmax(-1, keepdim=True) != label), refined, teacher)


def pooled_features(outputs: TeacherOutputs) -> Tensor:
    """The pooled features of a teacher, (n,B,F) float32."""
    return outputs.need_features().pooled.float()

"""Professors in front of the teachers of a student, one each.

Bang, Lee, Shim, "Distilling from professors: Enhancing the knowledge distillation of teachers", Information Sciences
576, 2021: a network refines the predictions of a teacher so that they are right more often and keep the correlations
between classes, and the student learns from both. What the two strategies of the paper are, and how a professor is
built and trained, cannot be read in public: all of it is our choice.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

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


class Lesson(NamedTuple):
    """Images of a batch that a teacher held out, and what it says of them."""

    teacher: int
    """Number of the teacher."""
    pooled: Tensor
    """(B,F) float32: its pooled features."""
    logits: Tensor
    """(B,C) float32: its logits."""
    labels: Tensor
    """(B,) int64: labels of the images."""
    indices: Tensor
    """(B,) int64: which training images these are."""


def lessons_of(batch: Batch, material: Material) -> Iterator[Lesson]:
    """Yield what each teacher has of a batch to learn from: nothing where it held out none of the images."""
    for number, outputs in enumerate(material.teach(batch.images)):
        columns = (pooled_features(outputs)[0], outputs.logits[0], batch.labels, batch.indices)
        if material.held_out is not None:
            rows = material.held_out[number, batch.indices].nonzero().squeeze(1)
            columns = (columns[0][rows], columns[1][rows], columns[2][rows], columns[3][rows])
        if len(columns[2]):
            yield Lesson(number, *columns)


class Professors:
    """The professors of a run, which are trained before the first epoch on images that their teachers were not trained
    on, and fixed from then on. Teachers of different folds have different images, together up to all (our choice)."""

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
        evaluation = [lesson for batch in images.evaluation_batches() for lesson in lessons_of(batch, material)]
        validation = [lesson for batch in images.validation_batches() for lesson in lessons_of(batch, material)]

        def training_lessons(epoch: int) -> Iterator[Lesson]:
            for batch in images.training_batches(epoch):
                yield from (lesson for lesson in lessons_of(batch, material) if len(lesson.labels) > 1)  # batch norm

        for lesson in training_lessons(0):
            trainings[lesson.teacher].observe(lesson.logits, lesson.labels)
        every = set(range(len(trainings)))
        if {lesson.teacher for lesson in evaluation} != every or not all(training.images for training in trainings):
            raise UserError(
                "the teachers held out too few images for a professor to learn from and to be judged by: train them "
                "with a larger data.holdout"
            )
        self._keep_best(trainings, validation, 0)
        for epoch in range(settings.epochs):
            for training in trainings:
                training.begin_epoch(epoch)
            for teacher, pooled, logits, labels, indices in training_lessons(epoch):
                trainings[teacher].step(pooled, logits, labels, indices, epoch)
            self._keep_best(trainings, validation, epoch + 1)
        for training, facts in zip(trainings, context.teachers, strict=True):
            training.restore_best()
            if names := nonfinite_names(training.professor.state_dict().items()):
                raise UserError(
                    f"the professor of teacher {facts.name} diverged, {names[0]} is not finite: lower "
                    "professor.learning_rate"
                )
        self._judged = self._judge(evaluation, trainings)
        yield from self._judged

    def begin_epoch(self, epoch: int) -> None:
        """Called before every 0-based epoch of the student."""
        self.second_half.fill_(2 * epoch >= self._context.epochs)

    @torch.no_grad()
    def refine(self, batch: StepBatch) -> Tensor:
        """(n,M,B,C) float32: what the student learns from in place of the teachers' logits."""
        labels = batch.labels.flatten()
        return torch.stack(
            [
                self._apply_strategy(
                    outputs.logits,
                    self._refine(
                        number, pooled_features(outputs).flatten(0, 1), outputs.logits.flatten(0, 1), labels
                    ).view_as(outputs.logits),
                    batch.labels,
                )
                for number, outputs in enumerate(batch.teachers)
            ],
            dim=1,
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

    def _refine(self, number: int, pooled: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (B,C) of a professor, for pooled features (B,F) and logits (B,C) of its teacher, labels (B,)."""
        refined, _ = self.networks[number](pooled, logits, labels)
        return refined

    @torch.no_grad()
    def _keep_best(self, trainings: list[ProfessorTraining], validation: list["Lesson"], epochs: int) -> None:
        """Keep each professor as it is after so many epochs, if it is the best so far on the images to choose by."""
        for training in trainings:
            training.professor.eval()
        losses = [0.0] * len(trainings)
        for teacher, pooled, logits, labels, _ in validation:
            refined = self._refine(teacher, pooled, logits, labels)
            losses[teacher] += float(F.cross_entropy(refined, labels, reduction="sum"))
        for training, loss in zip(trainings, losses, strict=True):
            training.keep_if_best(loss, epochs)

    @torch.no_grad()
    def _judge(self, evaluation: list["Lesson"], trainings: list[ProfessorTraining]) -> list[ProfessorJudged]:
        batches: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in trainings]
        for teacher, pooled, logits, labels, _ in evaluation:
            batches[teacher].append((logits, self._refine(teacher, pooled, logits, labels), labels))
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

"""The training of one professor, and its comparison with its teacher."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast import randomness
from tfkd_fast.events import ProfessorJudged
from tfkd_fast.methods.professor.images import Draw
from tfkd_fast.methods.professor.losses import (
    Prototypes,
    correlation_loss,
    discriminator_loss,
    generator_loss,
    other_classes,
)
from tfkd_fast.methods.professor.networks import Discriminator, Professor
from tfkd_fast.methods.professor.settings import ProfessorSettings
from tfkd_fast.randomness import Purpose, random_words

BETAS = (0.5, 0.999)
"""Decay rates of Adam, as is usual with discriminators."""

LEAST_ERROR = 3.0
"""Percent of its images that a teacher must get wrong for its professor to have something to learn (our choice)."""


class ProfessorTraining:
    """Trains a professor and its discriminators, a step at a time."""

    def __init__(
        self, professor: Professor, settings: ProfessorSettings, num_classes: int, *, seed: int, number: int
    ) -> None:
        """`number` is that of the teacher. The professor and its discriminators lie on one device."""
        device = next(professor.parameters()).device
        self.professor = professor
        self._settings, self._seed = settings, seed
        self._stream = Draw.CODE + number
        self.output_discriminator = Discriminator(num_classes, num_classes, (256, 128)).to(device)
        """Discriminator of the professor's log probabilities from the teacher's."""
        self.code_discriminator = Discriminator(settings.code_size, num_classes, (128,)).to(device)
        """Discriminator of the professor's codes from normal noise."""
        self.prototypes = Prototypes(num_classes, settings.temperature, device)
        """The teacher's mean prediction for each class, where it is right."""
        self._others = self.prototypes.others()
        self._optimizer = torch.optim.Adam(professor.parameters(), lr=settings.learning_rate, betas=BETAS)
        discriminators = [*self.output_discriminator.parameters(), *self.code_discriminator.parameters()]
        self._discriminator_optimizer = torch.optim.Adam(discriminators, lr=settings.learning_rate, betas=BETAS)
        self._errors = torch.zeros((), dtype=torch.int64, device=device)
        self._images_seen = 0
        self.images = 0
        """The number of images that it learns from."""
        self.best_epochs = 0
        """The number of epochs after which it was the best."""
        self._best_loss = math.inf
        self._best: dict[str, Tensor] = {}

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Add the teacher's logits (B,C) for a batch with labels (B,) to the class prototypes, before the first
        step."""
        self.prototypes.add(logits, labels)
        self.images += len(labels)

    def keep_if_best(self, loss: float, epochs: int) -> None:
        """Keep the present weights if their loss on the images to choose by is the lowest so far.

        A professor that is told the label always keeps its latest weights, because its loss says nothing. Untrained, a
        professor equals its teacher, so that the result is never worse by this loss.

        Args:
            loss: the sum over the images to choose by, in nats.
            epochs: the number of epochs that it has been trained for.
        """
        if loss < self._best_loss or self.professor.label_conditioned:
            self._best_loss, self.best_epochs = loss, epochs
            self._best = {name: value.clone() for name, value in self.professor.state_dict().items()}

    def restore_best(self) -> None:
        """Restore the weights that were kept, at the end of its training."""
        self.professor.load_state_dict(self._best)
        self.professor.eval().requires_grad_(False)

    def begin_epoch(self, epoch: int) -> None:
        """Start a 0-based epoch; the last third of the epochs has a tenth of the learning rate."""
        self.professor.train().requires_grad_(True)
        self._others = self.prototypes.others()
        late = 3 * epoch >= 2 * self._settings.epochs
        for optimizer in (self._optimizer, self._discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = self._settings.learning_rate * (0.1 if late else 1.0)

    def step(self, pooled: Tensor, logits: Tensor, labels: Tensor, indices: Tensor, epoch: int) -> None:
        """One step of the discriminators, then one of the professor: features (B,F) and logits (B,C) of the teacher."""
        settings, temperature = self._settings, self._settings.temperature
        right = logits.argmax(1) == labels
        self._errors += (~right).sum()
        self._images_seen += len(labels)
        refined, code = self.professor(pooled, logits, labels)
        teacher, own = ((z / temperature).log_softmax(1) for z in (logits, refined))

        prior = self.noise(code, indices, epoch)
        loss = discriminator_loss(
            self.output_discriminator(teacher, labels), self.output_discriminator(own.detach(), labels), right
        )
        loss = loss + discriminator_loss(
            self.code_discriminator(prior, labels), self.code_discriminator(code.detach(), labels)
        )
        self._discriminator_optimizer.zero_grad()
        loss.backward()
        self._discriminator_optimizer.step()

        others = torch.where(right.unsqueeze(1), other_classes(logits, labels, temperature), self._others[labels])
        loss = (
            F.cross_entropy(refined, labels)
            + settings.correlation * correlation_loss(refined, labels, others, temperature)
            + settings.output_adversary * generator_loss(self.output_discriminator(own, labels))
            + settings.code_adversary * generator_loss(self.code_discriminator(code, labels))
        )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    @property
    def teacher_error(self) -> float:
        """Error of the teacher on the images of all steps so far, in percent."""
        return 100.0 * int(self._errors) / self._images_seen

    def noise(self, code: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Standard normal noise like the codes (B,D), as a function of (seed, epoch, index)."""
        samples = indices.unsqueeze(1) * code.shape[1] + torch.arange(code.shape[1], device=code.device)
        words = random_words(samples, Purpose.PROFESSOR, seed=self._seed, epoch=epoch, stream=self._stream)
        return randomness.normal(words[0], words[1]).to(code.dtype)


def judge(teacher: str, training: ProfessorTraining, batches: list[tuple[Tensor, Tensor, Tensor]]) -> ProfessorJudged:
    """Compare a professor with its teacher on images that neither learned from.

    Args:
        teacher: name of the teacher.
        training: the training of the professor.
        batches: logits (B,C) of the teacher and of the professor, and labels (B,).
    """
    logits, refined, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    right, refined_right = (z.argmax(1) == labels for z in (logits, refined))
    correlations = spearman(logits[right], refined[right], labels[right])
    difference = refined_right.double() - right.double()
    label_conditioned = training.professor.label_conditioned
    figures = ProfessorJudged(
        teacher=teacher,
        images=training.images,
        epochs=training.best_epochs,
        teacher_error=training.teacher_error,
        kept_images=len(labels),
        teacher_top1=100.0 * float(right.double().mean()),
        professor_top1=math.nan if label_conditioned else 100.0 * float(refined_right.double().mean()),
        margin=math.nan if label_conditioned else 196.0 * float(difference.std(correction=0)) / len(labels) ** 0.5,
        spearman=float(correlations.mean()) if correlations.numel() else math.nan,
    )
    return in_words(figures)


def in_words(figures: ProfessorJudged) -> ProfessorJudged:
    """The same figures with their verdict, and with a warning where there is one."""
    return figures.model_copy(update={"verdict": _verdict(figures), "warning": _warning(figures)})


def _verdict(figures: ProfessorJudged) -> str:
    gain = figures.professor_top1 - figures.teacher_top1
    if math.isnan(gain):
        return "the professor is told the label, so its accuracy says nothing"
    if not figures.epochs:
        return "the professor was never better than its teacher, and is that teacher"
    measured = f"{gain:+.1f} ± {figures.margin:.1f} points on {figures.kept_images} images that neither learned from"
    if gain <= 0:
        return f"the professor is no better than its teacher, {measured}"
    clearly = "" if gain > figures.margin else "not clearly "
    return f"the professor is {clearly}better than its teacher, {measured}"


def _warning(figures: ProfessorJudged) -> str:
    if figures.teacher_error >= LEAST_ERROR:
        return ""
    return (
        f"teacher {figures.teacher} errs on {figures.teacher_error:.1f} % of what its professor learns from: "
        f"below {LEAST_ERROR:g} % there is little to learn; make the images harder (professor.cutout, "
        "professor.jitter) or hold more out from the teacher (data.holdout of its run)"
    )


def spearman(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """(B,) float64: rank correlation of logits (B,C) over the classes other than the label (B,), of which there must be
    two; (0,) where there are fewer. Of equal logits the first ranks lower."""
    batch, classes = first.shape
    if classes < 3:
        return first.new_zeros(0, dtype=torch.float64)
    others = torch.arange(classes, device=labels.device) != labels.unsqueeze(1)
    ranks = [
        logits[others].view(batch, classes - 1).argsort(dim=1, stable=True).argsort(dim=1).double()
        for logits in (first, second)
    ]
    count = classes - 1
    return 1.0 - 6.0 * (ranks[0] - ranks[1]).square().sum(1) / (count * (count**2 - 1))

"""The `[professor]` table of a recipe: one class for each way of using a professor."""

from typing import Annotated, Literal

from pydantic import Field

from tfkd_fast.settings import LARGEST, Forms, Settings


class ProfessorBase(Settings):
    """How professors are built and trained. Bang et al. publish no constants: all defaults are our choice."""

    strategy: str
    """What the student learns from, given a teacher and its professor: the professor (replace), a mixture of the two
    (joint), for each sample one of the two (selective), or first the teacher and then the professor (staged)."""
    variant: Literal["label-free", "label-conditioned"] = "label-free"
    """Whether the generator of the professor is told the label of the image."""
    temperature: float = Field(default=4.0, ge=0.01, le=1_000)
    """Temperature of the teacher's predictions that the professor reads and is compared by."""
    code_size: int = Field(default=64, ge=1, le=4_096)
    """Size of the code between the encoder and the generator of the professor."""
    correlation: float = Field(default=1.0, ge=0, le=LARGEST)
    """Weight of the teacher's correlations between classes in the loss of the professor, whose cross-entropy has 1."""
    output_adversary: float = Field(default=0.05, ge=0, le=LARGEST)
    """Weight of the discriminator of predictions in the loss of the professor, whose cross-entropy has 1."""
    code_adversary: float = Field(default=0.01, ge=0, le=LARGEST)
    """Weight of the discriminator of codes in the loss of the professor, whose cross-entropy has 1."""
    epochs: int = Field(default=60, ge=1, le=1_000_000)
    """Epochs that the professor trains, the last third of them at a tenth of its learning rate."""
    learning_rate: float = Field(default=2e-4, gt=0, le=LARGEST)
    """Learning rate of Adam for the professor and its discriminators."""
    cutout: int = Field(default=8, ge=0, le=64)
    """Side of the square that is hidden in the professor's images, in pixels of an image of 32; 0 hides none."""
    jitter: float = Field(default=0.4, ge=0, lt=1)
    """Strength of the random changes of brightness, contrast and saturation in the professor's images; 0 makes none."""


class ReplaceProfessorSettings(ProfessorBase):
    """The professor in place of the teacher."""

    strategy: Literal["replace"]


class JointProfessorSettings(ProfessorBase):
    """The softened predictions of teacher and professor, mixed."""

    strategy: Literal["joint"] = "joint"
    share: float = Field(default=0.5, gt=0, lt=1)
    """Share of the professor in the mixture; the teacher has the rest."""


class SelectiveProfessorSettings(ProfessorBase):
    """The professor for samples that the teacher gets wrong, or that the professor is surer of."""

    strategy: Literal["selective"]
    margin: float = Field(default=0.1, ge=0, lt=1)
    """Probability of the label by which the professor must exceed a teacher that is right, to be learned from."""


class StagedProfessorSettings(ProfessorBase):
    """The teacher in the first half of the run, the professor in the second."""

    strategy: Literal["staged"]


ProfessorSettings = Annotated[
    ReplaceProfessorSettings | JointProfessorSettings | SelectiveProfessorSettings | StagedProfessorSettings,
    Forms("strategy"),
]
"""The `[professor]` table."""

"""The `[professor]` table of a recipe."""

from typing import Literal

from pydantic import Field

from tfkd_fast.settings import Settings


class ProfessorSettings(Settings):
    """How the professors of a run are built, trained and used. Bang et al. publish no constants: all are our choice."""

    strategy: Literal["replace", "joint", "selective", "staged"] = "joint"
    """What the student learns from, where the teacher says t and its professor p. replace: p. joint: both,
    (1-share) softmax(t/T) + share softmax(p/T). selective: p where t is wrong, or surer of the label by less than p by
    `margin`, else t. staged: t in the first half of the run, p in the second."""
    share: float = Field(default=0.5, gt=0, lt=1)
    """Joint: of the professor."""
    margin: float = Field(default=0.1, ge=0, lt=1)
    """Selective: of the label's probability."""

    variant: Literal["label-free", "label-conditioned"] = "label-free"
    """Whether it is told the label."""
    temperature: float = Field(default=4.0, gt=0)
    """Of the predictions that it reads and is compared by."""
    code_size: int = Field(default=64, ge=1)
    """Numbers between its encoder and its generator."""
    correlation: float = Field(default=1.0, ge=0)
    """Of the teacher's correlations between classes. Its own cross-entropy has 1, here and in what follows."""
    output_adversary: float = Field(default=0.05, ge=0)
    """Of the discriminator of predictions."""
    code_adversary: float = Field(default=0.01, ge=0)
    """Of the discriminator of codes."""

    epochs: int = Field(default=60, ge=1)
    """Of its training, the last third of them at a tenth of the learning rate."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Of Adam."""
    cutout: int = Field(default=8, ge=0)
    """Pixels a side of 32, hidden from teacher and professor; 0: none."""
    jitter: float = Field(default=0.4, ge=0, lt=1)
    """Of brightness, contrast and saturation; 0: none."""

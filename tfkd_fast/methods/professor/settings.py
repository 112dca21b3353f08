"""The `[professor]` table of a recipe."""

from typing import Literal

from pydantic import Field

from tfkd_fast.settings import Settings

Strategy = Literal["replace", "joint", "selective", "staged"]
"""What the student learns from, where the teacher says t and its professor p:

* replace: p;
* joint: both, (1-share) softmax(t/T) + share softmax(p/T);
* selective: p where t is wrong, or surer of the label by less than p by `margin`; else t;
* staged: t in the first half of the run, p in the second.
"""


class ProfessorSettings(Settings):
    """How the professors of a run are built, trained and used. Bang et al. publish no constants: all are our choice."""

    strategy: Strategy = "joint"
    share: float = Field(default=0.5, gt=0, lt=1)  # joint: of the professor
    margin: float = Field(default=0.1, ge=0, lt=1)  # selective: of the label's probability

    variant: Literal["label-free", "label-conditioned"] = "label-free"  # whether it is told the label
    temperature: float = Field(default=4.0, gt=0)  # of the predictions that it reads and is compared by
    code_size: int = Field(default=64, ge=1)
    correlation: float = Field(default=1.0, ge=0)  # weights of its losses beside cross-entropy
    output_adversary: float = Field(default=0.05, ge=0)
    code_adversary: float = Field(default=0.01, ge=0)

    epochs: int = Field(default=60, ge=1)  # the last third of them at a tenth of the learning rate
    learning_rate: float = Field(default=2e-4, gt=0)
    cutout: int = Field(default=8, ge=0)  # pixels a side of 32, hidden from teacher and professor; 0: none
    jitter: float = Field(default=0.4, ge=0, lt=1)  # of brightness, contrast and saturation; 0: none

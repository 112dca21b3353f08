"""What the two methods of teacher-free knowledge distillation share: tf-kd-reg, whose teacher is made by hand, and
tf-kd-self, whose teacher is an earlier run of the same network.

Yuan et al., "Revisiting knowledge distillation via label smoothing regularization", CVPR 2020, and the authors' code,
which does not compute what the equations say; `convention` names the one that is meant:

* paper: both predictions are softened (equations 5 and 9), and the divergence is a mean over the batch. The equations
  have no T^2; the authors call it necessary for Tf-KD_self (issue 14 of their repository), for Tf-KD_reg it is our
  choice.
* reference: the divergence is a mean over batch and classes, 1/C of the other, times a multiplier kappa that they tuned
  for each network. With kappa = C it is a mean over the batch again. Tf-KD_reg neither softens the student nor has T^2.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from tfkd_fast.settings import Settings


class TfKDLoss(Settings):
    """What the `[loss]` tables share."""

    convention: Literal["paper", "reference"] = "paper"
    """Whether as the paper's equations or as the authors' code has it."""
    multiplier: float | None = Field(default=None, gt=0)
    """Reference: kappa; without it the authors' value."""

    @model_validator(mode="after")
    def _a_multiplier_is_read(self) -> Self:
        if self.convention == "paper" and self.multiplier is not None:
            raise ValueError('the paper has no multiplier: leave it out, or set loss.convention to "reference"')
        return self


def multiplier(loss: TfKDLoss, default: float, num_classes: int) -> float:
    """The factor on a divergence that is a mean over the batch, as the convention has it.

    Args:
        default: the authors' kappa, for settings that name none.
    """
    return 1.0 if loss.convention == "paper" else (loss.multiplier or default) / num_classes

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

from typing import Literal

from pydantic import Field

from tfkd_fast.settings import LARGEST, Settings


class TfKDLoss(Settings):
    """What the `[loss]` tables share; the default of the convention is our choice."""

    convention: str
    """Whether the loss is that of the paper's equations (paper) or that of the authors' code (reference)."""


class PaperConvention(TfKDLoss):
    """A divergence that is a mean over the batch."""

    convention: Literal["paper"] = "paper"


class ReferenceConvention(TfKDLoss):
    """A divergence that is a mean over batch and classes, times a multiplier."""

    convention: Literal["reference"]
    multiplier: float = Field(gt=0, le=LARGEST)
    """Factor kappa of the divergence."""


def multiplier(loss: TfKDLoss, num_classes: int) -> float:
    """The factor on a divergence that is a mean over the batch: 1 in the paper, kappa / C in the reference code."""
    return loss.multiplier / num_classes if isinstance(loss, ReferenceConvention) else 1.0

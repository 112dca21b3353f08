"""AT: the student is to be active where the teacher is."""

from torch import Tensor

from tfkd_fast.methods.base import StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.maps import attention_map


class ATLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command."""

    weight: Weight = 1000.0
    """Weight of the distance between attention maps in the loss; the label has 1."""


class ATSettings(FeatureSettings):
    """The tables of attention transfer."""

    loss: ATLoss = ATLoss()
    """The distance between attention maps, and the label beside it."""


class AT(FeatureStudent):
    """D = the sum over pairs of stages of the mean squared difference of their attention maps: Zagoruyko and Komodakis,
    Paying More Attention to Attention, ICLR 2017, equation 2, as RepDistiller has it, which takes a mean of squares for
    a norm."""

    per_sample = True

    def distance(self, batch: StepBatch) -> Tensor:
        return self.sum_over_pairs(batch, _attention_distance)


def _attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return (attention_map(student) - attention_map(teacher)).square().mean(1)

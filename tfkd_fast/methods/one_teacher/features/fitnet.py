"""FitNet: a map of the student is to be that of the teacher, behind a regressor."""

from pydantic import Field
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.methods.taught.maps import pool_to_smaller
from tfkd_fast.methods.taught.regressors import Regressor
from tfkd_fast.randomness import seeded


class FitNetLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command."""

    weight: Weight = 100.0
    """Weight of the distance between the maps in the loss; the label has 1."""
    stage: int = Field(default=1, ge=0, le=100)
    """Number of the pair of stages whose maps are matched, from 0; the second is RepDistiller's hint layer 2."""


class FitNetSettings(FeatureSettings):
    """The tables of FitNet."""

    loss: FitNetLoss = FitNetLoss()
    """The distance between the maps, and the label beside it."""


class FitNet(FeatureStudent):
    """D = the mean squared difference of the teacher's map and the student's behind a `Regressor`: Romero et al.,
    FitNets, ICLR 2015, equation 3, as RepDistiller has it: beside the label throughout, where the paper has a first
    phase."""

    per_sample = True

    def __init__(self, settings: FitNetSettings, context: Context) -> None:
        """
        Raises:
            UserError: for a number of a pair of stages that does not exist.
        """
        super().__init__(settings, context)
        if settings.loss.stage >= len(self.pairs):
            raise UserError(
                f"loss.stage = {settings.loss.stage}, but {len(self.pairs)} pairs of stages are counted from 0: "
                "choose a lower number"
            )
        self._student_stage, self._teacher_stage = self.pairs[settings.loss.stage]
        shapes = context.need_shapes().maps[self._student_stage], context.teachers[0].shapes.maps[self._teacher_stage]
        with seeded(context.seed):
            regressor = Regressor(*shapes, relu=True)
        self.adapters = self._regressor = regressor.to(context.device)

    def distance(self, batch: StepBatch) -> Tensor:
        maps = batch.adapt(self._regressor, batch.need_features().after_relu[self._student_stage])
        teacher = batch.teachers[0].need_features().after_relu[self._teacher_stage]
        student, teacher = pool_to_smaller(maps.flatten(0, 1), teacher.flatten(0, 1))
        return (student - teacher).square().unflatten(0, batch.labels.shape).mean((1, 2, 3, 4))

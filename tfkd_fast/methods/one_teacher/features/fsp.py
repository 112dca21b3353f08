"""FSP: before it learns the label, the student is to go from stage to stage as the teacher does."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, Needs, StepBatch
from tfkd_fast.methods.one_teacher.initial_phase import InitialPhaseSettings, InitialPhaseStudent
from tfkd_fast.methods.taught.maps import pool_to_smaller
from tfkd_fast.methods.taught.student import TaughtSettings
from tfkd_fast.models import Features, FeatureShapes


class FSP(InitialPhaseStudent):
    """In the first phase: the sum over neighbouring maps of the mean squared difference of the matrices of student and
    teacher, whose entry (i, j) is the mean over positions of the product of channel i of one map with channel j of the
    next: Yim, Joo, Bae, Kim, A Gift from Knowledge Distillation, CVPR 2017, equations 1 and 2, as RepDistiller has it.
    The maps are those after ReLU of all stages, and that of the stem."""

    per_sample = True

    @classmethod
    def needs_for(cls, settings: TaughtSettings) -> Needs:
        return replace(super().needs_for(settings), features=frozenset({"stages", "stem"}))

    def __init__(self, settings: InitialPhaseSettings, context: Context) -> None:
        """
        Raises:
            UserError: for networks whose maps have other channels.
        """
        super().__init__(settings, context)
        own, other = (_channels(shapes) for shapes in (context.need_shapes(), context.teachers[0].shapes))
        if own != other:
            raise UserError(
                f"fsp compares matrices of channels, which the student has {own} of and the teacher {other}: take a "
                "teacher of the same widths"
            )

    def distance(self, batch: StepBatch) -> Tensor:
        student, teacher = (
            _flow_matrices(features) for features in (batch.need_features(), batch.teachers[0].need_features())
        )
        total = batch.need_features().pooled.new_zeros(batch.labels.shape[:1])
        for own, other in zip(student, teacher, strict=True):
            total = total + (own - other).square().unflatten(0, batch.labels.shape).mean((1, 2, 3))
        return total


def _channels(shapes: FeatureShapes) -> list[int]:
    stem = () if shapes.stem is None else (shapes.stem,)
    return [channels for channels, _, _ in (*stem, *shapes.maps)]


def _flow_matrices(features: Features) -> list[Tensor]:
    """The matrix (n*B,C,D) of each two neighbouring maps."""
    stem: Sequence[Tensor] = () if features.stem is None else (features.stem,)
    maps = [each.flatten(0, 1) for each in (*stem, *features.after_relu)]
    matrices = []
    for before, after in pairwise(maps):
        first, second = (each.flatten(2) for each in pool_to_smaller(before, after))
        matrices.append(first @ second.transpose(1, 2) / first.shape[2])
    return matrices

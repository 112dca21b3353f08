"""CC: two images are to differ for the student as they do for the teacher."""

from torch import Tensor, nn

from tfkd_fast.methods.base import Context, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.randomness import seeded

EMBEDDING = 128
"""Entries of the embeddings that are compared (RepDistiller)."""


class CCLoss(FeatureLoss):
    """The `[loss]` table, by RepDistiller's command."""

    weight: Weight = 0.02
    """Weight of the correlation of the differences in the loss; the label has 1."""


class CCSettings(FeatureSettings):
    """The tables of correlation congruence."""

    loss: CCLoss = CCLoss()
    """The correlation of the differences, and the label beside it."""


class CC(FeatureStudent):
    """D = the mean over neighbours b, b+1 in the batch of |s_b - t_b|'|s_b+1 - t_b+1|, s and t linear embeddings of the
    pooled features of student and teacher, both of which are learned: Peng et al., Correlation Congruence for Knowledge
    Distillation, ICCV 2019, as RepDistiller has it of the authors' code; the kernels of the paper are not in that."""

    def __init__(self, settings: CCSettings, context: Context) -> None:
        super().__init__(settings, context)
        widths = context.need_shapes().pooled, context.teachers[0].shapes.pooled
        with seeded(context.seed):
            embeddings = nn.ModuleList(nn.Linear(width, EMBEDDING) for width in widths)
        self.adapters = self._embeddings = embeddings.to(context.device)

    def distance(self, batch: StepBatch) -> Tensor:
        of_student, of_teacher = self._embeddings
        student = of_student(batch.need_features().pooled)
        difference = (student - of_teacher(batch.teachers[0].need_features().pooled)).abs()
        products = (difference[:, :-1] * difference[:, 1:]).sum(-1)
        return products.sum(1) / max(1, products.shape[1])

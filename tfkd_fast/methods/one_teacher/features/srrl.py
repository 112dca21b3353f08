"""SRRL: the teacher's classifier is to read from the student's map what it reads from the teacher's."""

from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, StepBatch
from tfkd_fast.methods.one_teacher.feature_student import FeatureLoss, FeatureSettings, FeatureStudent, Weight
from tfkd_fast.models.layers import BatchNorm, Conv, average_pool, initialise_convolutions, norm_relu_pool
from tfkd_fast.randomness import seeded


class SRRLLoss(FeatureLoss):
    """The `[loss]` table, by the authors' code."""

    weight: Weight = 1.0
    """Weight of both distances, of features and of logits, in the loss; the label has 1."""
    logit_weight: Weight = 1.0
    """Weight of the distance of the logits; that of the features has 1."""


class SRRLSettings(FeatureSettings):
    """The tables of softmax regression representation learning."""

    loss: SRRLLoss = SRRLLoss()
    """The distances of features and logits, and the label beside them."""


class Connector1x1(nn.Module):
    """A convolution 1x1, batch norm, ReLU and the mean over all positions."""

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.conv = Conv(channels, wanted, kernel=1)
        self.norm = BatchNorm(wanted)
        initialise_convolutions(self)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,S,H,W) as features (B,T)."""
        return average_pool(norm_relu_pool(self.norm, self.conv(maps)))


class SRRL(FeatureStudent):
    """D = the mean squared difference of the pooled features, the student's behind a connector, + logit_weight times
    that of the logits which the teacher's classifier makes of them: Yang, Martinez, Bulat, Tzimiropoulos, Knowledge
    Distillation via Softmax Regression Representation Learning, ICLR 2021, and the
    authors' code."""

    per_sample = True

    def __init__(self, settings: SRRLSettings, context: Context) -> None:
        """
        Raises:
            UserError: in a loop of one's own that did not hand over the teacher's classifier.
        """
        super().__init__(settings, context)
        self._logit_weight = settings.loss.logit_weight
        teacher = context.teachers[0]
        if isinstance(teacher.classifier, nn.Identity):
            raise UserError(
                "srrl runs the classifier of its teacher: name it in teacher_facts, TeacherFacts(classifier=)"
            )
        self._classify = teacher.classifier
        with seeded(context.seed):
            connector = Connector1x1(context.need_shapes().maps[-1][0], teacher.shapes.pooled)
        self.adapters = self._connector = connector.to(context.device)

    def distance(self, batch: StepBatch) -> Tensor:
        (teacher,) = batch.teachers
        pooled = batch.adapt(self._connector, batch.need_features().after_relu[-1])
        of_features = (pooled - teacher.need_features().pooled).square().mean((1, 2))
        of_logits = (self._classify(pooled) - teacher.logits).square().mean((1, 2))
        return of_features + self._logit_weight * of_logits

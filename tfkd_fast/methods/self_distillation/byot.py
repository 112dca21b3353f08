"""Be your own teacher: classifiers on earlier stages learn from the last one, and with them the stages below."""

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, Loss, Needs, SingleStudent, StepBatch
from tfkd_fast.methods.self_distillation.separable import SeparableConv
from tfkd_fast.models.layers import Classifier, average_pool
from tfkd_fast.randomness import seeded
from tfkd_fast.settings import LARGEST, Settings

Shape = tuple[int, int, int]
"""Channels, height and width of a map."""


class BYOTLoss(Settings):
    """The `[loss]` table; defaults of the authors' code (ArchipLab-LinfengZhang/pytorch-self-distillation-final)."""

    temperature: float = Field(default=3.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of the student and of its branches."""
    alpha: float = Field(default=0.3, ge=0, le=1)
    """Weight of the student's softened prediction in the loss of a branch; the label has the rest."""
    feature_weight: float = Field(default=0.03, ge=0, le=LARGEST)
    """Weight of the distance of a branch's pooled features from the student's."""


class BYOTSettings(Settings):
    """The tables of classifiers on earlier stages."""

    loss: BYOTLoss = BYOTLoss()
    """The label, the student's prediction and its features, which the branches learn."""


class Branch(nn.Module):
    """A classifier on the map of a stage: for each later stage two separable convolutions, of which the first has the
    stride and the second the channels, then global average pooling and one linear layer."""

    def __init__(self, shapes: tuple[Shape, ...], num_classes: int) -> None:
        """`shapes` are those of the maps of the stage and of all after it."""
        super().__init__()
        layers: list[nn.Module] = []
        for (channels, height, _), (wanted, smaller, _) in pairwise(shapes):
            strided = SeparableConv(channels, channels, stride=round(height / smaller))
            layers += [strided, SeparableConv(channels, wanted)]
        self.layers = nn.Sequential(*layers)
        self.classifier = Classifier(shapes[-1][0], num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,K) and pooled features (B,D) of maps (B,C,H,W)."""
        pooled = average_pool(self.layers(maps))
        return self.classifier(pooled), pooled


class BYOT(SingleStudent):
    """CE(y, p) + the sum over the branches b of (1-alpha) CE(y, p_b) + alpha KL(softmax(z/T) || softmax(z_b/T)) +
    feature_weight ||W_b f_b - f||, z and f (the pooled features) of the student and constant: Zhang et al., ICCV 2019.

    There is a branch on every stage but the last. As the authors' code of the journal version computes it: no T^2,
    features behind a linear layer W_b, their distance over the whole batch rather than a mean, and none for the branch
    on the last stage but one, where a comment says the shallowest. The attention of that version is left out (our
    choice).
    """

    @classmethod
    def needs_for(cls, settings: BYOTSettings) -> Needs:
        return Needs(features=frozenset({"stages"}))

    def __init__(self, settings: BYOTSettings, context: Context) -> None:
        """
        Raises:
            UserError: for a network of a single stage, and see `Context.need_shapes`.
        """
        super().__init__(settings, context)
        self._settings = settings.loss
        maps = context.need_shapes().maps
        if len(maps) < 2:
            raise UserError(f"method byot adds classifiers to earlier stages, and {context.model} has one stage only")
        with seeded(context.seed):
            branches = [Branch(maps[stage:], context.num_classes) for stage in range(len(maps) - 1)]
            adaptations = [nn.Linear(maps[-1][0], context.need_shapes().pooled) for _ in branches[:-1]]
        self.adapters = nn.ModuleList([nn.ModuleList(branches), nn.ModuleList(adaptations)]).to(context.device)
        self._branches, self._adaptations = branches, adaptations

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        settings, features = self._settings, batch.need_features()
        hard, statistics = self.cross_entropy(logits, batch.labels)
        teacher, pooled = logits.detach().unsqueeze(1), features.pooled.detach()
        labels, soft, distances = [torch.zeros_like(hard) for _ in range(3)]
        for stage, branch in enumerate(self._branches):
            maps = features.after_relu[stage]
            with batch.autocast():
                outputs = branch(maps.flatten(0, 1))
            branch_logits, branch_pooled = (part.float().unflatten(0, maps.shape[:2]) for part in outputs)
            labels = labels + self.cross_entropy(branch_logits, batch.labels)[0]
            soft = soft + ops.distillation_loss(branch_logits, teacher, temperature=settings.temperature)
            if stage < len(self._adaptations):
                difference = self._adaptations[stage](branch_pooled) - pooled
                distances = distances + torch.linalg.vector_norm(difference, dim=(1, 2))
        terms = {
            "label": hard,
            "branches": (1.0 - settings.alpha) * labels,
            "soft": settings.alpha / settings.temperature**2 * soft,
            "features": settings.feature_weight * distances,
        }
        return Loss(terms, statistics)

"""KDCL: students that see a view of each image each learn from one ensemble of their predictions."""

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from tfkd_fast.methods.base import Context, Interval, Plan
from tfkd_fast.methods.online.peers import PeerLoss, PeerSettings, PeerStudents


class KDCLLoss(PeerLoss):
    """The `[loss]` table. There is no code of the authors, and we could not read their values: these are our choice."""

    temperature: float = Field(default=2.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of the ensemble and of each student."""


class KDCLSettings(PeerSettings):
    """The tables of collaborative learning (KDCL)."""

    loss: KDCLLoss = KDCLLoss()
    """The divergence from the ensemble, and the label beside it."""


class KDCL(PeerStudents):
    """CE(y, p_k) + weight T^2 KL(softmax(t/T) || softmax(z_k/T)), where the ensemble t has for each class the smallest
    of the students' logits less that of the label, min over k of z_k - z_k[y]: Guo et al., CVPR 2020, KDCL-MinLogit.

    Each student sees every image in an augmentation of its own. Their other ensembles (the best student for an image,
    shares by a convex problem, shares by held-out errors) are left out (our choice).
    """

    def __init__(self, settings: KDCLSettings, context: Context) -> None:
        super().__init__(settings, context, temperature=settings.loss.temperature)

    def resume_interval(self, interval: Interval) -> Plan:
        return replace(super().resume_interval(interval), view_streams=tuple(range(interval.candidates)))

    def teach(self, logits: Tensor, labels: Tensor) -> Tensor:
        relative = logits - logits.gather(-1, labels.unsqueeze(-1))
        return relative.amin(0).expand(len(logits), 1, *logits.shape[1:])

"""ONE: branches on common stages learn from their ensemble, in shares that a gate gives."""

import torch
from pydantic import Field
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, Interval, Loss, Needs, Plan, SingleStudent, StepBatch
from tfkd_fast.methods.taught.warmup import sigmoid_rampup
from tfkd_fast.models.layers import average_pool
from tfkd_fast.models.tail import Tail
from tfkd_fast.randomness import seeded, weights_seed
from tfkd_fast.settings import Settings


class ONELoss(Settings):
    """The `[loss]` table; defaults of the authors' code (Lan1991Xu/ONE_NeurIPS2018)."""

    temperature: float = Field(default=3.0, ge=0.01, le=1_000)
    """Temperature that softens the predictions of the branches and of their ensemble."""
    rampup: float = Field(default=80 / 300, ge=0, le=1)
    """Share of the run over which the weight of the ensemble grows to 1."""


class BranchesTable(Settings):
    """The `[branches]` table: the ends of the network."""

    count: int = Field(default=3, ge=2, le=64)
    """Number of branches with the student's own last stage, which is kept; the others train along."""


class ONESettings(Settings):
    """The tables of branches that learn from their ensemble."""

    loss: ONELoss = ONELoss()
    """The divergence from the ensemble, and the label beside it."""
    branches: BranchesTable = BranchesTable()
    """The ends of the network that learn from their ensemble."""


class Gate(nn.Module):
    """The share of each branch in the ensemble: a linear layer on the pooled map, batch norm, ReLU and softmax."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, maps: Tensor) -> Tensor:
        """Shares (B,M) of M branches, by the map (B,C,H,W) that they begin with."""
        shares: Tensor = self.norm(self.linear(average_pool(maps))).relu().softmax(1)
        return shares


class ONE(SingleStudent):
    """CE(y, p_e) + the sum over branches b of CE(y, p_b) + r T^2 KL(softmax(z_e/T) || softmax(z_b/T)), the ensemble z_e
    = sum over b of g_b z_b constant in the divergence: Lan, Zhu, Gong, NeurIPS 2018.

    A branch is the last stage and the classifier, each with weights of its own; one of them is the student's. The
    shares g are those of a `Gate`, and r grows over the first epochs, see `sigmoid_rampup`.
    """

    @classmethod
    def needs_for(cls, settings: ONESettings) -> Needs:
        return Needs(features=frozenset({"stages"}))

    def __init__(self, settings: ONESettings, context: Context) -> None:
        """
        Raises:
            UserError: for a network whose last stage cannot be run apart, and where the last batch of an epoch is a
                single image.
        """
        super().__init__(settings, context)
        self._settings = settings.loss
        if context.batch_size and context.num_images % context.batch_size == 1:
            raise UserError(
                f"the last batch of {context.num_images} images is a single one, and the gate of one normalises over a "
                f"batch: choose another data.batch_size than {context.batch_size}"
            )
        shapes, count = context.need_shapes(), settings.branches.count
        last = len(shapes.maps) - 1
        networks = [context.build_student(weights_seed(context.seed, number)) for number in range(1, count)]
        tails = nn.ModuleList(Tail(network, shapes, last) for network in networks)
        with seeded(context.seed):
            gate = Gate(shapes.maps[last - 1][0], count).to(context.device)
        self.adapters = nn.ModuleList([tails, gate])
        self._tails, self._gate, self._begin = tails, gate, last - 1
        self.rampup = torch.ones((), device=context.device)
        """() float32: the present weight of the ensemble; it rises to 1 over the first epochs, in place."""

    def resume_interval(self, interval: Interval) -> Plan:
        self.rampup.fill_(sigmoid_rampup(interval.first_epoch, self._settings.rampup, self.context.epochs))
        return super().resume_interval(interval)

    def loss(self, logits: Tensor, batch: StepBatch) -> Loss:
        temperature = self._settings.temperature
        hard, statistics = self.cross_entropy(logits, batch.labels)
        maps = batch.need_features().after_relu[self._begin]
        size = batch.labels.shape
        with batch.autocast():
            outputs = [tail(maps.flatten(0, 1))[0] for tail in self._tails]
        branches = [logits, *(output.float().unflatten(0, size) for output in outputs)]
        shares = self._gate(maps.flatten(0, 1)).unflatten(0, size)
        ensemble = (torch.stack(branches, -1) * shares.unsqueeze(-2)).sum(-1)
        teacher = ensemble.detach().unsqueeze(1)
        labels = [self.cross_entropy(branch, batch.labels)[0] for branch in branches[1:]]
        soft = [ops.distillation_loss(branch, teacher, temperature=temperature) for branch in branches]
        terms = {
            "label": hard,
            "branches": torch.stack(labels).sum(0),
            "ensemble": self.cross_entropy(ensemble, batch.labels)[0],
            "soft": self.rampup * torch.stack(soft).sum(0),
        }
        return Loss(terms, statistics)

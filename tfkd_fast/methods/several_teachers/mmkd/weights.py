"""The two networks that weigh teachers for each sample."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.methods.several_teachers.mmkd.matching import MatchedOutputs
from tfkd_fast.methods.taught.maps import inner_products

GramNorm = Literal["rows", "none"]


class TeacherWeights(nn.Module):
    """Theta_L, which weighs by logits, and Theta_F, by how alike the images of a batch are to each network.

    The student enters without gradient.
    """

    def __init__(self, classes: int, teachers: int, batch_size: int, gram_norm: GramNorm) -> None:
        super().__init__()
        self.by_logits = _perceptron(classes * (teachers + 1), teachers)
        self.by_features = _perceptron(batch_size * (teachers + 1), teachers)
        self._batch_size, self._gram_norm = batch_size, gram_norm

    def forward(self, outputs: MatchedOutputs) -> Tensor:
        """The weights omega and v, together (2,n,B,M); each sums to 1 over the teachers.

        Theta_F knows one batch size only; in another batch the teachers have equal weights for their features (our
        choice; the authors drop the batch).
        """
        networks = [*outputs.teacher_logits.unbind(1), outputs.logits.detach()]
        dtype = next(self.parameters()).dtype
        omega = self.by_logits(torch.cat(networks, dim=-1).to(dtype)).softmax(-1)
        if outputs.logits.shape[1] != self._batch_size:
            return torch.stack([omega, torch.full_like(omega, 1.0 / omega.shape[-1])])
        grams = torch.cat([self._gram(maps) for maps in (*outputs.teacher_maps, outputs.maps.detach())], dim=-1)
        return torch.stack([omega, self.by_features(grams.to(dtype)).softmax(-1)])

    def _gram(self, maps: Tensor) -> Tensor:
        """Gram matrices (n,B,B) of maps (n,B,...)."""
        gram = inner_products(maps)
        return F.normalize(gram, dim=-1) if self._gram_norm == "rows" else gram


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, inputs // 2), nn.ReLU(), nn.Linear(inputs // 2, outputs))

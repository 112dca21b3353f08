"""Deep mutual learning: each student learns from the predictions of all others."""

import torch
from torch import Tensor

from tfkd_fast.methods.base import Context
from tfkd_fast.methods.online.peers import PeerSettings, PeerStudents


class DML(PeerStudents):
    """CE(y, p_k) + weight sum over l != k of KL(p_l || p_k) / (K-1), p_l constant: Zhang, Xiang, Hospedales, Lu, CVPR
    2018, section 3.3.

    The authors' code (YingZhangDUT/Deep-Mutual-Learning) updates one student after the other, by the latest
    predictions of the others, and adds divergences up without a mean, which for two students is the same.
    """

    def __init__(self, settings: PeerSettings, context: Context) -> None:
        super().__init__(settings, context, temperature=1.0)
        count = self.needs.candidates
        others = [[other for other in range(count) if other != own] for own in range(count)]
        self._others = torch.tensor(others, device=context.device)

    def teach(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits[self._others]

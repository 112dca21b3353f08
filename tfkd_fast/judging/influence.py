"""What a target would have to be so that one more step of training serves the held-out loss best."""

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.data import Batch

BATCHES = 8
"""Pairs of a training and a held-out batch that an influence is averaged over (our choice)."""

PERTURBATION = 1e-2
"""Length of the step along which logits are differentiated, as in DARTS (Liu et al., ICLR 2019, section 2.3)."""


def influence(model: nn.Module, scratch: nn.Module, training: Iterable[Batch], holdout: Iterable[Batch]) -> Tensor:
    """(C,C) float64 on the CPU: entry (y,c) is by how much one step of training on a batch raises the held-out loss,
    per unit of mass that the target of label y gives to class c, at learning rate 1 and without momentum.

    A step on the cross-entropy to targets q moves the weights by -lr grad, and q_i enters grad as -(J_i^T q_i) / B,
    where J_i are the derivatives of the logits of sample i. So the held-out loss, whose gradient is g, changes with q_i
    by lr (J_i g) / B: one look-ahead step, differentiated as by Wu et al. (NeurIPS 2018, L2T-DLF), with g taken before
    the step, which is the same to first order. J_i g is a central difference of the logits along g, in float32.

    `scratch` is a network of the same kind, whose weights and buffers are overwritten; `model` stays as it is.
    """
    scratch.load_state_dict(model.state_dict())
    scratch.train()
    weights: list[Tensor] = list(scratch.parameters())
    total: Tensor | None = None
    count = 0
    for shown, judged in islice(zip(training, holdout, strict=False), BATCHES):
        loss = F.cross_entropy(scratch(judged.images.float()), judged.labels)
        direction = torch.autograd.grad(loss, weights)
        length = torch.stack([part.square().sum() for part in direction]).sum().sqrt()
        step = PERTURBATION / length
        along = [step * part for part in direction]
        with torch.no_grad():
            torch._foreach_add_(weights, along)
            above = scratch(shown.images.float())
            torch._foreach_sub_(weights, along, alpha=2.0)
            below = scratch(shown.images.float())
            torch._foreach_add_(weights, along)
            change = ((above - below) / (2.0 * step)).double() / len(shown.labels)
            classes = change.shape[1]
            if total is None:
                total = change.new_zeros(classes, classes)
            total.index_add_(0, shown.labels, change)
        count += 1
    if total is None:
        raise ValueError("training and holdout must hold one batch at least")
    return (total / count).cpu()

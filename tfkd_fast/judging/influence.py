"""Influence of the target on the held-out loss after one look-ahead step of training."""

from collections.abc import Iterable
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.data import Batch
from tfkd_fast.methods.base.differences import derivatives_along

BATCHES = 8
"""Number of pairs of a training and a held-out batch that an influence is averaged over (our choice)."""


def influence(model: nn.Module, scratch: nn.Module, training: Iterable[Batch], holdout: Iterable[Batch]) -> Tensor:
    """Return the derivative of the held-out loss after one training step with respect to the class table.

    A step on the cross-entropy to targets q moves the weights by -lr grad, and q_i enters grad as -(J_i^T q_i) / B,
    where J_i is the Jacobian of the logits of sample i in the weights. So the held-out loss, whose gradient is g,
    changes with q_i by lr (J_i g) / B. This differentiates one look-ahead step as Wu et al. do (NeurIPS 2018, L2T-DLF),
    with g taken before the step, which is equal to first order. J_i g is a central difference of the logits along g,
    in float32.

    Args:
        model: the network, which is not changed.
        scratch: a network of the same architecture, whose weights and buffers are overwritten.
        training: training batches.
        holdout: held-out batches.

    Returns:
        (C,C) float64 on the CPU: entry (y,c) is the increase of the held-out loss in nats, per unit of mass that the
        target of label y gives to class c, of one step at learning rate 1 without momentum; the mean over batches.

    Raises:
        ValueError: there is no batch.
    """
    scratch.load_state_dict(model.state_dict())
    scratch.train()
    weights: list[Tensor] = [weight for weight in scratch.parameters() if weight.requires_grad]
    here = [weight.detach().clone() for weight in weights]
    total: Tensor | None = None
    count = 0
    for fit, judged in islice(zip(training, holdout, strict=False), BATCHES):
        loss = F.cross_entropy(scratch(judged.images.float()), judged.labels)
        direction = torch.autograd.grad(loss, weights, materialize_grads=True)
        images = fit.images.float()
        with torch.no_grad():
            (slopes,) = derivatives_along(direction, weights, here, partial(_outputs, scratch, images))
            torch._foreach_copy_(weights, here)
            change = slopes.double() / len(fit.labels)
            classes = change.shape[1]
            if total is None:
                total = change.new_zeros(classes, classes)
            total.index_add_(0, fit.labels, change)
        count += 1
    if total is None:
        raise ValueError("training and holdout must hold one batch at least")
    return (total / count).cpu()


def _outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    return [network(images)]

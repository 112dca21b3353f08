"""Factors of a loss that grow over the first epochs of a run."""

import math


def warmup_factor(epoch: int, share: float, epochs: int) -> float:
    """The factor in a 0-based epoch of a run of so many: it grows by equal steps, an epoch a step, and is 1 from the
    end of the first `share` of the run on.

    Source: linear warm-up as in the code of DKD and ReviewKD (mdistiller), which count 20 epochs of 240; that it is a
    share of shorter and longer runs is our choice.
    """
    length = share * epochs
    return min((epoch + 1) / length, 1.0) if length else 1.0


def sigmoid_rampup(epoch: int, share: float, epochs: int) -> float:
    """The factor exp(-5 (1 - t)^2) in a 0-based epoch of a run of so many, where t rises from 0 to 1 over the first
    `share` of the run; 1 from then on.

    Source: Laine and Aila, Temporal Ensembling, ICLR 2017, section 3. That it is a share of the run is our choice.
    """
    length = share * epochs
    return math.exp(-5.0 * (1.0 - epoch / length) ** 2) if epoch < length else 1.0

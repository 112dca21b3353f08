"""Variation among candidates beside target and data order: their learning rates."""

import torch

from tfkd_fast.randomness import Purpose, normal, random_words


def learning_rate_factors(spread: float, seed: int, interval: int, candidates: int) -> tuple[float, ...]:
    """Return the factor of each candidate on the scheduled learning rate.

    Candidate 0 has the factor 1; every other one draws exp(spread * z), z standard normal, so that faster and slower
    are equally likely. The factors are a function of the arguments: a survivor of a rung of successive halving keeps
    its factor, and more candidates do not change the factors of the first ones.

    Args:
        spread: standard deviation of the logarithm of a factor, `selection.learning_rate_spread`.
        seed: seed of the run.
        interval: number of the interval that starts the round, counted from 0.
        candidates: number of candidates.
    """
    words = random_words(torch.arange(candidates), Purpose.LEARNING_RATE, seed=seed, epoch=interval)
    factors = (spread * normal(words[0], words[1])).exp()
    factors[0] = 1.0
    return tuple(factors.tolist())

"""What candidates differ in beside target and data order."""

import torch

from tfkd_fast.randomness import Purpose, normal, random_words
from tfkd_fast.steering.selection.settings import SelectionSettings


def learning_rate_factors(settings: SelectionSettings, seed: int, interval: int, candidates: int) -> tuple[float, ...]:
    """What each candidate of an interval multiplies the schedule's learning rate with.

    Candidate 0 keeps the schedule; the others draw exp(spread * z), z standard normal, so that faster and slower are
    equally likely. A pure function: `interval` is the number of the interval that starts the round, and a survivor of a
    rung of successive halving keeps its factor. More candidates do not change those of the first.
    """
    words = random_words(torch.arange(candidates), Purpose.LEARNING_RATE, seed=seed, epoch=interval)
    factors = (settings.learning_rate_spread * normal(words[0], words[1])).exp()
    factors[0] = 1.0
    return tuple(factors.tolist())

"""Methods in a training loop of one's own: a method as a criterion, and selection among candidates.

The methods are those of the engine, and so are the loss of a step and the figures of an epoch; the loop, its networks,
images and optimisers are the user's.
"""

from tfkd_fast.own_loop.criterion import Criterion, EpochReport
from tfkd_fast.own_loop.steering import Steering

__all__ = ["Criterion", "EpochReport", "Steering"]

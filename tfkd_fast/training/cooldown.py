"""What candidates would be worth if training ended here: copies of them are trained to an end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tfkd_fast.methods.base import Method
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.training.population import Population


@contextmanager
def cooled(
    population: Population,
    method: Method,
    recipe: Recipe,
    candidates: int,
    epoch: int,
    steps: int,
    train: Callable[[int, list[float]], object],
) -> Iterator[None]:
    """While it is open, the first candidates are what `Method.cooldown_epochs` from `epoch` (0-based) on make of them.

    At its end population and method are as they were.

    Args:
        steps: of an epoch.
        train: trains the candidates for one epoch, told which one it is and the learning rate of every step.
    """
    before = population.state_dict(candidates)
    start, total = recipe.learning_rate(epoch), method.cooldown_epochs * steps
    falling = [start * (1.0 - step / total) for step in range(total)]
    with method.cooldown():
        for number in range(method.cooldown_epochs):
            train(epoch + number, falling[number * steps : (number + 1) * steps])
        yield
    population.load_state_dict(before)

"""What candidates would be worth if training ended here: copies of them are trained to an end."""

from collections.abc import Iterator
from contextlib import contextmanager

from tfkd_fast.methods.base import Plan, SteeredMethod
from tfkd_fast.training.epoch import EpochRun, EpochTrainer


@contextmanager
def cooled(
    trainer: EpochTrainer, method: SteeredMethod, plan: Plan, epoch: int, learning_rate: float
) -> Iterator[list[EpochRun]]:
    """While it is open, the candidates are what `Needs.cooldown_epochs` from the 0-based `epoch` on make of them.

    Their learning rate falls from `learning_rate` to zero along a straight line. Gives the runs of all epochs. At the
    end population and method are as they were, also where an error ends it. Nobody is told of the batches.
    """
    candidates, epochs = plan.interval.candidates, method.needs.cooldown_epochs
    before = trainer.population.state_dict(candidates)
    steps = trainer.steps(plan)
    falling = [learning_rate * (1.0 - step / (epochs * steps)) for step in range(epochs * steps)]
    try:
        with method.cooldown():
            runs: list[EpochRun] = []
            for number in range(epochs):
                rates = falling[number * steps : (number + 1) * steps]
                runs += trainer.run(plan, epoch + number, rates, average=False, announced=False)
            yield runs
    finally:
        trainer.population.load_state_dict(before)

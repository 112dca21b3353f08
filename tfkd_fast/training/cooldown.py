"""Cooldowns: the candidates are trained to a learning rate of zero, judged, and restored."""

from collections.abc import Iterator
from contextlib import contextmanager

from tfkd_fast.methods.base import Plan, SteeredMethod
from tfkd_fast.training.epoch import EpochRun, EpochTrainer


@contextmanager
def train_cooldown(
    trainer: EpochTrainer, method: SteeredMethod, plan: Plan, epoch: int, learning_rate: float
) -> Iterator[list[EpochRun]]:
    """Context manager in which the candidates have been trained for `Needs.cooldown_epochs` from the 0-based `epoch`
    on.

    Their learning rate falls from `learning_rate` to zero along a straight line. It yields the runs of all epochs. On
    exit, also by an error, population and method are restored. `on_batch` is not called.
    """
    candidates, epochs = plan.interval.candidates, method.needs.cooldown_epochs
    before = trainer.population.state_dict(candidates)
    steps = trainer.steps(plan)
    learning_rates = [learning_rate * (1.0 - step / (epochs * steps)) for step in range(epochs * steps)]
    try:
        with method.cooldown():
            runs: list[EpochRun] = []
            for number in range(epochs):
                rates = learning_rates[number * steps : (number + 1) * steps]
                runs += trainer.run(plan, epoch + number, rates, average=False, report_batches=False)
            yield runs
    finally:
        trainer.population.load_state_dict(before)

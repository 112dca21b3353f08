"""What the controller tests share."""

import pytest

from tfkd_fast.steering.control import Progress


@pytest.fixture
def progress() -> Progress:
    return Progress(
        num_classes=100,
        epoch_fraction=0.25,
        learning_rate_ratio=0.1,
        train_loss=1.5,
        train_top1=0.6,
        holdout_top1=0.5,
        holdout_nll=1.8,
        delta_top1=0.02,
        delta_nll=-0.1,
        entropy=1.2,
        true_probability=0.55,
        true_mass=0.9,
    )

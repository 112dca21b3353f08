"""The policy that `tfkd` plays: the file that is shipped, and what it teaches in the course of a run."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from scipy.special import logit

from tfkd_fast.methods import METHODS
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.policies import by_hand
from tfkd_fast.steering.control import Progress, build_controller
from tfkd_fast.steering.targets import build_mixture

CLASSES = 100
MASS, SHARE = 0.03 * (0.997 - 0.55), 0.25 * 0.03 * (logit(0.74) - logit(0.05) + logit(0.74) - logit(0.12))
"""So far a course may be from its actions at their times, when 3 % of a way are done or left: of the mass, 3 % of its
range; of the share, 3 % of both ways of its logit, times a quarter, the largest slope of a sigmoid."""
BEFORE = Progress(
    num_classes=CLASSES,
    epoch_fraction=0.0,
    learning_rate_ratio=1.0,
    train_loss=2.0,
    train_top1=0.5,
    holdout_top1=0.5,
    holdout_nll=2.0,
    delta_top1=0.0,
    delta_nll=0.0,
    entropy=1.0,
    true_probability=0.5,
    true_mass=0.9,
)


def test_the_shipped_file_is_what_the_numbers_give() -> None:
    shipped = files("tfkd_fast.recipes") / "policies" / f"{by_hand.NAME}.safetensors"
    assert shipped.read_bytes() == by_hand.default_policy()


@pytest.mark.parametrize("method", ["tfkd", "tfkd-mrs"])
@pytest.mark.parametrize(
    ("time", "gap", "mass", "share"),
    [
        (0.0, 0.05, 0.9, 0.05),
        (0.9, 0.05, 0.9, 0.05),
        (0.0, 0.3, 0.55, 0.05),
        (0.2, 0.15, 0.55, 0.07),
        (0.72, 0.3, 0.55, 0.74),
        (1.0, 0.3, 0.997, 0.12),
    ],
    ids=["early, small gap", "late, small gap", "early", "a fifth", "at the switch", "at the end"],
)
def test_what_it_teaches(method: str, time: float, gap: float, mass: float, share: float) -> None:
    settings = ControlledTargetsSettings.model_validate(METHODS[method].preset)
    space = build_mixture(settings.target, CLASSES)
    controller = build_controller(settings.controller, space, seed=0)
    progress = replace(BEFORE, epoch_fraction=time, train_top1=0.5 + gap)
    actions = controller.decide(progress, 2).actions
    assert torch.equal(actions[0], actions[1])
    if gap < by_hand.THRESHOLD:
        torch.testing.assert_close(actions, torch.zeros(2, 3), atol=1e-4, rtol=0.0)
    tables = space.target.tables(space.class_actions(actions), torch.zeros(2, CLASSES, CLASSES))
    assert tables[0, 7, 7].item() == pytest.approx(mass, abs=MASS)
    assert space.shares(actions)[0, 1].item() == pytest.approx(share, abs=SHARE)
    assert space.temperatures(actions)[0, 0].item() == pytest.approx(1.0)

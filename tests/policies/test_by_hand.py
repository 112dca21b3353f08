"""The policy that `tfkd` plays: the file that is shipped, and what it teaches in the course of a run."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from scipy.special import logit

from tfkd_fast.methods import METHODS
from tfkd_fast.methods.controlled.method import ControlledTargetsSettings
from tfkd_fast.policies import by_hand
from tfkd_fast.steering.control import DecisionOutcome, Progress, build_controller
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

MEMORISES = [
    (0.06, 0.34, -0.017),
    (0.11, 0.58, -0.021),
    (0.16, 0.82, -0.041),
    (0.21, 1.00, -0.028),
    (0.26, 0.99, 0.008),
    (0.31, 0.95, 0.025),
    (0.36, 0.90, 0.046),
    (0.41, 0.84, 0.058),
    (0.46, 0.76, 0.083),
    (0.56, 0.57, 0.225),
    (0.61, 0.48, 0.223),
    (0.66, 0.38, 0.228),
    (0.71, 0.29, 0.235),
    (0.76, 0.20, 0.229),
    (0.81, 0.13, 0.225),
    (0.86, 0.07, 0.214),
    (0.91, 0.03, 0.219),
    (0.96, 0.01, 0.225),
    (0.99, 0.00, 0.218),
]
"""Share of the run, learning rate and generalisation gap in 80 epochs of CIFAR-100 (100 images a class, VGG-8 at a
quarter of its width), in which a target that softened was worth 1.5 points."""
DOES_NOT = [
    (0.12, 0.64, -0.022),
    (0.20, 1.00, -0.042),
    (0.28, 0.98, -0.027),
    (0.35, 0.92, -0.018),
    (0.42, 0.82, 0.005),
    (0.50, 0.69, 0.030),
    (0.57, 0.55, 0.047),
    (0.65, 0.40, 0.080),
    (0.72, 0.26, 0.104),
    (0.80, 0.15, 0.166),
    (0.88, 0.06, 0.186),
    (0.95, 0.01, 0.205),
    (0.97, 0.00, 0.209),
]
"""The same in 40 epochs; a target that softened at 0.68 of the run cost 0.5 points, and at 0.35 of it 4."""


def test_the_shipped_file_is_what_the_numbers_give() -> None:
    shipped = files("tfkd_fast.recipes") / "policies" / f"{by_hand.NAME}.safetensors"
    assert shipped.read_bytes() == by_hand.default_policy()


@pytest.mark.parametrize("method", ["tfkd", "tfkd-mrs"])
@pytest.mark.parametrize(
    ("time", "least", "gap", "mass", "share"),
    [
        (0.0, 1.0, 0.05, 0.9, 0.05),
        (0.9, 0.9, 0.05, 0.9, 0.05),
        (0.7, 0.9, 0.3, 0.9, 0.05),
        (0.0, 1.0, 0.3, 0.55, 0.05),
        (0.2, 0.9, 0.15, 0.55, 0.07),
        (0.72, 0.55, 0.3, 0.55, 0.74),
        (1.0, 0.55, 0.3, 0.997, 0.12),
    ],
    ids=["early, small gap", "late, small gap", "too late", "early", "a fifth", "at the switch", "at the end"],
)
@pytest.mark.parametrize("by", ["epoch_fraction", "phase"])
def test_what_it_teaches(
    method: str, by: str, time: float, least: float, gap: float, mass: float, share: float
) -> None:
    settings = ControlledTargetsSettings.model_validate(METHODS[method].preset)
    space = build_mixture(settings.target, CLASSES)
    controller = build_controller(settings.controller, space, seed=0)
    progress = replace(BEFORE, train_top1=0.5 + gap, least_true_mass=least, **{by: time})
    actions = controller.decide(progress, 2).actions
    assert torch.equal(actions[0], actions[1])
    if (mass, share) == (0.9, 0.05):
        torch.testing.assert_close(actions, torch.zeros(2, 3), atol=1e-4, rtol=0.0)
    tables = space.target.tables(space.class_actions(actions), torch.zeros(2, CLASSES, CLASSES))
    assert tables[0, 7, 7].item() == pytest.approx(mass, abs=MASS)
    assert space.shares(actions)[0, 1].item() == pytest.approx(share, abs=SHARE)
    assert space.temperatures(actions)[0, 0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("course", [MEMORISES, DOES_NOT], ids=["memorises", "does not"])
def test_the_target_softens_early_and_once_or_not_at_all(course: list[tuple[float, float, float]]) -> None:
    settings = ControlledTargetsSettings.model_validate(METHODS["tfkd"].preset)
    space = build_mixture(settings.target, CLASSES)
    controller = build_controller(settings.controller, space, seed=0)
    outcome = DecisionOutcome((0.5,), (2.0,), parent_top1=0.5, parent_nll=2.0, winner=0)
    masses = [1.0]
    for time, rate, gap in course:
        progress = replace(BEFORE, epoch_fraction=time, learning_rate_ratio=rate, train_top1=0.5 + gap)
        progress = replace(progress, least_true_mass=min(masses))
        decision = controller.decide(progress, 1)
        controller.learn(decision, outcome, progress)
        table = space.target.tables(space.class_actions(decision.actions), torch.zeros(1, CLASSES, CLASSES))
        masses.append(table[0, 7, 7].item())
    if course is DOES_NOT:
        assert masses[1:] == pytest.approx([0.9] * len(course), abs=1e-3)
    else:
        early, late = masses[1:10], masses[10:]
        assert early == pytest.approx([0.9] * len(early), abs=0.02)
        assert late[:5] == pytest.approx([0.55] * 5, abs=0.03)
        assert late[4:] == sorted(late[4:])
        assert late[-1] == pytest.approx(0.997, abs=0.002)

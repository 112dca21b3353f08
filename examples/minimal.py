"""The main idea of tfkd_fast in one file: a bandit sets what a student is taught, and the best candidate lives on.

    python examples/minimal.py          # under half a minute on one core

A student learns handwritten digits without a teacher. Every label is taught with a row of a table: so much mass on the
true class, the rest spread over the others. Every two epochs a bandit chooses the masses. Three candidates start from
one parent: one under the neutral target (label smoothing 0.1), two under arms of the bandit. Their held-out accuracy
and NLL are ranked, training continues from the winner, and the bandit learns by how much each arm did better than the
neutral target. The test images are looked at once, at the end.

What this file leaves out, and the package has: targets with more freedom than one number, controllers that see how
the run goes, weights averaged before they are judged, judging after a cooldown (a soft target that is judged at once,
at a high learning rate, looks worse than it is), cheaper budgets of candidates, more criteria, augmentation, resuming,
logs and reports. On so few images no target beats another by much: this run shows the mechanism, not a gain. Soft
targets leave the student unsure of what it knows, so its NLL is low only after temperature scaling.
"""

import copy
import math
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tfkd_fast import ops

CLASSES, EPOCHS, INTERVAL, BATCH = 10, 32, 2, 32
ARMS = [0.5, 0.7, 0.8, 0.97, 1.0]
"""Masses of the true class that the bandit chooses from; 1 is the one-hot label."""
NEUTRAL = 0.9


def split_digits() -> tuple[tuple[Tensor, Tensor], ...]:
    """Images (N,1,8,8) between 0 and 1 and labels (N,): 1,000 to fit, 397 held out, 400 to test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    return tuple((images[part], labels[part]) for part in order.split([1000, 397, 400]))


def make_student() -> nn.Module:
    """Images to logits, 6,090 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, CLASSES),
    )  # fmt: skip


def target_table(mass: float) -> Tensor:
    """(C,C): row y teaches label y, with `mass` on the true class and the rest spread evenly over the others."""
    table = torch.full((CLASSES, CLASSES), (1 - mass) / (CLASSES - 1))
    return table.fill_diagonal_(mass)


class Bandit:
    """Discounted UCB (Garivier and Moulines, 2011): what is known of an arm fades, because the best one changes."""

    def __init__(self, forgetting: float = 0.9, exploration: float = 0.5) -> None:
        self.forgetting, self.exploration = forgetting, exploration
        self.counts, self.sums, self.scale = torch.zeros(len(ARMS)), torch.zeros(len(ARMS)), 0.0

    def choose(self, number: int) -> list[int]:
        """The arms that score best; those that were never tried come first."""
        bonus = (self.counts.sum().clamp(min=1).log() / self.counts).sqrt()
        bounds = torch.where(self.counts > 0, self.sums / self.counts + self.exploration * bonus, torch.inf)
        return bounds.argsort(descending=True, stable=True)[:number].tolist()

    def learn(self, arms: list[int], gains: list[float]) -> None:
        """Take in the gain of each arm over the neutral target, in units of the usual size of a gain."""
        self.scale = max(self.scale, max(map(abs, gains)), 1e-6)
        self.counts, self.sums = self.forgetting * self.counts, self.forgetting * self.sums
        for arm, gain in zip(arms, gains, strict=True):
            self.counts[arm] += 1
            self.sums[arm] += gain / self.scale


def train_interval(
    students: list[nn.Module], optimizers: list[torch.optim.SGD], tables: Tensor, images: Tensor, labels: Tensor
) -> None:
    """Train P candidates side by side, each under its table of (P,C,C), on the same batches."""
    for _ in range(INTERVAL):
        for batch in torch.randperm(len(labels)).split(BATCH):
            logits = torch.stack([student(images[batch]) for student in students])  # (P,B,C)
            losses = ops.soft_target_loss(logits, labels[batch].expand(len(students), -1), tables)  # (P,)
            for optimizer in optimizers:
                optimizer.zero_grad()
            losses.sum().backward()  # no candidate's loss depends on another's weights
            for optimizer in optimizers:
                optimizer.step()


@torch.no_grad()
def judge(students: list[nn.Module], images: Tensor, labels: Tensor) -> ops.CandidateMetrics:
    """Accuracy, likelihood and calibration of all candidates on the same images."""
    return ops.candidate_metrics(torch.stack([student(images) for student in students]), labels)


def main() -> dict[str, float | list[float]]:
    """Train, and return the test figures and the true mass that the surviving student was taught with, by intervals."""
    torch.manual_seed(0)
    fit, holdout, test = split_digits()
    student = make_student()
    momentum: dict[str, Any] | None = None  # state of the survivor's optimizer
    bandit, taught = Bandit(), []
    for start in range(0, EPOCHS, INTERVAL):
        rate = 0.05 * (1 + math.cos(math.pi * start / EPOCHS)) / 2
        arms = bandit.choose(2)
        masses = [NEUTRAL, *(ARMS[arm] for arm in arms)]

        # From one parent, a candidate under each target.
        candidates = [copy.deepcopy(student) for _ in masses]
        optimizers = [torch.optim.SGD(candidate.parameters(), lr=rate, momentum=0.9) for candidate in candidates]
        for optimizer in optimizers:
            if momentum is not None:
                optimizer.load_state_dict(copy.deepcopy(momentum))
            optimizer.param_groups[0]["lr"] = rate
        train_interval(candidates, optimizers, torch.stack([target_table(mass) for mass in masses]), *fit)

        # Ranked by two criteria on held-out images; temperature scaling keeps soft targets from looking unsure.
        metrics = judge(candidates, *holdout)
        criteria = torch.stack([metrics.calibrated_nll, metrics.top1], dim=1)  # (P,2), the more trusted first
        winner = int(ops.rank_candidates(criteria, higher_is_better=[False, True]).winner)

        gains = (metrics.calibrated_nll[0] - metrics.calibrated_nll[1:]).tolist()  # nats below the neutral candidate's
        bandit.learn(arms, gains)
        student, momentum = candidates[winner], optimizers[winner].state_dict()
        taught.append(masses[winner])
        scores = ", ".join(
            f"{mass:.2f}{'*' if number == winner else ''} {100 * top1:.1f} % {nll:.3f}"
            for number, (mass, top1, nll) in enumerate(zip(masses, metrics.top1, metrics.calibrated_nll, strict=True))
        )
        print(f"epochs {start + 1:2}-{start + INTERVAL:2}  true mass, held-out top-1, NLL: {scores}")

    figures = judge([student], *test)
    result = {"top1": float(figures.top1), "calibrated_nll": float(figures.calibrated_nll)}
    print("taught with", " ".join(f"{mass:.2f}" for mass in taught), "of the mass on the true class")
    print(f"test accuracy {100 * result['top1']:.1f} %, calibrated NLL {result['calibrated_nll']:.3f}")
    return {**result, "taught": taught}


if __name__ == "__main__":
    main()

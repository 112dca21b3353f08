"""Criteria of every method that a loop of one's own can have, and what a call hands over to each."""

from typing import Any

import torch
from torch import nn

from tfkd_fast.methods import METHODS
from tfkd_fast.methods.base import CompanionOutputs, TeacherOutputs
from tfkd_fast.models import Features, FeatureShapes
from tfkd_fast.own_loop import Criterion

CLASSES, IMAGES, BATCH, HELD_OUT, EPOCHS = 5, 40, 8, 30, 4
SHAPES = FeatureShapes(((8, 8, 8), (8, 4, 4), (16, 2, 2)), 16)
TABLES: dict[str, dict[str, Any]] = {
    "ca-mkd": {"loss": {"feature_weight": 0.0}},
    "crd": {"loss": {"negatives": 16}},
    "tfkd": {"controller": {"warmup_epochs": 0}},
    "tfkd-mrs": {"selection": {"candidates": 3, "interval": 2}, "controller": {"warmup_epochs": 0}},
    "tfkd-extended": {"selection": {"candidates": 2, "interval": 2}, "controller": {"warmup_epochs": 0}},
}
NEED_MORE = (
    *("mmkd", "distpro-search", "distpro", "professor", "education", "kd-specialists"),
    *("mlkd", "mlkd-ls", "fsp", "ft", "ab", "ofd", "srrl", "one", "mixskd"),
)
"""Those that are refused, and those that need facts about their teachers."""
SERVED = [name for name in METHODS if name not in NEED_MORE]


def make(name: str, **changes: Any) -> Criterion:
    """A criterion that was given all that its method may need."""
    given = {"num_classes": CLASSES, "epochs": EPOCHS, "num_images": IMAGES, "batch_size": BATCH}
    return Criterion(name, **{**given, "feature_shapes": SHAPES, **TABLES.get(name, {}), **changes})


class Classifier(nn.Module):
    """A network of which nothing is read but its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(16, CLASSES)


CLASSIFIER = Classifier()


def arguments(name: str, seed: int, candidates: int = 1) -> dict[str, Any]:
    """The arguments of a call with random logits (B,C) that have a gradient, and with nothing that the method does not
    need; for a method whose candidates learn from each other with an axis of candidates."""
    needs = make(name).needs
    generator = torch.Generator().manual_seed(seed)
    n = (candidates,) if needs.joint_steps else ()

    def random(*shape: int) -> torch.Tensor:
        return 2.0 * torch.randn(*n, *shape, generator=generator)

    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    given: dict[str, Any] = {"logits": random(BATCH, CLASSES).requires_grad_(), "labels": labels}

    def features() -> Features:
        maps = [random(BATCH, *shape) for shape in SHAPES.maps]
        return Features(maps, [each.relu() for each in maps], random(BATCH, 16))

    if needs.teachers.fewest:
        logits = [random(BATCH, CLASSES) for _ in range(needs.teachers.fewest)]
        given["teachers"] = [TeacherOutputs(each, features()) for each in logits] if needs.features else logits
    if needs.indices:
        given["indices"] = torch.randperm(IMAGES, generator=generator)[:BATCH]
    if needs.features:
        given["features"] = features()
    if needs.companions == "same-class":
        given["companions"] = random(BATCH, CLASSES)
    if needs.companions == "previous":
        again = torch.randperm(IMAGES, generator=generator)[:BATCH]
        given["companions"] = CompanionOutputs(random(BATCH, CLASSES), labels, again)
    if needs.companions == "weak":
        again = torch.arange(BATCH)
        given["companions"] = CompanionOutputs(random(BATCH, CLASSES), labels, again, features())
    if needs.slow_decay is not None:
        given["slow_logits"] = random(BATCH, CLASSES)
    if needs.networks:
        given["networks"] = [CLASSIFIER]
    return given

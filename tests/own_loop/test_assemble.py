"""What a loop of one's own can have, and a sentence for every method and setting that it cannot."""

from typing import Any

import pytest

from tests.own_loop.calls import CLASSES, EPOCHS, IMAGES, SHAPES, make
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import TeacherFacts
from tfkd_fast.own_loop import Criterion

EVERY = tuple(range(10))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mmkd", "it tries out steps before they are taken: train with tfkd-fast train --method mmkd$"),
        ("distpro-search", "it tries out steps before they are taken"),
        ("professor", "it prepares itself with training images"),
        ("education", "network, images and learning rate of its stages are its own"),
    ],
)
def test_methods_that_need_more_say_what_and_where_they_work(name: str, words: str) -> None:
    facts = [TeacherFacts("a", "", EVERY, SHAPES), TeacherFacts("b", "", EVERY, SHAPES)]
    with pytest.raises(UserError, match=f"method '{name}' does not work in a loop of one's own, because {words}"):
        make(name, num_classes=10, teacher_facts=facts if name == "mmkd" else facts[:1])


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "tfkd",
            {"controller": {"name": "hypergradient"}},
            "follows the gradient of the held-out loss: choose another",
        ),
        ("tfkd", {"controller": {"cooldown_epochs": 2}}, "set controller.cooldown_epochs to 0, or train with"),
        ("tfkd-mrs", {"selection": {"average": "all"}}, "set selection.average to none, or train with"),
        ("tfkd-mrs", {"selection": {"criteria": ["averaged-top1"]}}, "leave averaged-top1 out of selection.criteria"),
        ("ps-kd", {"num_images": 0}, "give num_images, their number$"),
        ("tfkd", {"num_images": 0}, r"their number, or leave its memory out by target={\"sources\": \[\]}$"),
        ("dlb", {"batch_size": 0}, "give batch_size, the size of the largest one"),
        ("uskd", {"feature_shapes": None}, "give feature_shapes, their shapes"),
        ("kd-average", {"num_teachers": 1}, "learns from 2 or more teachers: num_teachers cannot be 1"),
        ("ce", {"num_teachers": 1}, "learns from no teacher: num_teachers cannot be 1"),
        ("kd", {"teachers": {"runs": ["runs/a"]}}, "hand them to each call"),
        ("kd", {"loss": {"temprature": 2.0}}, "unknown recipe key 'loss.temprature': did you mean 'temperature'"),
        ("kd", {"optimizer": {"momentum": 0.5}}, "method 'kd' reads no 'optimizer'"),
        ("kdd", {}, "unknown method 'kdd': did you mean 'kd'"),
        ("ce", {"num_classes": 1}, "num_classes must be a whole number from 2 to .*: got 1"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(name, **changes)


def test_criteria_of_averages_serve_where_an_interval_is_an_epoch() -> None:
    selection = {"criteria": ["averaged-top1"], "interval": 1, "candidates": 2}
    assert make("tfkd-mrs", selection=selection).most_candidates == 2


def test_the_least_that_a_user_has_to_say() -> None:
    assert Criterion("tfkd", num_classes=CLASSES, epochs=EPOCHS, num_images=IMAGES).candidates == 1

"""Test images stay closed as long as something is steered by how good a student is."""

from collections.abc import Iterator
from contextlib import contextmanager


class ImagesSealed(RuntimeError):
    """Somebody wanted test images while a training run was being steered: an error in the program."""


_seals = 0


@contextmanager
def sealed_test_images() -> Iterator[None]:
    """While this lasts, nobody in this process reads the test images of any data set.

    It lasts as long as a controller and a selection live, so that neither can see them, by mistake or otherwise.
    """
    global _seals
    _seals += 1
    try:
        yield
    finally:
        _seals -= 1


def refuse_while_sealed() -> None:
    """Raise ImagesSealed if test images are sealed."""
    if _seals:
        raise ImagesSealed("test images are read after training, not while a controller is alive")

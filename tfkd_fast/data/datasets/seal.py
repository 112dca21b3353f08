"""A seal on test images, so that nothing that steers training can read them."""

from collections.abc import Iterator
from contextlib import contextmanager


class ImagesSealed(RuntimeError):
    """Test images were read while a training run was in progress, which is an error in the program."""


_seals = 0


@contextmanager
def sealed_test_images() -> Iterator[None]:
    """Forbid this process to read the test images of any data set while the context is open.

    Runs open it for as long as a controller and a selection exist, so that neither can read test images by mistake.
    """
    global _seals
    _seals += 1
    try:
        yield
    finally:
        _seals -= 1


def refuse_while_sealed() -> None:
    """Raise `ImagesSealed` if test images are sealed."""
    if _seals:
        raise ImagesSealed("test images are read after training, not while a controller is alive")

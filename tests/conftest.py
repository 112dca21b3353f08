"""What all tests share."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.support.marks import Durations, mark_apart, mark_slow
from tests.support.once import Once
from tests.support.real_images import real_images

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a script's background; what tests start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)  # speed belongs in benchmarks
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements of convolutions stay out of the user's cache, and those in it out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """What is made once for all tests of a session, in whichever processes they run."""
    return Once(tmp_path_factory)


@pytest.fixture(scope="session")
def real_cifar10(once: Once) -> Path:
    """An .npz file of real CIFAR-10 images, 200 of each class to train on and 200 to test on."""
    return real_images("cifar10", once)


@pytest.fixture(scope="session", params=["cifar10", "cifar100"])
def real_cifar(request: pytest.FixtureRequest, once: Once) -> Path:
    """An .npz file of real images: of CIFAR-10 as above, or of CIFAR-100, 10 of each class."""
    return real_images(request.param, once)


@pytest.fixture
def exact_products() -> Iterator[None]:
    """float32 with all its bits, always by the same kernels, and no limit on what earlier tests compiled."""
    allowed, fixed = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    torch.compiler.reset()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = allowed, fixed


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_of_earlier_tests() -> Iterator[None]:
    """What a module leaves for good, most of all imports, is not looked through again by the runs of later modules."""
    yield
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", action="store_true", help="write down how long the tests take, for `make test-fast`")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--measure"):
        config.pluginmanager.register(Durations())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow; skip what needs a GPU where there is none."""
    mark_apart(items)
    mark_slow(items)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Every run collects garbage at its end: it need not look through what is loaded by now, which stays."""
    gc.collect()
    gc.freeze()

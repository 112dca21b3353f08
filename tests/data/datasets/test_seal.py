"""Test images are refused while anybody holds them sealed."""

import pytest

from tfkd_fast.data import DataSettings, ImagesSealed, open_dataset, sealed_test_images


def test_sealed_images_are_refused_whoever_asks_and_training_images_are_not() -> None:
    digits = open_dataset(DataSettings())
    with sealed_test_images():
        for dataset in (digits, open_dataset(DataSettings())):
            with pytest.raises(ImagesSealed, match="test images are read after training, not while a controller"):
                dataset.read_test()
            assert len(dataset.read_train())
    assert len(digits.read_test())


def test_the_outermost_seal_opens_last() -> None:
    digits = open_dataset(DataSettings())
    with sealed_test_images():
        with sealed_test_images():
            pass
        with pytest.raises(ImagesSealed):
            digits.read_test()
    assert len(digits.read_test())


def test_an_error_opens_every_seal_that_it_passes() -> None:
    digits = open_dataset(DataSettings())
    with pytest.raises(KeyboardInterrupt), sealed_test_images(), sealed_test_images():
        raise KeyboardInterrupt
    assert len(digits.read_test())

"""Shares of images and classes in MLKD, and what it refuses."""

import numpy as np
import pytest
import torch

from tests.own_loop.calls import make
from tfkd_fast.errors import UserError
from tfkd_fast.methods import METHODS
from tfkd_fast.methods.one_teacher.logits.mlkd import share_up_to_median


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_the_share_up_to_the_median(count: int) -> None:
    values = torch.rand(3, count, generator=torch.Generator().manual_seed(count))
    values[2] = 0.5  # ties
    expected = [float((row <= np.percentile(row, 50)).mean()) for row in values.numpy()]
    assert share_up_to_median(values).tolist() == pytest.approx(expected)


def test_both_views_teach_and_mixed_images_are_refused() -> None:
    needs = METHODS["mlkd"].needs()
    assert (needs.companions, needs.companion_gradient, needs.mixing) == ("strong", True, False)


def test_a_loop_of_ones_own_has_no_second_view_for_teachers() -> None:
    with pytest.raises(UserError, match="'mlkd' does not work in a loop of one's own, because its teachers look at"):
        make("mlkd")

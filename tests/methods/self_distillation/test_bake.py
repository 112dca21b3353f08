"""The ensemble of BAKE against an inverse, and the order of its epochs."""

import pytest
import torch
from torch import Tensor

from tfkd_fast.methods.base import Context, Interval
from tfkd_fast.methods.self_distillation.bake import BAKE, BAKESettings, ensemble
from tfkd_fast.models import FeatureShapes


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("omega", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_the_ensemble_is_the_inverse(omega: float) -> None:
    features, predictions = random(2, 9, 4, seed=0), random(2, 9, 5, seed=1).softmax(-1)
    directions = features / features.norm(dim=-1, keepdim=True)
    similarities = directions @ directions.mT
    similarities.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    inverse = torch.linalg.inv(torch.eye(9, dtype=torch.float64) - omega * similarities.softmax(-1))
    found = ensemble(features, predictions, omega)
    torch.testing.assert_close(found, (1 - omega) * inverse @ predictions, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 9, dtype=torch.float64))


def test_an_image_alone_in_its_batch_is_its_own_target() -> None:
    predictions = random(1, 1, 5, seed=2).softmax(-1)
    torch.testing.assert_close(ensemble(random(1, 1, 4, seed=3), predictions, 0.5), predictions)


def test_the_order_of_its_epochs_is_in_its_plan() -> None:
    settings = BAKESettings.model_validate({"loss": {"images_of_class": 3}})
    shapes = FeatureShapes(((8, 4, 4), (8, 2, 2)), 8)
    method = BAKE(settings, Context(5, 12, 4, 0, torch.device("cpu"), lambda epoch: 1.0, shapes=shapes))
    assert method.begin_interval(1).class_groups == method.resume_interval(Interval(1, 1, 1)).class_groups == 3

"""Judgements of decisions: the classifier that is fitted anew, and the sign of rank correlations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from benchmarks.reward_horizon import correlations, fit_classifier, split_by_class
from tests.support.runs import CPU, few_images, recipe
from tfkd_fast.training.assemble import load_images

DECAY = 0.05


def test_a_classifier_is_fitted_to_the_minimum_that_scipy_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(90, 4, generator=generator), torch.randint(3, (90,), generator=generator)
    classifier = nn.Linear(4, 3)
    fit_classifier(classifier, features, labels, DECAY)

    def objective(values: np.ndarray) -> float:
        weight, bias = torch.from_numpy(values).split((12, 3))
        loss = F.cross_entropy(features.double() @ weight.view(3, 4).T + bias, labels)
        return float(loss + 0.5 * DECAY * (weight.square().sum() + bias.square().sum()))

    found = torch.cat([classifier.weight.detach().flatten(), classifier.bias.detach()]).double().numpy()
    best = minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-8})
    assert found == pytest.approx(best.x, abs=2e-3)


def test_correlations_are_positive_where_a_judgement_agrees_with_the_end() -> None:
    record = {
        "judged": {"way": {"top1": [0.1, 0.2, 0.3, 0.4], "nll": [4.0, 3.0, 1.0, 2.0]}},
        "final": {"top1": [0.5, 0.6, 0.7, 0.8], "nll": [2.0, 1.9, 1.8, 1.7]},
    }
    assert correlations([record], "way", "top1", "top1") == pytest.approx([1.0])
    assert correlations([record], "way", "top1", "nll") == pytest.approx([1.0])
    assert correlations([record], "way", "nll", "top1") == pytest.approx([0.8])
    assert correlations([record], "way", "nll", "nll") == pytest.approx([0.8])


def test_decisions_and_final_students_are_judged_by_different_images() -> None:
    images = load_images(recipe("ce", data={"holdout": 0.5}), few_images(), CPU)
    assert images.holdout is not None
    few, others = split_by_class(images.holdout, 4)
    labels = torch.cat([batch.labels for batch in few.in_order()])
    assert labels.bincount().tolist() == [4] * 10
    indices = [torch.cat([batch.indices for batch in loader.in_order()]) for loader in (few, others, images.holdout)]
    assert torch.equal(torch.cat(indices[:2]).sort().values, indices[2].sort().values)

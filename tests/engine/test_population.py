"""Candidates: copying a winner, and a state that comes back bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tfkd_fast.engine.population import Candidate, Population
from tfkd_fast.engine.schedule import OptimizerSettings
from tfkd_fast.models import ModelSettings, build_model

SETTINGS = OptimizerSettings()


def build() -> torch.nn.Module:
    return build_model(ModelSettings(width=0.125), num_classes=4, in_channels=1, seed=0)


def train(candidate: Candidate, seed: int, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images = torch.randn(8, 1, 32, 32, generator=generator)
        labels = torch.randint(4, (8,), generator=generator)
        loss = F.cross_entropy(candidate.model.train()(images), labels)
        candidate.optimizer.zero_grad()
        loss.backward()
        candidate.optimizer.step()


def tensors(candidate: Candidate) -> list[torch.Tensor]:
    state = candidate.state_dict()
    return [*state["model"].values(), *state["momentum"]]


def assert_equal(first: Candidate, second: Candidate) -> None:
    for a, b in zip(tensors(first), tensors(second), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_slots_start_equal() -> None:
    population = Population(build, SETTINGS, 3)
    assert_equal(population.candidates[0], population.candidates[2])


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_after_selection_all_slots_are_the_winner_and_train_alike(winner: int) -> None:
    population = Population(build, SETTINGS, 3)
    for slot, candidate in enumerate(population.candidates):
        train(candidate, seed=slot)
    expected = copy.deepcopy(tensors(population.candidates[winner]))
    population.continue_from(winner)
    for candidate in population.candidates:
        for a, b in zip(tensors(candidate), expected, strict=True):
            assert torch.equal(a, b)
    for candidate in population.candidates:
        train(candidate, seed=7)
    assert_equal(population.candidates[0], population.candidates[1])
    assert_equal(population.candidates[0], population.candidates[2])
    # copies, not shared storage
    train(population.candidates[0], seed=8)
    assert not torch.equal(tensors(population.candidates[0])[0], tensors(population.candidates[1])[0])


def test_state_comes_back_and_training_goes_on_alike() -> None:
    population = Population(build, SETTINGS, 2)
    for slot, candidate in enumerate(population.candidates):
        train(candidate, seed=slot)
        candidate.interval_average = candidate.start_average()
        candidate.interval_average.update_parameters(candidate.model)
    state = copy.deepcopy(population.state_dict(2))
    restored = Population(build, SETTINGS, 2)
    restored.load_state_dict(state)
    for a, b in zip(population.candidates, restored.candidates, strict=True):
        train(a, seed=5)
        train(b, seed=5)
        assert_equal(a, b)
        for candidate in (a, b):
            candidate.interval_average.update_parameters(candidate.model)
        for x, y in zip(a.interval_average.parameters(), b.interval_average.parameters(), strict=True):
            assert torch.equal(x, y)


def test_momentum_of_a_fresh_candidate_is_restored_as_none() -> None:
    fresh, trained = Population(build, SETTINGS, 1), Population(build, SETTINGS, 1)
    train(trained.candidates[0], seed=0)
    trained.load_state_dict(fresh.state_dict(1))
    train(fresh.candidates[0], seed=1)
    train(trained.candidates[0], seed=1)
    assert_equal(fresh.candidates[0], trained.candidates[0])


def test_the_average_is_the_mean_of_the_weights() -> None:
    candidate = Population(build, SETTINGS, 1).candidates[0]
    average, sums = candidate.start_average(), None
    for seed in range(3):
        train(candidate, seed)
        average.update_parameters(candidate.model)
        weights = [p.detach().double() for p in candidate.model.parameters()]
        sums = weights if sums is None else [a + b for a, b in zip(sums, weights, strict=True)]
    for mean, total in zip(average.parameters(), sums, strict=True):
        # three float32 roundings of values of order 1
        torch.testing.assert_close(mean.double(), total / 3, rtol=1e-6, atol=1e-6)

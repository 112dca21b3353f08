"""Candidates: copying a winner, averages, and a state that comes back bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.runs.optimizer import SGDSettings
from tfkd_fast.training.population import Population, Tree


def build() -> torch.nn.Module:
    model = build_model(ModelSettings(width=0.125), num_classes=4, in_channels=1, seed=0)
    return model.to(memory_format=torch.channels_last)


def train(population: Population, slot: int, seed: int, steps: int = 3) -> None:
    """Plain momentum, with torch's own gradients, on the slot's network."""
    generator = torch.Generator().manual_seed(seed)
    model = population.models[slot].train()
    for _ in range(steps):
        images = torch.randn(8, 1, 32, 32, generator=generator)
        labels = torch.randint(4, (8,), generator=generator)
        gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
        with torch.no_grad():
            for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
                weight -= 0.05 * population.optimizer_state["momenta"][name][slot].mul_(0.9).add_(gradient)


def tensors(tree: Tree) -> list[torch.Tensor]:
    return [tensor for part in ("weights", "buffers", "momenta", "interval_sums") for tensor in tree[part].values()]


def assert_equal(first: Tree, second: Tree) -> None:
    for a, b in zip(tensors(first), tensors(second), strict=True):
        assert torch.equal(a, b)


def test_slots_start_equal_and_are_networks_as_they_were_built() -> None:
    population = Population(build, 3)
    assert_equal(population.candidate(0), population.candidate(2))
    for name, tensor in build().state_dict().items():
        assert torch.equal(population.models[1].state_dict()[name], tensor)


def test_networks_are_slices_that_keep_their_memory_layout() -> None:
    population = Population(build, 2)
    for name, parameter in population.models[1].named_parameters():
        assert parameter.data_ptr() == population.weights[name][1].data_ptr()
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)
    for name, buffer in population.models[1].named_buffers():
        assert buffer.data_ptr() == population.buffers[name][1].data_ptr()


def test_slices_begin_at_16_bytes() -> None:
    """Those of an odd size too, as counts of batches and the bias of ten classes are."""
    population = Population(lambda: build_model(ModelSettings(width=0.125), num_classes=10, in_channels=1, seed=0), 3)
    for name, stack in [*population.weights.items(), *population.buffers.items()]:
        assert all(stack[slot].data_ptr() % 16 == 0 for slot in range(3)), name
    for name, momentum in population.optimizer_state["momenta"].items():
        assert momentum[1].stride() == population.weights[name][1].stride()


class Tied(torch.nn.Module):
    """Two layers that share a weight, and a number that is in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(()), persistent=False)


def test_the_network_of_moving_averages_has_each_of_them() -> None:
    population = Population(Tied, 2, SGDSettings(ema_decay=0.9))
    for number, stack in enumerate(population.ema.values()):
        stack.copy_(torch.randn(stack.shape, generator=torch.Generator().manual_seed(number)))
    network = population.ema_network(1)
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
    assert tensors.pop("second.weight") is tensors["first.weight"]
    assert tensors.keys() == population.ema.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, population.ema[name][1]), name


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_after_selection_all_slots_are_the_winner_and_train_alike(winner: int) -> None:
    population = Population(build, 3)
    for slot in range(3):
        train(population, slot, seed=slot)
    expected = population.candidate(winner)
    population.continue_from([winner])
    for slot in range(3):
        assert_equal(population.candidate(slot), expected)
        train(population, slot, seed=7)
    assert_equal(population.candidate(0), population.candidate(1))
    assert_equal(population.candidate(0), population.candidate(2))
    # copies, not shared storage
    train(population, 0, seed=8)
    assert not torch.equal(tensors(population.candidate(0))[0], tensors(population.candidate(1))[0])


def test_an_average_is_the_mean_of_its_members() -> None:
    population = Population(build, 4, slow=True)
    for slot in range(4):
        train(population, slot, seed=slot, steps=1 + slot)
        population.slow["classifier.bias"][slot] += slot
    before = copy.deepcopy([population.candidate(slot) for slot in range(4)])
    weights = population.mean_weights((3, 1))
    population.average((3, 1), into=1)
    after = population.candidate(1)
    for kind in ("weights", "buffers", "momenta", "slow"):
        for name, tensor in after[kind].items():
            first, second = before[3][kind][name], before[1][kind][name]
            expected = (
                ((first.double() + second.double()) / 2).to(tensor.dtype) if tensor.is_floating_point() else first
            )
            torch.testing.assert_close(tensor, expected)
            assert kind not in ("weights", "buffers") or torch.equal(weights[name], tensor)
    for slot in (0, 2, 3):
        assert_equal(population.candidate(slot), before[slot])


def test_averages_over_an_epoch_are_averaged_where_there_are_any() -> None:
    population, expected = Population(build, 2), {}
    population.epoch_average.restart()
    for step in range(2):
        for slot in range(2):
            train(population, slot, seed=10 * slot + step, steps=1)
        population.epoch_average.add(2)
        for name, stack in population.weights.items():
            expected[name] = expected.get(name, 0.0) + stack.double().mean(dim=0) / 2
    means = population.mean_weights((0, 1))
    for name, tensor in expected.items():
        torch.testing.assert_close(means[name], tensor.float())


def test_averages_over_an_interval_are_averaged_apart() -> None:
    population, expected = Population(build, 2), {}
    for name, tensor in population.mean_interval_weights((1, 0)).items():  # of an interval of one epoch
        stack = population.weights[name] if name in population.weights else population.buffers[name]
        torch.testing.assert_close(tensor, stack.double().mean(dim=0).to(stack.dtype))
    population.interval_average.restart()
    for epoch in range(3):
        for slot in range(2):
            train(population, slot, seed=10 * slot + epoch, steps=1)
        population.interval_average.add(2)
        for name, stack in population.weights.items():
            expected[name] = expected.get(name, 0.0) + stack.double().mean(dim=0) / 3
    means = population.mean_interval_weights((1, 0))
    for name, tensor in expected.items():
        torch.testing.assert_close(means[name], tensor.float())


def test_several_survivors_share_the_slots() -> None:
    """Successive halving: the best come first, and the others are their copies."""
    population = Population(build, 5, slow=True)
    for slot in range(5):
        train(population, slot, seed=slot)
        population.slow["classifier.bias"][slot] += slot
    trees = [population.candidate(slot) for slot in range(5)]
    population.continue_from([3, 1])
    for slot, parent in enumerate([3, 1, 3, 1, 3]):
        assert_equal(population.candidate(slot), trees[parent])
    restored = Population(build, 5, slow=True)
    restored.load_state_dict(copy.deepcopy(population.state_dict(2)))
    for slot in range(5):
        assert_equal(restored.candidate(slot), population.candidate(slot))


def test_state_comes_back_and_training_goes_on_alike() -> None:
    population = Population(build, 3)
    population.interval_average.restart()
    for slot in range(2):
        train(population, slot, seed=slot)
    population.interval_average.add(2)
    state = copy.deepcopy(population.state_dict(2))
    restored = Population(build, 3)
    restored.load_state_dict(state)
    for slot in range(2):
        for each in (population, restored):
            train(each, slot, seed=5)
    for each in (population, restored):
        each.interval_average.add(2)
    for slot in range(2):
        assert_equal(population.candidate(slot), restored.candidate(slot))
        averages = (each.interval_average.mean_weights(slot).values() for each in (population, restored))
        for a, b in zip(*averages, strict=True):
            assert torch.equal(a, b)


def test_slots_that_were_not_saved_are_copies_of_the_first() -> None:
    population, restored = Population(build, 2), Population(build, 2)
    train(population, 0, seed=0)
    restored.load_state_dict(population.state_dict(1))
    assert_equal(restored.candidate(1), population.candidate(0))


def test_a_saved_candidate_holds_its_own_tensors_only() -> None:
    for tensor in tensors(Population(build, 4).candidate(1)):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_the_average_is_the_mean_of_the_weights() -> None:
    population, sums = Population(build, 1), None
    average = population.interval_average
    average.restart()
    for seed in range(3):
        train(population, 0, seed)
        average.add(1)
        weights = {name: p.detach().double() for name, p in population.models[0].named_parameters()}
        sums = weights if sums is None else {name: sums[name] + weight for name, weight in weights.items()}
    means = average.mean_weights(0)
    for name, total in sums.items():
        # three float32 roundings of values of order 1
        torch.testing.assert_close(means[name].double(), total / 3, rtol=1e-6, atol=1e-6)
    for name, buffer in population.models[0].named_buffers():
        assert torch.equal(means[name], buffer)


class Keeps(torch.nn.Linear):
    """Keeps its last output, with its graph, and so cannot be copied after a step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = super().forward(x)
        return self.last


def test_a_network_that_keeps_its_outputs_has_moving_averages() -> None:
    population = Population(lambda: Keeps(3, 2), 1, SGDSettings(ema_decay=0.5))
    population.models[0](torch.randn(4, 3))
    for stack in population.ema.values():
        stack += 1
    average = population.ema_network(0)
    for name, weight in population.models[0].named_parameters():
        assert torch.equal(average.get_parameter(name), weight + 1)

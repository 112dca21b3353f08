"""What held-out images say of students: against the logits of one image after the other, in float64."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.runs import CPU, few_images, recipe
from tests.support.threads import using_threads
from tfkd_fast.judging.judge import Judge, calibration_images
from tfkd_fast.judging.metrics import top1_by_class
from tfkd_fast.training.assemble import build_student, load_images
from tfkd_fast.training.population import Population


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("chosen", [None, (3, 8), (0, 1, 4, 9)])
def test_students_are_judged_by_the_images_of_some_classes(chosen: tuple[int, ...] | None, at_once: bool) -> None:
    settings, digits = recipe("ce"), few_images()
    images = load_images(settings, digits, CPU)
    models = [build_student(settings, digits, CPU, seed) for seed in (0, 1)]
    with using_threads(2):
        judge = Judge(images.fit, images.holdout, CPU, lambda: models[0], at_once=at_once)
        judgements = judge.judgements(models, chosen)
    known = range(10) if chosen is None else chosen
    assert images.holdout is not None
    for model, judgement in zip(models, judgements, strict=True):
        right: dict[int, list[bool]] = {label: [] for label in range(10)}
        losses: list[float] = []
        for batch in images.holdout.in_order():
            for logits, label in zip(model.eval()(batch.images).detach().double(), batch.labels.tolist(), strict=True):
                if label in known:
                    right[label].append(int(logits.argmax()) == label)
                    losses.append(-float(F.log_softmax(logits, -1)[label]))
        assert judgement is not None
        everything = [value for values in right.values() for value in values]
        assert judgement.metrics.top1 == pytest.approx(sum(everything) / len(everything), rel=1e-6)
        assert judgement.metrics.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        expected = [sum(values) / len(values) if values else math.nan for values in right.values()]
        assert judgement.top1_by_class == pytest.approx(expected, nan_ok=True)
        assert sum(map(math.isnan, judgement.top1_by_class)) == 10 - len(known)


def test_accuracies_of_classes_go_by_the_largest_logit_the_first_of_equal_ones() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    first = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]])
    found = top1_by_class(torch.stack([first, -first]), labels).tolist()
    assert found[0] == pytest.approx([2 / 3, math.nan, 0.5, math.nan], nan_ok=True)
    assert found[1] == pytest.approx([1 / 3, math.nan, 0.0, math.nan], nan_ok=True)


def test_a_student_whose_logits_are_not_finite_has_no_accuracies() -> None:
    images = load_images(recipe("ce"), few_images(), CPU)

    class Broken(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 10), math.nan)

    (judgement,) = Judge(images.fit, images.holdout, CPU, Broken).judgements([Broken()])
    assert judgement is not None
    assert math.isnan(judgement.metrics.top1)
    assert all(map(math.isnan, judgement.top1_by_class))


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"),
    [
        (45_000, 64, 1024),  # the most
        (45_000, 100, 1100),  # in full batches
        (10_000, 64, 256),  # a fortieth, 250, in full batches
        (5_800, 64, 192),
        (1_295, 64, 128),  # the fewest
        (5_800, 512, 145),  # in less than one batch
        (100, 64, 100),  # there are no more
        (150, 128, 128),
        (150, 100, 150),
    ],
)
def test_batch_norm_is_estimated_on_a_part_of_the_training_images(images: int, batch_size: int, expected: int) -> None:
    assert calibration_images(images, batch_size) == expected


@pytest.mark.parametrize("at_once", [False, True])
def test_averaged_weights_are_judged_with_batch_norm_of_training_images(at_once: bool) -> None:
    """Against the textbook in float64: the mean of the weights of two networks, and means over batches of the batches'
    means and unbiased variances, layer after layer."""
    settings = recipe("ce", data={"batch_size": 64})
    digits = few_images()
    images = load_images(settings, digits, CPU)
    assert images.holdout is not None
    models = [build_student(settings, digits, CPU, seed) for seed in (0, 1)]

    class Mean:
        count = 2

        def mean_weights(self, slot: int) -> dict[str, Tensor]:
            pairs = zip(*(model.named_parameters() for model in models), strict=True)
            return {name: (1 + slot) * (one.detach() + other.detach()) / 2 for (name, one), (_, other) in pairs}

    judge = Judge(images.fit, images.holdout, CPU, lambda: copy.deepcopy(models[0]), at_once=at_once)
    with using_threads(2):
        found = judge.average_metrics(Mean(), range(2), 3)
    shown = list(images.fit.epoch(3))[:2]
    assert sum(len(batch.labels) for batch in shown) == 128 < images.num_fit
    for slot, metrics in enumerate(found):
        exact = copy.deepcopy(models[0]).double()
        exact.load_state_dict(Mean().mean_weights(slot), strict=False)
        for norm in layers_of_batch_norm(exact):
            norm.reset_running_stats()
            norm.momentum = None  # so that torch averages over batches
        with torch.no_grad():
            for batch in shown:
                exact.train()(batch.images.double())
            pairs = [(exact.eval()(batch.images.double()), batch.labels) for batch in images.holdout.in_order()]
        nll = F.cross_entropy(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))
        assert metrics is not None
        assert metrics.nll == pytest.approx(float(nll), rel=1e-4)
    assert found[0] != found[1]


class Running(torch.nn.Module):
    """Divides by a mean square of its own, which it keeps over the batches of training; without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1024, 10)
        self.register_buffer("square", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.square.lerp_(images.detach().square().mean(), 0.5)
        return self.head(images.flatten(1)) / self.square.sqrt()


def test_averaged_weights_are_judged_with_the_buffers_of_their_candidate() -> None:
    images = load_images(recipe("ce"), few_images(), CPU)
    assert images.holdout is not None
    population = Population(Running, 2)
    population.buffers["square"].copy_(torch.tensor([4.0, 0.25]))
    population.epoch_average.restart()
    population.epoch_average.add(2)
    found = Judge(images.fit, images.holdout, CPU, Running).average_metrics(population.epoch_average, (0, 1), 1)
    weight, bias = (population.weights[name].double() for name in ("head.weight", "head.bias"))
    for slot, root in enumerate((2.0, 0.5)):
        pairs = [
            (F.linear(b.images.double().flatten(1), weight[slot], bias[slot]) / root, b.labels)
            for b in images.holdout.in_order()
        ]
        nll = F.cross_entropy(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))
        assert found[slot].nll == pytest.approx(float(nll), rel=1e-5)


class PartlyFrozen(torch.nn.Module):
    """Batch norm that stays in evaluation mode, then batch norm that training does not move, then one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.still = torch.nn.BatchNorm2d(1), torch.nn.BatchNorm2d(1, momentum=0.0)
        self.moved = torch.nn.BatchNorm2d(1)

    def train(self, mode: bool = True) -> "PartlyFrozen":
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.moved(self.still(self.frozen(images))).flatten(1)[:, :10]


def test_batch_norm_that_training_leaves_alone_keeps_its_statistics() -> None:
    images = load_images(recipe("ce", data={"batch_size": 64}), few_images(), CPU)
    network = PartlyFrozen()
    for norm in (network.frozen, network.still, network.moved):
        norm.running_mean.fill_(-3.0)
        norm.running_var.fill_(0.25)
    Judge(images.fit, images.holdout, CPU, PartlyFrozen).estimate_batch_norm(network, 1, all_images=True)
    for norm in (network.frozen, network.still):
        assert (norm.running_mean.item(), norm.running_var.item()) == (-3.0, 0.25)
    assert (network.still.momentum, network.moved.momentum) == (0.0, 0.1)
    means, variances = [], []
    for batch in images.fit.epoch(1):
        frozen = (batch.images.double() + 3.0) / math.sqrt(0.25 + network.frozen.eps)
        still = (frozen - frozen.mean()) / (frozen.var(correction=0) + network.still.eps).sqrt()
        means.append(float(still.mean()))
        variances.append(float(still.var()))
    assert network.moved.running_mean.item() == pytest.approx(sum(means) / len(means), abs=1e-5)
    assert network.moved.running_var.item() == pytest.approx(sum(variances) / len(variances), rel=1e-5)


def layers_of_batch_norm(network: torch.nn.Module) -> Iterator[torch.nn.BatchNorm2d]:
    return (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))

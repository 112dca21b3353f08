"""How the held-out loss depends on the targets of one training step: against autograd through that step, in float64."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.support.tables import make_table
from tfkd_fast import ops
from tfkd_fast.data import Batch
from tfkd_fast.judging.influence import BATCHES, influence
from tfkd_fast.methods import Context
from tfkd_fast.methods.controlled.teaching import Teaching
from tfkd_fast.models import ModelSettings, build_model
from tfkd_fast.steering.targets import TargetSettings

CLASSES, BATCH = 4, 12


def smooth() -> nn.Module:
    """Convolution, batch norm and two linear layers, without kinks."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(3 * 4, 8), nn.Softplus(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def vgg() -> nn.Module:
    return build_model(ModelSettings(width=0.125), CLASSES, 1, seed=0)


def batches(count: int, size: int, seed: int) -> list[Batch]:
    """Noise around a pattern of each class."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 1, size, size, generator=torch.Generator().manual_seed(9))
    made = []
    for _ in range(count):
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        images = patterns[labels] + torch.randn(BATCH, 1, size, size, generator=generator)
        made.append(Batch(images, labels, torch.arange(BATCH)))
    return made


def train(model: nn.Module, data: list[Batch], steps: int, rate: float = 0.05) -> None:
    """So that the gradients are those of a network that has learned something."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    model.train()
    for step in range(steps):
        batch = data[step % len(data)]
        optimizer.zero_grad()
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()


def holdout_loss_after_a_step(model: nn.Module, shown: Batch, judged: Batch, table: Tensor, rate: float) -> Tensor:
    """In float64, by torch alone: differentiable in `table`, whose rows need not sum to 1."""
    exact = copy.deepcopy(model).double().train()
    weights = {name: weight.detach().requires_grad_() for name, weight in exact.named_parameters()}

    def logits(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        return functional_call(exact, weights, (batch.images.double(),))

    shown_logits = logits(weights, shown)
    # the cross-entropy to a distribution, and linear in what is none
    loss = (shown_logits.logsumexp(1) - (table[shown.labels] * shown_logits).sum(1)).mean()
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=table.requires_grad)
    stepped = {name: weight - rate * step for (name, weight), step in zip(weights.items(), gradients, strict=True)}
    return F.cross_entropy(logits(stepped, judged), judged.labels)


def exact_influence(model: nn.Module, training: list[Batch], holdout: list[Batch], rate: float = 1e-7) -> Tensor:
    """At a learning rate that is small enough for the first order: its square adds 1e-7 of it."""
    total = torch.zeros(CLASSES, CLASSES, dtype=torch.float64)
    table = (0.9 * torch.eye(CLASSES, dtype=torch.float64) + 0.1 / CLASSES).requires_grad_()
    with ops.using_backend("reference"):  # the fused operators have first derivatives only
        for shown, judged in zip(training, holdout, strict=True):
            loss = holdout_loss_after_a_step(model, shown, judged, table, rate)
            total += torch.autograd.grad(loss, table)[0] / rate
    return total / len(training)


@pytest.mark.parametrize(("build", "size", "close"), [(smooth, 8, 1e-4), (vgg, 32, 1e-2)])
@pytest.mark.parametrize("steps", [0, 12])
def test_it_is_the_derivative_through_one_step_of_training(
    build: Callable[[], nn.Module], size: int, close: float, steps: int
) -> None:
    """A central difference over a length of 1e-2 errs by (1e-2)^2 / 6 times a third derivative of order 1, and by the
    rounding of float32 logits of order 1, some 1e-7 / 2e-2: 1e-5 each. In VGG-8 it also crosses kinks of ReLU and
    max-pooling, on either side others: a share of the activations of about the length of the step."""
    model, scratch = build(), build()
    training, holdout = batches(3, size, seed=1), batches(3, size, seed=2)
    train(model, training, steps)
    train(scratch, holdout, 2)  # whatever is in it does not matter
    before = copy.deepcopy(model.state_dict())
    result = influence(model, scratch, training, holdout)
    expected = exact_influence(model, training, holdout)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=0, atol=close * expected.abs().max().item())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the network that is asked about stays as it is"


def test_it_is_the_mean_over_the_first_pairs_of_batches() -> None:
    model, scratch = smooth(), smooth()
    training, holdout = batches(BATCHES + 2, 8, seed=1), batches(BATCHES + 1, 8, seed=2)
    pairs = [influence(model, scratch, [a], [b]) for a, b in zip(training, holdout, strict=False)]
    close = {"rtol": 0, "atol": 1e-5}  # the weights are rounded where a step is added and taken back
    torch.testing.assert_close(influence(model, scratch, training, holdout), sum(pairs[:BATCHES]) / BATCHES, **close)
    torch.testing.assert_close(influence(model, scratch, training[:5], holdout[:3]), sum(pairs[:3]) / 3, **close)
    assert (pairs[0] - pairs[1]).abs().max() > 1e-2


def test_a_label_that_no_training_sample_has_is_of_no_influence() -> None:
    (shown,), holdout = batches(1, 8, seed=1), batches(1, 8, seed=2)
    shown = shown._replace(labels=torch.arange(BATCH) % 2)
    result = influence(smooth(), smooth(), [shown], holdout)
    assert result[:2].all()
    assert not result[2:].any()


def test_a_weight_that_takes_no_part_changes_nothing() -> None:
    training, holdout = batches(2, 8, seed=1), batches(2, 8, seed=2)
    model, scratch = smooth(), smooth()
    expected = influence(model, scratch, training, holdout)
    for network in (model, scratch):
        network.register_parameter("unused", nn.Parameter(torch.ones(3)))
    assert torch.equal(influence(model, scratch, training, holdout), expected)


def test_without_batches_nothing_can_be_said() -> None:
    with pytest.raises(ValueError, match="training and holdout must hold one batch at least"):
        influence(smooth(), smooth(), [], batches(1, 8, seed=2))


def memorised() -> tuple[nn.Module, Batch, Batch]:
    """A network that has learned training labels of which a third are wrong, and held-out images with right ones."""
    (shown,), (judged,) = batches(1, 8, seed=1), batches(1, 8, seed=2)
    shown = shown._replace(labels=torch.where(torch.arange(BATCH) % 3 == 0, (shown.labels + 1) % CLASSES, shown.labels))
    model = smooth()
    train(model, [shown], 120)
    assert (model(shown.images).argmax(1) == shown.labels).all()
    return model, shown, judged


@pytest.mark.parametrize("sources", [(), ("memory",)])
@pytest.mark.parametrize("family", ["scalar", "rank-binned", "full-matrix"])
def test_the_action_that_follows_the_gradient_lowers_the_loss_after_the_next_step(
    family: str, sources: tuple[str, ...]
) -> None:
    """By trying it: the held-out loss after one step of training, in float64, is all that this reads."""
    model, shown, judged = memorised()
    settings = make_table(TargetSettings, family=family, sources=sources)
    teaching = Teaching(settings, Context(CLASSES, BATCH, 10, 0, torch.device("cpu"), lambda epoch: 1.0), 1)
    action = torch.linspace(-0.5, 0.5, teaching.space.action_size)
    teaching.set_actions(action[None], 1)
    gradient = teaching.action_gradient(0, influence(model, smooth(), [shown], [judged]))
    rate, target = 0.05, teaching.space.target
    share = teaching.space.shares(action[None])[0, 0].double()
    similarity = torch.full((1, CLASSES, CLASSES), 1 / CLASSES, dtype=torch.float64)

    def loss(action: Tensor, rate: float) -> float:
        """The sources teach the same whatever the action says of the table: left out, they change no difference."""
        table = share * target.tables(teaching.space.class_actions(action[None]), similarity)[0]
        return holdout_loss_after_a_step(model, shown, judged, table, rate).item()

    along = gradient.double() / gradient.norm()
    assert loss(action.double() - 0.5 * along, rate) < loss(action.double(), rate)
    small, length = 1e-5, 1e-3
    slope = loss(action.double() + length * along, small) - loss(action.double() - length * along, small)
    assert slope / (2 * length * small) == pytest.approx(gradient.norm().item(), rel=1e-3)


def test_a_student_that_memorised_wrong_labels_wants_a_softer_target() -> None:
    model, shown, judged = memorised()
    matrix = influence(model, smooth(), [shown], [judged])
    on_labels = matrix.diagonal().mean()
    beside_them = (matrix.sum() - matrix.trace()) / (CLASSES * (CLASSES - 1))
    assert on_labels > 0 > beside_them  # above 0 spoils

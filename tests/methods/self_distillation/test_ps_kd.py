"""Progressive self-KD against the authors' loss, over a few epochs and through a resume."""

import copy

import pytest
import torch
from torch import Tensor

from tests.methods.steps import BATCH, CLASSES, EPOCHS, IMAGES, assert_teaches, build, random_step
from tfkd_fast.errors import UserError
from tfkd_fast.methods import Method
from tfkd_fast.methods.base import StepBatch
from tfkd_fast.runs.recipe import make_recipe

ALL = slice(0, 1)


def epoch_of_steps(epoch: int) -> list[tuple[Tensor, StepBatch]]:
    """Two steps that show every image once, the labels being those of the images."""
    generator = torch.Generator().manual_seed(epoch)
    order = torch.randperm(IMAGES, generator=generator)
    steps = []
    for indices in order.split(BATCH):
        logits = 3.0 * torch.randn(1, len(indices), CLASSES, generator=generator, dtype=torch.float64)
        batch = StepBatch((indices % CLASSES).unsqueeze(0), indices.unsqueeze(0))
        steps.append((logits.requires_grad_(), batch))
    return steps


def train(method: Method, epoch: int) -> list[Tensor]:
    """The losses of one epoch."""
    method.begin_interval(epoch)
    losses = [method.loss(logits, batch).total.detach() for logits, batch in epoch_of_steps(epoch)]
    method.end_epoch([])
    return losses


@pytest.mark.parametrize("last_alpha", [0.8, 1.0, 0.0])
def test_the_loss_is_the_cross_entropy_with_the_softened_label(last_alpha: float) -> None:
    """Less the entropy of the earlier prediction, in its share. In the first epoch the label stands in for it."""
    method = build("ps-kd") if last_alpha == 0.8 else build("ps-kd", alpha=last_alpha)
    earlier: dict[int, Tensor] = {}
    for epoch in range(EPOCHS):
        method.begin_interval(epoch)
        alpha = last_alpha * (epoch + 1) / EPOCHS
        for logits, batch in epoch_of_steps(epoch):
            expected = torch.zeros((), dtype=torch.float64)
            for z, label, image in zip(logits[0], batch.labels[0].tolist(), batch.indices[0].tolist(), strict=True):
                one_hot = torch.eye(CLASSES, dtype=torch.float64)[label]
                before = earlier.get(image, one_hot)
                target = (1 - alpha) * one_hot + alpha * before
                entropy = torch.special.entr(before).sum()
                expected = expected - (target * z.log_softmax(-1)).sum() - alpha * entropy
                earlier[image] = z.detach().half().double().softmax(-1)
            # what was predicted, and alpha, are float32: a few roundings of 6e-8 in a loss of order 1
            assert_teaches(method, logits, batch, expected.unsqueeze(0) / logits.shape[1], 1e-6)
        method.end_epoch([])


def test_a_restored_method_goes_on_with_the_same_numbers() -> None:
    method, resumed = build("ps-kd"), build("ps-kd")
    for epoch in range(2):
        train(method, epoch)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    for epoch in range(2, EPOCHS):
        for loss, again in zip(train(method, epoch), train(resumed, epoch), strict=True):
            assert torch.equal(loss, again)
    forgetful = build("ps-kd")
    assert not torch.equal(train(forgetful, EPOCHS - 1)[0], train(method, EPOCHS - 1)[0]), "the state matters"


def test_what_a_step_reads_keeps_its_place() -> None:
    """A captured training step holds the addresses."""
    method = build("ps-kd")

    def addresses() -> list[int]:
        return [method.candidate_tensors()["memory"].data_ptr(), method.hard_weight.data_ptr()]

    before = addresses()
    train(method, 0)
    method.load_state_dict(copy.deepcopy(method.state_dict()))
    train(method, 1)
    assert addresses() == before


def test_no_gradient_flows_into_what_was_predicted_before() -> None:
    """The second epoch's loss depends on the second epoch's logits alone."""
    method = build("ps-kd")
    (first, batch), (second, _) = random_step(0), random_step(1)
    method.begin_interval(0)
    method.loss(first, batch)
    method.begin_interval(1)
    (loss,) = method.loss(second, batch).total
    gradients = torch.autograd.grad(loss, (first, second), allow_unused=True)
    assert gradients[0] is None
    assert gradients[1].any()


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_bad_settings(alpha: float) -> None:
    with pytest.raises(UserError, match=r"loss\.alpha"):
        make_recipe({"method": "ps-kd", "loss": {"alpha": alpha}})

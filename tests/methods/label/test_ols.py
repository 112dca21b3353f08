"""Online label smoothing against a loop over samples, over a few epochs and through a resume."""

import copy

import pytest
import torch
from torch import Tensor

from tests.methods.steps import CLASSES, assert_teaches, build, random_step
from tfkd_fast.errors import UserError
from tfkd_fast.methods import Method
from tfkd_fast.runs.recipe import make_recipe

ALL = slice(0, 1)


def train(method: Method, epoch: int) -> list[Tensor]:
    """The losses of an epoch of three steps."""
    method.begin_interval(epoch)
    losses = [method.loss(*random_step(3 * epoch + step)).total.detach() for step in range(3)]
    method.end_epoch([])
    return losses


@pytest.mark.parametrize("alpha", [0.5, 1.0, 0.2])
def test_the_loss_is_that_of_the_label_and_of_the_soft_label(alpha: float) -> None:
    """The soft label counts less its entropy. A class that is never right in an epoch is uniform in the next."""
    method = build("ols") if alpha == 0.5 else build("ols", alpha=alpha)
    soft_labels = torch.full((CLASSES, CLASSES), 1 / CLASSES, dtype=torch.float64)
    never_right = 0
    for epoch in range(3):
        method.begin_interval(epoch)
        right: dict[int, list[Tensor]] = {label: [] for label in range(CLASSES)}
        for step in range(3):
            logits, batch = random_step(3 * epoch + step)
            expected = torch.zeros((), dtype=torch.float64)
            for z, label in zip(logits[0], batch.labels[0].tolist(), strict=True):
                soft = soft_labels[label]
                log_p = z.log_softmax(-1)
                kl = (soft * (soft.log() - log_p)).sum()
                expected = expected - (1 - alpha) * log_p[label] + alpha * kl
                if z.tolist().index(max(z.tolist())) == label:
                    right[label].append(z.detach().softmax(-1))
            # the soft labels are float32 sums of a few predictions
            assert_teaches(method, logits, batch, expected.unsqueeze(0) / logits.shape[1], 1e-6)
        method.end_epoch([])
        soft_labels.fill_(1 / CLASSES)
        for label, predictions in right.items():
            if predictions:
                soft_labels[label] = torch.stack(predictions).mean(0)
            else:
                never_right += 1
    assert 0 < never_right < 3 * CLASSES, "both kinds of row are tested"


def test_a_restored_method_goes_on_with_the_same_numbers() -> None:
    method, resumed, forgetful = build("ols"), build("ols"), build("ols")
    train(method, 0)
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    assert not torch.equal(train(forgetful, 1)[0], train(resumed, 1)[0]), "the state matters"
    train(method, 1)
    for loss, again in zip(train(method, 2), train(resumed, 2), strict=True):
        assert torch.equal(loss, again)


def test_a_saved_state_does_not_change_with_the_method() -> None:
    method = build("ols")
    train(method, 0)
    state = method.state_dict()
    kept = copy.deepcopy(state)
    train(method, 1)
    assert torch.equal(state["soft_labels"], kept["soft_labels"])


def test_what_a_step_reads_keeps_its_place() -> None:
    """A captured training step holds the addresses."""
    method = build("ols")

    def addresses() -> list[int]:
        return [tensor.data_ptr() for tensor in method.candidate_tensors().values()]

    before = addresses()
    train(method, 0)
    method.load_state_dict(copy.deepcopy(method.state_dict()))
    train(method, 1)
    assert addresses() == before


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_bad_settings(alpha: float) -> None:
    with pytest.raises(UserError, match=r"loss\.alpha"):
        make_recipe({"method": "ols", "loss": {"alpha": alpha}})

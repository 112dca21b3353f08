"""What comes to a loss from above in the backward pass: ones that are known to be ones cost nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.calls import Calls
from tfkd_fast import ops
from tfkd_fast.ops import fused
from tfkd_fast.ops.losses import are_known_ones, loss_with_gradient, ones_for


def backward_calls(upstream: Any, *, again: bool = False) -> list[str]:
    """What the backward pass of a loss of three candidates calls, which may run `again` or not. The tensors are on the
    meta device, where nothing can be looked at, as on CUDA nothing should be."""
    logits = torch.randn(3, 4, 5, device="meta", requires_grad=True)
    labels, targets = torch.zeros(4, dtype=torch.int64, device="meta"), torch.empty(5, 5, device="meta")
    operator = fused.overload("tfkd_fast", "soft_target_loss")
    loss, _ = loss_with_gradient(operator, logits, labels, targets, None, None, True, reduction="mean")
    given = upstream(loss)
    with Calls() as calls:
        (gradient,) = torch.autograd.grad(loss, logits, given, retain_graph=again)
    assert gradient.shape == logits.shape
    return calls.seen


def test_known_ones_leave_the_gradient_as_it_is() -> None:
    assert not {"mul", "mul_"} & set(backward_calls(ones_for))


def test_others_scale_it_in_place_unless_it_is_asked_for_again() -> None:
    last, first = backward_calls(torch.ones_like), backward_calls(torch.ones_like, again=True)
    assert "mul_" in last
    assert "mul" not in last
    assert "mul" in first
    assert "mul_" not in first


def test_known_ones_pass_a_sum_of_losses() -> None:
    """The loss of a method is a sum of terms, each of which then has its gradient as it is."""
    leaves = [torch.zeros(3, requires_grad=True) for _ in range(2)]
    met = []
    for leaf in leaves:
        leaf.register_hook(lambda upstream: met.append(are_known_ones(upstream)))
    total = leaves[0] + leaves[1]
    torch.autograd.grad(total, leaves, ones_for(total))
    assert met == [True, True]
    assert not are_known_ones(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("candidates", [(), (3,)])
def test_the_gradient_is_that_of_the_sum(backend: Any, dtype: torch.dtype, candidates: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(*candidates, 4, 5).to(backend.device, dtype).requires_grad_()
    labels, targets = torch.tensor([0, 4, 2, 2]).to(backend.device), torch.rand(5, 5).softmax(-1).to(backend.device)

    def loss() -> Tensor:
        return ops.soft_target_loss(logits, labels, targets, temperature=2.0, backend=backend.name)

    total = loss()
    (known,) = torch.autograd.grad(total, logits, ones_for(total))
    (expected,) = torch.autograd.grad(loss().sum(), logits)
    assert torch.equal(known, expected)

"""The update of every optimiser against those of torch, over many steps and for candidates in one stack."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.runs.optimizer import OptimizerSettings
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.training.optimizers import update, zero_state

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = {"conv": (8, 4, 3, 3), "matrix": (5, 8), "bias": (5,), "late": (3,), "unused": (2,)}
RATES = (0.02, 0.005, 0.01)
"""The learning rate of each candidate."""
STEPS = 50

TABLES: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "weight_decay": 0.1, "nesterov": True},
    "adamw": {"name": "adamw", "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6},
    "sgd, clipped": {"name": "sgd", "clip_norm": 5.0},
    "adamw, clipped, some decay": {
        "name": "adamw", "weight_decay": 0.1, "clip_norm": 5.0, "decay_norms_and_biases": False,
    },
}  # fmt: skip


def settings_of(name: str) -> OptimizerSettings:
    settings: OptimizerSettings = TypeAdapter(OptimizerSettings).validate_python(TABLES[name])
    return settings


class Torch:
    """One candidate under torch's own optimiser."""

    def __init__(self, table: dict[str, Any], weights: list[Tensor]) -> None:
        self.weights = [weight.clone().requires_grad_() for weight in weights]
        self.clip_norm = table.get("clip_norm")
        everywhere = table.get("decay_norms_and_biases", True)
        decay = table.get("weight_decay", 5e-4)
        groups = [{"params": [w], "weight_decay": decay if everywhere or w.dim() > 1 else 0.0} for w in self.weights]
        if table["name"] == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                groups, lr=1.0, momentum=0.9, nesterov=table.get("nesterov", False)
            )
        else:
            betas = table.get("beta1", 0.9), table.get("beta2", 0.999)
            self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=table.get("epsilon", 1e-8))

    def step(self, gradients: list[Tensor | None], rate: float) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = None if gradient is None else gradient.clone()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()


def draw(generator: torch.Generator, dtype: torch.dtype, device: str) -> list[Tensor]:
    return [torch.randn(shape, generator=generator, dtype=dtype).to(device) for shape in SHAPES.values()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TABLES)
def test_candidates_in_one_stack_follow_torch(name: str, dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    settings = settings_of(name)
    start = draw(generator, dtype, device)
    start[0] = start[0].to(memory_format=torch.channels_last)
    theirs = [Torch(TABLES[name], start) for _ in RATES]
    stacks = [torch.stack([weight] * len(RATES)) for weight in start]
    stacks[0] = stacks[0].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)  # channels last within a slice
    states = [zero_state(settings, stack, candidate_axis=True) for stack in stacks]
    for step in range(STEPS):
        for slot, rate in enumerate(RATES):
            gradients: list[Tensor | None] = list(draw(generator, dtype, device))
            gradients[3] = gradients[3] if step >= 10 else None  # a weight that takes part later
            gradients[4] = None
            factor = rate / (1 + step)
            theirs[slot].step(gradients, float(torch.tensor(factor)))
            own = {kind: [state[kind][slot] for state in states] for kind in states[0]}
            update([stack[slot] for stack in stacks], gradients, own, torch.tensor([factor], device=device), settings)
    for slot, candidate in enumerate(theirs):
        for stack, weight in zip(stacks, candidate.weights, strict=True):
            # 50 steps of a dozen roundings each, of weights of order 1
            tolerance = 1e-5 if dtype == torch.float32 else 1e-13
            torch.testing.assert_close(stack[slot], weight.detach(), rtol=tolerance, atol=tolerance)
        assert torch.equal(stacks[4][slot], start[4])


@pytest.mark.gpu
@pytest.mark.parametrize("name", TABLES)
def test_a_captured_update_reads_rate_and_state_anew(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    settings = settings_of(name)
    start = draw(generator, torch.float32, "cuda")
    theirs = Torch(TABLES[name], start)
    weights, rate = [weight.clone() for weight in start], torch.tensor([0.01], device="cuda")
    states = [zero_state(settings, weight) for weight in weights]
    own = {kind: [state[kind] for state in states] for kind in states[0]}
    gradients = [torch.zeros_like(weight) for weight in weights]

    def take() -> None:
        update(weights, gradients, own, rate, settings)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        take()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        take()
    torch._foreach_copy_(weights, start)
    for tensors in own.values():
        torch._foreach_zero_(tensors)
    for step in range(STEPS):
        torch._foreach_copy_(gradients, draw(generator, torch.float32, "cuda"))
        rate.fill_(0.02 / (1 + step))
        theirs.step(list(gradients), float(rate))
        graph.replay()
    for weight, expected in zip(weights, theirs.weights, strict=True):
        torch.testing.assert_close(weight, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "key"),
    [({"name": "adamw"}, "name"), ({"clip_norm": 1.0}, "clip_norm")],
)
def test_a_method_that_tries_out_steps_wants_plain_ones(table: dict[str, Any], key: str) -> None:
    for method in ("distpro-search", "mmkd"):
        with pytest.raises(UserError, match=rf"{method}' tries out steps of plain .* leave optimizer\.{key} unset"):
            make_recipe({"method": method, "optimizer": table})

"""Candidates that one forward pass trains: one alone, or several side by side as one network with stacked weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.func import functional_call, vmap

from tfkd_fast.engine.device import Compute
from tfkd_fast.engine.population import Population

SideBySide = Literal["sequential", "streams", "stacked"]
"""How P candidates train:

* sequential: an epoch of one after an epoch of the other;
* streams: at the same time, each on its own: branches of one graph on CUDA, on the CPU threads that share the cores;
* stacked: in one forward pass over stacked weights.

They compute the same for a candidate, up to the order of sums.
"""

FASTEST: SideBySide = "streams"
"""What `auto` takes: see docs/decisions.md."""


def choose_side_by_side(wanted: SideBySide | Literal["auto"]) -> SideBySide:
    return FASTEST if wanted == "auto" else wanted


@dataclass(frozen=True)
class Group:
    """What a step differentiates and updates."""

    candidates: slice
    weights: list[Tensor]
    """Leaves: (...) of one candidate, (n,...) of a stack."""
    momenta: list[Tensor]
    sums: list[Tensor]
    """Of the weights after each step of the epoch; empty where no average is wanted."""
    logits: Callable[[Tensor], Tensor]
    """Images (1,B,C,H,W) that all see, or (n,B,C,H,W), to logits (n,B,classes)."""


def alone(slot: int, population: Population, compute: Compute, batch_size: int, average: bool) -> Group:
    """One candidate."""
    model = population.models[slot]
    forward = compute.compiled(model, batch_size)

    def logits(images: Tensor) -> Tensor:
        with compute.autocast():
            return forward(images[0]).unsqueeze(0)

    return _group(slice(slot, slot + 1), slot, list(model.parameters()), population, average, logits)


def stacked(candidates: int, population: Population, compute: Compute, batch_size: int, average: bool) -> Group:
    """The first candidates as one network."""
    model = population.models[0]
    weights = {name: stack[:candidates].detach().requires_grad_() for name, stack in population.weights.items()}
    buffers = {name: stack[:candidates] for name, stack in population.buffers.items()}

    def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, (weights, buffers), (images,))
        return logits

    def all_of_them(images: Tensor) -> Tensor:
        if len(images) == 1:
            return vmap(one, in_dims=(0, 0, None))(weights, buffers, images[0])
        return vmap(one)(weights, buffers, images)

    forward = compute.compiled(all_of_them, batch_size)

    def logits(images: Tensor) -> Tensor:
        with compute.autocast():
            return forward(images)

    first = slice(0, candidates)
    return _group(first, first, list(weights.values()), population, average, logits)


def _group(
    candidates: slice,
    at: int | slice,
    weights: list[Tensor],
    population: Population,
    average: bool,
    logits: Callable[[Tensor], Tensor],
) -> Group:
    """`at` is where the candidates are in the population's stacks: an index where the axis is left out."""
    momenta, sums = population.momenta, population.epoch_average.sums if average else {}
    return Group(
        candidates, weights, [stack[at] for stack in momenta.values()], [stack[at] for stack in sums.values()], logits
    )

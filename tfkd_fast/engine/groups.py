"""Candidates that take their steps at once: one alone, several with a forward pass each, or as one stacked network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
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
class Member:
    """The tensors of one candidate that a step changes, in the order of its parameters."""

    weights: list[Tensor]
    momenta: list[Tensor]
    sums: list[Tensor]
    """Of the weights after each step of the epoch; empty where no average is wanted."""
    slow: list[Tensor]
    """Weights that follow; empty where none do."""


@dataclass(frozen=True)
class Group:
    """What a step differentiates and updates."""

    candidates: slice
    members: list[Member]
    leaves: list[Tensor]
    """What the losses are differentiated in."""
    split: Callable[[tuple[Tensor, ...]], list[list[Tensor]]]
    """The gradients of the leaves, for each member in the order of its parameters."""
    logits: Callable[[Tensor], Tensor]
    """Images (1,B,C,H,W) that all see, or (n,B,C,H,W), to logits (n,B,classes)."""
    slow_logits: Callable[[Tensor], Tensor] | None
    """The same of the slow networks, where there are any."""


def alone(slot: int, population: Population, compute: Compute, batch_size: int, average: bool) -> Group:
    """One candidate."""
    return together(range(slot, slot + 1), population, compute, batch_size, average)


def together(slots: range, population: Population, compute: Compute, batch_size: int, average: bool) -> Group:
    """Candidates that take a step at once, each with a forward pass of its own."""
    models = [population.models[slot] for slot in slots]
    parameters = [list(model.parameters()) for model in models]
    count = len(parameters[0])

    def split(gradients: tuple[Tensor, ...]) -> list[list[Tensor]]:
        return [list(gradients[start : start + count]) for start in range(0, len(gradients), count)]

    return Group(
        slice(slots.start, slots.stop),
        [_member(slot, population, average) for slot in slots],
        [parameter for of_model in parameters for parameter in of_model],
        split,
        _one_by_one(models, compute, batch_size),
        _without_gradient(_one_by_one([population.slow_models[slot] for slot in slots], compute, batch_size))
        if population.slow
        else None,
    )


def stacked(slots: range, population: Population, compute: Compute, batch_size: int, average: bool) -> Group:
    """The first candidates as one network."""
    n, model = len(slots), population.models[0]
    weights = {name: stack[:n].detach().requires_grad_() for name, stack in population.weights.items()}
    buffers = {name: stack[:n] for name, stack in population.buffers.items()}
    slow = {name: stack[:n] for name, stack in population.slow.items()}

    def split(gradients: tuple[Tensor, ...]) -> list[list[Tensor]]:
        return [[gradient[row] for gradient in gradients] for row in range(n)]

    return Group(
        slice(0, n),
        [_member(slot, population, average) for slot in slots],
        list(weights.values()),
        split,
        _at_once(model, weights | buffers, compute, batch_size),
        _without_gradient(_at_once(model, slow, compute, batch_size)) if slow else None,
    )


def _member(slot: int, population: Population, average: bool) -> Member:
    def slices(stacks: dict[str, Tensor]) -> list[Tensor]:
        return [stacks[name][slot] for name in population.weights] if stacks else []

    sums = population.epoch_average.sums if average else {}
    return Member(slices(population.weights), slices(population.momenta), slices(sums), slices(population.slow))


def _one_by_one(models: Sequence[nn.Module], compute: Compute, batch_size: int) -> Callable[[Tensor], Tensor]:
    forwards = [compute.compiled(model, batch_size) for model in models]

    def logits(images: Tensor) -> Tensor:
        with compute.autocast():
            return torch.stack([forward(images[row % len(images)]) for row, forward in enumerate(forwards)])

    return logits


def _at_once(
    model: nn.Module, tensors: dict[str, Tensor], compute: Compute, batch_size: int
) -> Callable[[Tensor], Tensor]:
    """`tensors`: weights and buffers (n,...) by name."""

    def one(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, tensors, (images,))
        return logits

    def all_of_them(images: Tensor) -> Tensor:
        if len(images) == 1:
            return vmap(one, in_dims=(0, None))(tensors, images[0])
        return vmap(one)(tensors, images)

    forward = compute.compiled(all_of_them, batch_size)

    def logits(images: Tensor) -> Tensor:
        with compute.autocast():
            return forward(images)

    return logits


def _without_gradient(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def logits(images: Tensor) -> Tensor:
        with torch.no_grad():
            return forward(images)

    return logits

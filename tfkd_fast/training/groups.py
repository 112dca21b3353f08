"""Candidates that take their steps at once: one alone, several with a forward pass each, or as one stacked network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import vmap

from tfkd_fast.device import Compute, Result
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Method, Plan
from tfkd_fast.models import FeatureName, FeatureNetwork, Features, call_with, logits_and_features
from tfkd_fast.models.features import stack
from tfkd_fast.training.gradient_sum import GradientSum
from tfkd_fast.training.population import Population

Forward = Callable[[Tensor], tuple[Tensor, Features | None]]
"""Forward pass from images (1,B,C,H,W), the same for all candidates, or (n,B,C,H,W) to logits (n,B,classes), and to
features where they are wanted."""

SideBySide = Literal["sequential", "streams", "stacked"]
"""How P candidates train:

* sequential: an epoch of one after an epoch of the other;
* streams: at the same time, each on its own: branches of one graph on CUDA, on the CPU threads that share the cores;
* stacked: in one forward pass over stacked weights.

They compute the same for a candidate, up to the order of sums.
"""

FASTEST: SideBySide = "streams"
"""The way that `auto` takes, see docs/decisions.md."""


def choose_side_by_side(wanted: SideBySide | Literal["auto"], *, draws_on_threads: bool = False) -> SideBySide:
    """The way that a recipe asks for, or the fastest one for `auto`.

    Args:
        wanted: what the recipe asks for.
        draws_on_threads: whether candidates whose layers draw random numbers, as dropout does, would do so on threads,
            which share one generator: the numbers of each would then depend on how far the others are.

    Raises:
        UserError: the recipe asks for such threads.
    """
    if wanted == "streams" and draws_on_threads:
        raise UserError(
            "candidates whose layers draw random numbers, as dropout does, would share one generator on the CPU, so "
            "that no run could be repeated: use --population sequential or stacked"
        )
    if wanted == "auto":
        return "sequential" if draws_on_threads else FASTEST
    return wanted


@dataclass(frozen=True)
class Member:
    """The tensors of one candidate that a step changes, in the order of its parameters."""

    weights: list[Tensor]
    state: dict[str, list[Tensor]]
    """What the optimiser remembers of each weight, by name."""
    sums: list[Tensor]
    """Sums of the weights after each step of the epoch; empty where no average is wanted."""
    ema: list[Tensor]
    """Moving averages of weights and floating buffers; empty where none are wanted."""
    ema_sources: list[Tensor]
    """The tensors that they are averages of, in the same order."""
    slow: list[Tensor]
    """Weights of the slow network, which is a moving average; empty where there is none."""


@dataclass(frozen=True)
class Group:
    """Candidates that take a step at once: the tensors that it differentiates and updates, and their forward pass."""

    candidates: slice
    members: list[Member]
    leaves: list[Tensor]
    """The tensors that the losses are differentiated with respect to."""
    split: Callable[[Sequence[Tensor | None]], list[list[Tensor | None]]]
    """Splits the gradients of the leaves by member, each in the order of its parameters."""
    students: tuple[nn.Module, ...]
    networks: tuple[nn.Module, ...]
    """The network of each student that the plan trains, see `Plan.network`."""
    forward: Forward
    slow_forward: Forward | None
    """The forward pass of the slow networks, without gradient and without features; None where there are none."""
    gradient_sum: GradientSum | None = None
    """The gradients of the leaves, then of the adapters' weights, where several batches or processes make an update."""

    def forward_in_float32(self, images: Tensor) -> tuple[Tensor, Features | None]:
        """The same as `forward`, with features as a loss reads them."""
        logits, features = self.forward(images)
        return logits, features and features.in_float32()


@dataclass(frozen=True)
class GroupSpec:
    """The population, method, plan and forward settings that all groups of an epoch have in common."""

    population: Population
    method: Method
    plan: Plan
    compute: Compute
    batch_size: int
    """How many images one forward pass sees; a smaller last batch is not compiled."""
    average: bool
    """Whether the weights after each step are summed."""


def single_group(slot: int, spec: GroupSpec) -> Group:
    """A group of one candidate."""
    return joint_group(range(slot, slot + 1), spec)


def joint_group(slots: range, spec: GroupSpec) -> Group:
    """A group of candidates that take a step at once, each with a forward pass of its own."""
    population = spec.population
    models = [population.models[slot] for slot in slots]
    networks = tuple(spec.plan.network(model) for model in models)
    parameters = [[weight for weight in model.parameters() if weight.requires_grad] for model in models]
    count = len(parameters[0])

    def split(gradients: Sequence[Tensor | None]) -> list[list[Tensor | None]]:
        return [list(gradients[start : start + count]) for start in range(0, len(gradients), count)]

    return Group(
        slice(slots.start, slots.stop),
        [_member(slot, spec) for slot in slots],
        [parameter for of_model in parameters for parameter in of_model],
        split,
        tuple(models),
        networks,
        _separate_forward(networks, spec, spec.method.needs.features),
        without_gradient(_separate_forward([population.slow_models[slot] for slot in slots], spec, frozenset()))
        if population.slow
        else None,
    )


def stacked_group(slots: range, spec: GroupSpec) -> Group:
    """A group of the first candidates, run as one network over stacked weights."""
    population = spec.population
    n, model = len(slots), population.models[0]
    students = tuple(population.models[:n])
    weights = {name: stack[:n].detach().requires_grad_() for name, stack in population.weights.items()}
    buffers = {name: stack[:n] for name, stack in population.buffers.items()}
    slow = {name: stack[:n] for name, stack in population.slow.items()}

    def split(gradients: Sequence[Tensor | None]) -> list[list[Tensor | None]]:
        return [[None if gradient is None else gradient[row] for gradient in gradients] for row in range(n)]

    return Group(
        slice(0, n),
        [_member(slot, spec) for slot in slots],
        list(weights.values()),
        split,
        students,
        students,
        _stacked_forward(model, weights | buffers, spec),
        without_gradient(_stacked_forward(model, slow, spec)) if slow else None,
    )


def _member(slot: int, spec: GroupSpec) -> Member:
    population = spec.population

    def slices(stacks: dict[str, Tensor]) -> list[Tensor]:
        return [stacks[name][slot] for name in population.weights] if stacks else []

    sums = population.epoch_average.sums if spec.average else {}
    state = {kind: slices(stacks) for kind, stacks in population.optimizer_state.items()}
    sources = {**population.weights, **population.buffers}
    return Member(
        slices(population.weights),
        state,
        slices(sums),
        [stack[slot] for stack in population.ema.values()],
        [sources[name][slot] for name in population.ema],
        slices(population.slow),
    )


def _separate_forward(networks: Sequence[nn.Module], spec: GroupSpec, features: frozenset[FeatureName]) -> Forward:
    compute = spec.compute
    forwards = [_compiled(partial(logits_and_features, network, features), spec) for network in networks]

    def forward(images: Tensor) -> tuple[Tensor, Features | None]:
        with compute.autocast():
            results = [run(images[row % len(images)]) for row, run in enumerate(forwards)]
        return stack([logits for logits, _ in results]), stack_features([inner for _, inner in results])

    return forward


def _compiled(forward: Callable[[Tensor], Result], spec: GroupSpec) -> Callable[[Tensor], Result]:
    """The forward pass of students, compiled where the run compiles and they are networks of this package: torch
    compiles no hooks, and of networks of others not always the whole."""
    own = isinstance(spec.population.models[0], FeatureNetwork)
    return spec.compute.compile_network(forward, spec.batch_size) if own else forward


def stack_features(several: Sequence[Features | None]) -> Features | None:
    """Features of n networks with an axis of n in front; None of none."""
    known = [features for features in several if features is not None]
    return Features.stack(known) if known else None


def _stacked_forward(model: nn.Module, tensors: dict[str, Tensor], spec: GroupSpec) -> Forward:
    """The forward pass of n networks at once; `tensors` are their weights and buffers (n,...) by name."""
    compute = spec.compute

    def forward_one(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        return call_with(model, tensors, images)

    def forward_all(images: Tensor) -> Tensor:
        if len(images) == 1:
            return vmap(forward_one, in_dims=(0, None), randomness="different")(tensors, images[0])
        return vmap(forward_one, randomness="different")(tensors, images)

    compiled = _compiled(forward_all, spec)

    def forward(images: Tensor) -> tuple[Tensor, Features | None]:
        with compute.autocast():
            return compiled(images), None

    return forward


def without_gradient(forward: Forward) -> Forward:
    """The same forward pass without gradient."""

    def run(images: Tensor) -> tuple[Tensor, Features | None]:
        with torch.no_grad():
            return forward(images)

    return run

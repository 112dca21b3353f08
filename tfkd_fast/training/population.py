"""The trained state: P >= 1 candidates of one architecture; a single student is P = 1."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tfkd_fast.runs.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from tfkd_fast.training.optimizers import zero_state

Tree = dict[str, Any]


class Population:
    """P candidates that start from the same weights.

    Every tensor of theirs is a slice of one tensor (P,...): a step can train all of them at once, and copying a winner
    is copying slices. `models[p]` is an ordinary network whose parameters and buffers are slices p.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        size: int,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        *,
        slow: bool = False,
    ) -> None:
        """`slow`: whether each candidate has a second network, `slow_models[p]`, that follows its weights."""
        self._build = build
        self.models = [build() for _ in range(size)]
        self.weights = _stack([_trained(model) for model in self.models])
        """Name -> (P,...), the parameters that are trained."""
        self.buffers = _stack([_untrained(model) for model in self.models])
        """Name -> (P,...), buffers, and parameters that are frozen."""
        states = {name: zero_state(optimizer, stack, candidate_axis=True) for name, stack in self.weights.items()}
        self.optimizer_state = {
            kind: {name: state[kind] for name, state in states.items()} for kind in next(iter(states.values()), {})
        }
        """Kind -> name -> (P,...), what the optimiser remembers of each weight."""
        averaged = {} if optimizer.ema_decay is None else {**self.weights, **self.buffers}
        self.ema = {name: stack.clone() for name, stack in averaged.items() if stack.is_floating_point()}
        """Name -> (P,...), the moving averages of weights and floating buffers, if they are wanted."""
        self.slow_models = [build() for _ in range(size)] if slow else []
        self.slow = _stack([_trained(model) | _untrained(model) for model in self.slow_models])
        """Name -> (P,...), weights and buffers of the slow networks."""
        self.epoch_average = WeightAverage(self.weights, self.buffers)
        """The average of the weights after each step of an epoch, while one is wanted."""
        self.interval_average = WeightAverage(self.weights, self.buffers)
        """The average of the weights after each epoch of an interval, while one is wanted."""

    def __len__(self) -> int:
        return len(self.models)

    def start_from(self, slot: int, model: nn.Module) -> None:
        """Give one candidate the weights and buffers of a network of the same kind."""
        for network in [self.models[slot], *self.slow_models[slot : slot + 1]]:
            network.load_state_dict(model.state_dict())
        _fill(self.ema, slot, {name: tensor for name, tensor in model.state_dict().items() if name in self.ema})

    def forget_optimizer_state(self) -> None:
        """Set all that the optimiser remembers to zero."""
        for stacks in self.optimizer_state.values():
            for stack in stacks.values():
                stack.zero_()

    def continue_from(self, survivors: Sequence[int]) -> None:
        """Copy survivor s modulo their number into slot s, and forget the averages."""
        parents = [survivors[slot % len(survivors)] for slot in range(len(self))]
        for tensors in (self.weights, self.buffers, *self.optimizer_state.values(), self.ema, self.slow):
            for stack in tensors.values():
                stack.copy_(stack[parents])
        self.epoch_average.count = self.interval_average.count = 0

    def average(self, slots: Sequence[int], into: int) -> None:
        """Give one candidate the mean weights, buffers and optimiser state of several.

        Batch norm has to be estimated anew: the mean of its statistics is not that of the mean weights. Buffers of
        whole numbers are those of the first.
        """
        for tensors in (self.weights, self.buffers, *self.optimizer_state.values(), self.ema, self.slow):
            for stack in tensors.values():
                stack[into] = _mean(stack, slots)

    def mean_weights(self, slots: Sequence[int]) -> dict[str, Tensor]:
        """The mean weights and buffers of several candidates by name: weights of their averages over an epoch where
        there are any, by which single candidates are judged, too."""
        return self._mean_over(self.epoch_average, slots)

    def mean_interval_weights(self, slots: Sequence[int]) -> dict[str, Tensor]:
        """The mean weights and buffers of several candidates by name: weights of their averages over the interval; of
        an interval of one epoch, as they are."""
        return self._mean_over(self.interval_average, slots)

    def _mean_over(self, average: "WeightAverage", slots: Sequence[int]) -> dict[str, Tensor]:
        stacks, count = (average.sums, average.count) if average.count else (self.weights, 1)
        weights = {name: _mean(stack, slots) / count for name, stack in stacks.items()}
        return weights | {name: _mean(stack, slots) for name, stack in self.buffers.items()}

    def ema_network(self, slot: int) -> nn.Module:
        """A new network of the moving averages of one candidate; counts, as of batches, are those of the candidate."""
        network = self._build()
        network.load_state_dict(self.models[slot].state_dict())
        tensors = _trained(network) | _untrained(network)  # each once, where a state_dict names what parts share twice
        for name, stack in self.ema.items():
            tensors[name].data.copy_(stack[slot])
        return network

    def named_tensors(self, slot: int) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of one candidate with its name, as in "weights.classifier.bias"; views, sums of averages among
        them."""
        for kind, stacks in self._kinds().items():
            for name, stack in stacks.items():
                yield f"{kind}.{name}", stack[slot]

    def changed_by_epoch(self, *, average: bool) -> list[Tensor]:
        """The tensors (P,...) that an epoch changes, with `average` the sums of its weights among them."""
        kinds = self._kinds()
        left_out = {"interval_average"} if average else {"interval_average", "epoch_average"}
        return [stack for kind, stacks in kinds.items() if kind not in left_out for stack in stacks.values()]

    def clear(self, slot: int) -> None:
        """Set every tensor of one candidate to zero."""
        for stacks in self._kinds().values():
            for stack in stacks.values():
                stack[slot].zero_()

    def _kinds(self) -> dict[str, dict[str, Tensor]]:
        """All tensors (P,...) of the candidates by kind and name."""
        return {
            "weights": self.weights,
            "buffers": self.buffers,
            **self.optimizer_state,
            "ema": self.ema,
            "slow": self.slow,
            "epoch_average": self.epoch_average.sums,
            "interval_average": self.interval_average.sums,
        }

    def candidate(self, slot: int) -> Tree:
        """One candidate as a plain tree of tensors and numbers that can travel: copies of its slices."""
        return {
            "weights": _slices(self.weights, slot),
            "buffers": _slices(self.buffers, slot),
            **{kind: _slices(stacks, slot) for kind, stacks in self.optimizer_state.items()},
            "ema": _slices(self.ema, slot),
            "slow": _slices(self.slow, slot),
            "interval_sums": _slices(self.interval_average.sums, slot) if self.interval_average.count else {},
        }

    def state_dict(self, active: int) -> Tree:
        """Copies of the first `active` slots; any other slot s is equal to slot s modulo `active`, or not in use."""
        return {
            "candidates": [self.candidate(slot) for slot in range(active)],
            "epochs_averaged": self.interval_average.count,
        }

    def load_state_dict(self, tree: Tree) -> None:
        """Restore the saved slots, and the others as copies of them."""
        saved = tree["candidates"]
        if tree["epochs_averaged"]:
            self.interval_average.restart()
        self.interval_average.count = tree["epochs_averaged"]
        for slot in range(len(self)):
            candidate = saved[slot % len(saved)]
            _fill(self.weights, slot, candidate["weights"])
            _fill(self.buffers, slot, candidate["buffers"])
            for kind, stacks in self.optimizer_state.items():
                _fill(stacks, slot, candidate[kind])
            _fill(self.ema, slot, candidate.get("ema", {}))  # earlier versions had none
            _fill(self.slow, slot, candidate["slow"])
            _fill(self.interval_average.sums, slot, candidate["interval_sums"])


class WeightAverage:
    """The mean of the weights at several moments, one for every slot; kept as a sum."""

    def __init__(self, weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        self._weights, self._buffers = weights, buffers
        self.sums: dict[str, Tensor] = {}
        """Name -> (P,...), once a sum was started. They keep their place in memory: a captured step may hold them."""
        self.count = 0
        """Number of moments that were summed."""

    def restart(self) -> None:
        """Set the sums and their count to zero."""
        if not self.sums:
            self.sums = {name: torch.zeros_like(stack) for name, stack in self._weights.items()}
        for total in self.sums.values():
            total.zero_()
        self.count = 0

    def add(self, candidates: int) -> None:
        """Add the present weights of the first candidates to the sums."""
        for name, total in self.sums.items():
            total[:candidates] += self._weights[name][:candidates]
        self.count += 1

    def mean_weights(self, slot: int) -> dict[str, Tensor]:
        """The average of one slot by name, and its buffers as they are now."""
        weights = {name: total[slot] / self.count for name, total in self.sums.items()}
        return weights | _slices(self._buffers, slot)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _untrained(model: nn.Module) -> dict[str, Tensor]:
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    return dict(model.named_buffers()) | frozen


def _stack(candidates: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Move tensors of the same name into one (P,...), each as its slice, in the memory layout that they have.

    Slices begin at multiples of 16 bytes, with a gap where they need it: of others torch.compile makes copies on CUDA,
    in every step.
    """
    stacks = {}
    for name, first in candidates[0].items() if candidates else ():
        unit = 16 // first.element_size()
        strides = (-(-first.numel() // unit) * unit, *first.stride())
        stack = torch.empty_strided((len(candidates), *first.shape), strides, dtype=first.dtype, device=first.device)
        for slot, tensors in enumerate(candidates):
            stack[slot] = tensors[name].detach()
            tensors[name].data = stack[slot]
        stacks[name] = stack
    return stacks


def _mean(stack: Tensor, slots: Sequence[int]) -> Tensor:
    """The mean over some slots; of whole numbers, those of the first."""
    return stack[list(slots)].mean(dim=0) if stack.is_floating_point() else stack[slots[0]]


def _slices(stacks: dict[str, Tensor], slot: int) -> dict[str, Tensor]:
    return {name: stack[slot].clone() for name, stack in stacks.items()}


def _fill(stacks: dict[str, Tensor], slot: int, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        stacks[name][slot].copy_(value)

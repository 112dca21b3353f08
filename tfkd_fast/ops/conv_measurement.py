"""The choice of the algorithm that computes a pass of a convolution fastest on this machine."""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tfkd_fast.ops.conv_algorithms import (
    ALGORITHMS,
    TORCH,
    Algorithm,
    Algorithms,
    Choices,
    Convolution,
    Pass,
    Passes,
    convolve,
    convolve_by_torch,
    serving,
)

TURNS = 5
"""The number of measurements of an algorithm, of which the shortest counts: what else goes on only adds to it."""

LONGEST = 60.0
"""Seconds after which no further turn begins: on a busy machine, what is known by then decides."""

FASTER = 0.95
"""The share of torch's time that another algorithm may take at most, so that noise changes no choice."""

HOPELESS = 1.5
"""The share of torch's time from which an algorithm is measured no further."""

SHORTEST = 5e-4
"""Seconds that a measurement takes at least; a shorter call is repeated."""

MOST_OPERATIONS = 5e9
"""Operations of a measured call: larger batches are measured by a part of their images."""


def measure(wanted: Passes, batch: int) -> Choices:
    """Choose the algorithm of each wanted pass by its time, for batches of `batch` images on torch's number of threads.

    Convolutions and algorithms take turns, so that what else the machine does meanwhile meets all of them. torch's
    algorithm stays unless another one is clearly faster (`FASTER`), and unless the passes of a convolution together
    gain more than several algorithms cost in Python, which is measured, too.
    """
    problems = {convolution: _Problem(convolution, batch) for convolution in wanted}
    contests = {
        (convolution, name): _Contest({own: problems[convolution].call(name, own) for own in candidates})
        for convolution, passes in wanted.items()
        for name in passes
        if len(candidates := serving(name, convolution, batch)) > 1
    }
    overhead = _Contest(_steps_of_both_kinds())
    started = time.perf_counter()
    for turn in range(TURNS if contests else 0):
        if turn > 0 and time.perf_counter() - started > LONGEST:
            break
        for contest in (overhead, *contests.values()):
            contest.play(turn)
    return {
        convolution: _fastest(
            {name: contests[convolution, name] for name in passes if (convolution, name) in contests},
            -overhead.gain("several") if "weight_gradient" in passes or "input_gradient" in passes else 0.0,
        )
        for convolution, passes in wanted.items()
    }


def _fastest(contests: Mapping[Pass, "_Contest"], overhead: float) -> Algorithms:
    """The algorithms that won; those of training only if they gain more than the overhead."""
    won = {name: contest.winner for name, contest in contests.items()}
    gain = sum(contest.gain(won[name]) for name, contest in contests.items() if name != "inference")
    return Algorithms(**{name: own for name, own in won.items() if name == "inference" or gain > overhead})


class _Contest:
    """Functions that compute the same, by algorithm; that of torch is among them."""

    def __init__(self, calls: Mapping[str, Callable[[], object]]) -> None:
        self._calls = dict(calls)
        self._seconds = dict.fromkeys(calls, math.inf)

    def play(self, turn: int) -> None:
        """Measure each function once more, in another order each turn."""
        names = list(self._calls)
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            call, best = self._calls[name], self._seconds[name]
            if turn == 0:
                call()  # makes kernels
            repeats = max(1, math.ceil(SHORTEST / best))
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            self._seconds[name] = min(best, (time.perf_counter() - started) / repeats)
        if turn > 0:
            for name in names:
                if self._seconds[name] > HOPELESS * self._seconds["torch"]:
                    self._calls.pop(name)

    @property
    def winner(self) -> str:
        """The fastest algorithm; torch's unless another one is clearly faster."""
        best = min(self._seconds, key=self._seconds.__getitem__)
        return best if self._seconds[best] <= FASTER * self._seconds["torch"] else "torch"

    def gain(self, name: str) -> float:
        """The seconds that an algorithm takes less than torch's."""
        return self._seconds["torch"] - self._seconds[name]


class _Problem:
    """Random tensors of a convolution, of as many images as are measured."""

    def __init__(self, convolution: Convolution, batch: int) -> None:
        batch = min(batch, max(1, int(MOST_OPERATIONS / convolution.operations_of_an_image)))
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(torch.bfloat16, memory_format=torch.channels_last)

        self.x, self.rounded, self.gradient = (draw(*shape) for shape in convolution.shapes(batch))
        self.weight = self.rounded.to(convolution.weight_dtype)
        self.bias = torch.zeros(convolution.out_channels, dtype=convolution.weight_dtype)
        self.stride = convolution.stride

    def call(self, name: Pass, algorithm: str) -> Callable[[], object]:
        """A function that computes a pass by an algorithm."""
        own = ALGORITHMS[algorithm]
        if name == "inference":
            return self._inference(own)
        if name == "forward":
            return lambda: own.forward(self.x, self.weight, None, self.stride)
        if name == "weight_gradient":
            return lambda: own.weight_gradient(self.gradient, self.x, self.weight, self.stride)
        weight = self.rounded if algorithm == "torch" else self.weight  # as after torch's forward pass
        return lambda: own.input_gradient(self.gradient, self.x, weight, self.stride)

    def _inference(self, own: Algorithm) -> Callable[[], object]:
        if own is not ALGORITHMS["torch"]:
            return lambda: own.forward(self.x, self.weight, self.bias, self.stride).relu_()
        padding, library = self.weight.shape[2] // 2, torch.ops.mkldnn
        geometry = [padding] * 2, [self.stride] * 2, [1, 1], 1
        laid_out = library._reorder_convolution_weight(self.rounded, *geometry, list(self.x.shape))
        return lambda: library._convolution_pointwise(self.x, laid_out, self.bias, *geometry, "relu", [], "")


def _steps_of_both_kinds() -> dict[str, Callable[[], object]]:
    """Forward and backward pass of a tiny convolution by torch alone, and by the route of several algorithms."""
    problem = _Problem(Convolution(8, 1, 1, 8, torch.float32), 1)
    leaves = problem.x.requires_grad_(), problem.weight.requires_grad_()

    def step(function: Callable[..., Tensor], *last: Algorithms) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(*leaves, None, *last), leaves, problem.gradient)

    return {"torch": step(convolve_by_torch), "several": step(convolve, TORCH)}

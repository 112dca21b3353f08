"""How a step that is taken over and over is run: as it is, or on CUDA as a captured graph."""

import time
from collections.abc import Callable
from typing import Any

import torch

MemoryPool = Any
"""As `torch.cuda.graph_pool_handle` gives it; torch has no public name for its type."""

UNCAPTURED = 3
"""Steps that run as they are before one is captured: libraries choose their kernels and get their memory."""


class RepeatedStep:
    """A function without arguments that works on tensors that keep their place.

    Its first steps on CUDA run on a side stream, as capturing wants it; they are steps like any other. What is slow
    about the first ones (compiling, choosing kernels, capturing) is timed apart.
    """

    def __init__(
        self, function: Callable[[], None], device: torch.device, *, compiles: bool, pool: MemoryPool | None
    ) -> None:
        """`pool` is the memory that graphs share which are never replayed at the same time."""
        self._function, self._pool = function, pool
        self._captures = device.type == "cuda"
        self._set_up_left = UNCAPTURED + 1 if self._captures else int(compiles)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> float:
        """Take a step; returns the seconds that it took while setting up, and 0 once that is over."""
        if not self._set_up_left:
            self._take()
            return 0.0
        self._set_up_left -= 1
        self._synchronize()
        started = time.perf_counter()
        self._take()
        self._synchronize()
        return time.perf_counter() - started

    def _take(self) -> None:
        if not self._captures:
            self._function()
        elif self._set_up_left:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._function()
            torch.cuda.current_stream().wait_stream(side)
        else:
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph, pool=self._pool):
                    self._function()
            self._graph.replay()

    def _synchronize(self) -> None:
        if self._captures:
            torch.cuda.synchronize()


def run_in_parallel(functions: list[Callable[[], None]], device: torch.device) -> None:
    """Run functions at the same time on CUDA: as branches of the graph that is being captured, or on streams."""
    if device.type != "cuda" or len(functions) == 1:
        for function in functions:
            function()
        return
    main = torch.cuda.current_stream()
    branches = [torch.cuda.Stream() for _ in functions]
    for branch, function in zip(branches, functions, strict=True):
        branch.wait_stream(main)
        with torch.cuda.stream(branch):
            function()
    for branch in branches:
        main.wait_stream(branch)

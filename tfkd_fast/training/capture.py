"""How a step that is taken over and over is run: as it is, or on CUDA as a captured graph."""

import gc
import time
from collections.abc import Callable, Sequence

import torch

UNCAPTURED = 3
"""Steps that run as they are before one is captured: libraries choose their kernels and get their memory."""

BRANCHES = 16
"""The most branches of one graph; torch has 32 streams, which it gives out in turn."""


class Streams:
    """What all captured steps of a run share: none of them are replayed at the same time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.side = torch.cuda.Stream()
        """To warm up and to capture on."""
        self.branches = [torch.cuda.Stream() for _ in range(BRANCHES)]


class RepeatedStep:
    """A function without arguments that works on tensors that keep their place.

    Its first steps on CUDA run on a side stream, as capturing wants it; they are steps like any other. What is slow
    about the first ones (compiling, choosing kernels, capturing) is timed apart.
    """

    def __init__(self, function: Callable[[], None], streams: Streams | None, *, compiles: bool) -> None:
        """With `streams`, which there are on CUDA, it is captured."""
        self._function, self._streams = function, streams
        self._set_up_left = int(compiles) if streams is None else UNCAPTURED + 1
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
        if self._streams is None:
            self._function()
        elif self._set_up_left:
            self._streams.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._streams.side):
                self._function()
            torch.cuda.current_stream().wait_stream(self._streams.side)
        else:
            self._graph = self._graph or _captured(self._function, self._streams)
            self._graph.replay()

    def _synchronize(self) -> None:
        if self._streams is not None:
            torch.cuda.synchronize()


def _captured(function: Callable[[], None], streams: Streams) -> torch.cuda.CUDAGraph:
    """Other threads (of loaders) may call CUDA meanwhile; old graphs must not be freed meanwhile."""
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()
    try:
        with torch.cuda.graph(graph, streams.pool, streams.side, capture_error_mode="thread_local"):
            function()
    finally:
        gc.enable()
    return graph


def run_in_parallel(functions: Sequence[Callable[[], None]], streams: Streams | None) -> None:
    """Run functions at the same time on CUDA: as branches of the graph that is being captured, or on streams."""
    if streams is None or len(functions) == 1:
        for function in functions:
            function()
        return
    main, branches = torch.cuda.current_stream(), streams.branches[: len(functions)]
    for branch in branches:
        branch.wait_stream(main)
    for number, function in enumerate(functions):
        with torch.cuda.stream(branches[number % len(branches)]):
            function()
    for branch in branches:
        main.wait_stream(branch)

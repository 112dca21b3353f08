"""Repeated training steps: run by the host, or on CUDA captured once as a graph and then replayed."""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

WARMUP_STEPS = 3
"""Eager warm-up steps before a CUDA graph is captured, so that cuDNN and cuBLAS have chosen algorithms and
workspaces."""

BRANCHES = 16
"""The most branches of one graph; torch has 32 streams, which it gives out in turn."""


class Streams:
    """The memory pool and the CUDA streams of all captured steps of a run, of which no two are replayed at the same
    time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.side = torch.cuda.Stream()
        """The stream to warm up and to capture on."""
        self.branches = [torch.cuda.Stream() for _ in range(BRANCHES)]


class RepeatedStep:
    """A step that is taken many times, on tensors that keep their place.

    The code of the step is written at the place where it is taken:

        if not step.replay():
            with step.record():
                ...  # the code

    Its first steps on CUDA run on a side stream, as capturing wants it; they are steps like any other. Then one is
    captured, and from then on replayed. What is slow about the first ones (compiling, choosing kernels, capturing) is
    timed apart.
    """

    def __init__(self, streams: Streams | None, *, compiles: bool) -> None:
        """The step is captured where there are `streams`, as on CUDA. `compiles`: whether torch compiles its first
        run."""
        self._streams = streams
        self._set_up_left = int(compiles) if streams is None else WARMUP_STEPS + 1
        self._graph: torch.cuda.CUDAGraph | None = None
        self.set_up_seconds = 0.0
        """Seconds of the latest step while it compiled or captured; 0 for all later steps."""

    def replay(self) -> bool:
        """Take the step as it was captured. False where there is nothing to replay: the host has to run its code."""
        if self._graph is None:
            return False
        self.set_up_seconds = 0.0
        self._graph.replay()
        return True

    @contextmanager
    def record(self) -> Iterator[None]:
        """Context manager around the code of the step, which is run, or captured and then replayed."""
        self.set_up_seconds = 0.0
        if not self._set_up_left:
            yield
            return
        self._set_up_left -= 1
        self._synchronize()
        started = time.perf_counter()
        if self._streams is None:
            yield
        elif self._set_up_left:
            with _on_side_stream(self._streams):
                yield
        else:
            with capture_graph(self._streams) as graph:
                yield
            graph.replay()
            self._graph = graph
        self._synchronize()
        self.set_up_seconds = time.perf_counter() - started

    def _synchronize(self) -> None:
        if self._streams is not None:
            torch.cuda.synchronize()


@contextmanager
def _on_side_stream(streams: Streams) -> Iterator[None]:
    streams.side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(streams.side):
        yield
    torch.cuda.current_stream().wait_stream(streams.side)


@contextmanager
def capture_graph(streams: Streams) -> Iterator[torch.cuda.CUDAGraph]:
    """Capture a CUDA graph. Threads of loaders may call CUDA meanwhile; the garbage collector waits, because it must
    not free an old graph during the capture."""
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()
    try:
        with torch.cuda.graph(graph, streams.pool, streams.side, capture_error_mode="thread_local"):
            yield graph
    finally:
        gc.enable()


@contextmanager
def branches(count: int, streams: Streams | None) -> Iterator[Sequence[AbstractContextManager[object]]]:
    """A context for each of `count` pieces of work that do not depend on each other.

    On CUDA work is put on a branch of the graph that is being captured, or on a stream, so that pieces may run at the
    same time; all of them are done where the contexts end. On the CPU, and for a single piece, they change nothing.
    """
    if streams is None or count == 1:
        yield [nullcontext()] * count
        return
    main, used = torch.cuda.current_stream(), streams.branches[:count]
    for branch in used:
        branch.wait_stream(main)
    yield [torch.cuda.stream(used[number % len(used)]) for number in range(count)]
    for branch in used:
        main.wait_stream(branch)

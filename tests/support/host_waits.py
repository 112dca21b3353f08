"""What makes the host wait for a device, counted on the CPU as a stand-in."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tfkd_fast.training.epoch import Lane
from tfkd_fast.training.step import Turn


class HostWaits(TorchDispatchMode):
    """Counts the operations that make the host wait for a device: values that Python reads, sizes that depend on data,
    tensors that are made from numbers of the host."""

    NAMES = (
        "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "masked_scatter", "repeat_interleave",
        "unique_consecutive", "unique_dim", "_unique", "_unique2", "bincount", "histc", "lift_fresh",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.NAMES:
            self.seen.append(name)
        if name.strip("_").removeprefix("unsafe_").startswith("index") and isinstance(args[1], (list, tuple)):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            self.seen += [f"{name} by a mask"] * len(masks)
        return func(*args, **kwargs or {})


def watch_steps(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[Lane, Turn], list[str]]:
    """From now on, what makes the host wait in the first step of every kind."""
    seen: dict[tuple[Lane, Turn], list[str]] = {}
    take_step = Lane.take_step

    def watched(lane: Lane, turn: Turn) -> None:
        if (lane, turn) in seen:
            take_step(lane, turn)
            return
        with HostWaits() as waits:
            take_step(lane, turn)
        seen[lane, turn] = waits.seen

    monkeypatch.setattr(Lane, "take_step", watched)
    update = "tfkd_fast.training.optimizers.sgd_step"  # reads the rate on the CPU alone
    monkeypatch.setattr(update, lambda *arguments: None)
    return seen

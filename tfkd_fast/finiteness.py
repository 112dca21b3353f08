"""Whether tensors are finite: which of many hold NaN or infinity."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def named_tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested mappings and sequences, named by the keys and numbers that lead to it, as in
    "population.0.weights.classifier.bias"."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping | Sequence) and not isinstance(tree, str | bytes):
        for key, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from named_tensors(part, f"{name}.{key}" if name else str(key))


def nonfinite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of those named tensors that hold NaN or infinity, in their order; each device is waited for once."""
    extremes: dict[torch.device, list[Tensor]] = {}
    order: list[tuple[str, torch.device, int]] = []
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            of_device = extremes.setdefault(tensor.device, [])
            order.append((name, tensor.device, len(of_device)))
            of_device.append(torch.stack(torch.aminmax(tensor.detach())).double())  # NaN where there is one
    are_finite = {device: torch.stack(pairs).isfinite().all(1).tolist() for device, pairs in extremes.items()}
    return [name for name, device, row in order if not are_finite[device][row]]

"""Checks of arguments that operators share: what is refused is the same with every backend."""

import numbers
from typing import Any

import torch
from torch import Tensor


def check_tensors(**arguments: Any) -> None:
    """Raise TypeError for an argument that is no tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}: use torch.as_tensor")


def check_optional_tensors(**arguments: Any) -> None:
    """Raise TypeError for an argument that is neither a tensor nor None."""
    check_tensors(**{name: value for name, value in arguments.items() if value is not None})


def check_numbers(**arguments: Any) -> None:
    """Raise TypeError for an argument that is no number."""
    if torch.compiler.is_compiling():  # which makes symbols of numbers
        return
    for name, value in arguments.items():
        if not isinstance(value, (float, int, numbers.Real)):  # looked up in this order: the last one takes longest
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def check_flags(**arguments: Any) -> None:
    """Raise TypeError for an argument that is not True or False."""
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def check_device(name: str, tensor: Tensor, owner: str, main: Tensor) -> None:
    """Raise ValueError unless a tensor is on the device of the main argument, whose name is `owner`."""
    if tensor.device != main.device:
        raise ValueError(f"{name} must be on the device of {owner}, {main.device}, not on {tensor.device}")


def check_written(**tensors: Tensor) -> None:
    """Raise ValueError for a tensor that is written to and has several numbers in one place, as `expand` makes it."""
    for name, tensor in tensors.items():
        if 0 in tensor.stride() and any(
            stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        ):
            raise ValueError(f"{name} is written to and must have memory for each of its numbers: use clone()")

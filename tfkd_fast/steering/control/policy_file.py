"""Policy files: learned policies in the safetensors format, and how a new policy starts from one."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.settings import Settings
from tfkd_fast.steering.control.observation import EARLIER_ENTRIES, PROGRESS_ENTRIES, with_every_entry
from tfkd_fast.steering.control.policy import MLP, GaussianPolicy
from tfkd_fast.steering.targets import ActionSpace
from tfkd_fast.tensor_file import FileKind


class PolicyHeader(Settings):
    """The header of a policy file."""

    controller: str
    """Name of the controller that learned the policy."""
    family: str
    """Target family that the policy was learned for."""
    action_names: tuple[str, ...]
    """Name of each number of an action."""
    observation_entries: int
    """Number of entries of an observation."""


# The format number stands for the meaning of the observation's entries, too: a policy cannot use others.
FILES = FileKind("policy", PolicyHeader, 1, "controller.policy", "give the policy.safetensors of a run")


def policy_bytes(controller: str, policy: GaussianPolicy, value: MLP, space: ActionSpace) -> bytes:
    """Return the file of a policy and its value network: safetensors with a `PolicyHeader` as JSON."""
    header = PolicyHeader(
        controller=controller,
        family=space.family,
        action_names=space.action_names,
        observation_entries=PROGRESS_ENTRIES + space.action_size,
    )
    return FILES.to_bytes(header, _tensors(policy, value))


def find_policy(name: str) -> Path:
    """Return the file of the shipped policy of this name, or else `name` as a path."""
    packaged = files("tfkd_fast.recipes") / "policies" / f"{name}.safetensors"
    return Path(str(packaged)) if packaged.is_file() else Path(name)


def load_policy(path: Path, policy: GaussianPolicy, value: MLP | None, space: ActionSpace) -> None:
    """Load a policy, and a value network, from a file whose action space may be another one.

    Numbers of an action are matched by name. A number "rank K" that the file lacks is initialised from the greatest
    rank below K in the file: in the file's space that bin held rank K, or there were fewer classes. Any other missing
    number starts as in a new policy, at the neutral action and the initial standard deviation. Inputs for the previous
    action are matched by name only, because a substitute would count twice; an input that the file lacks has weight 0.

    Args:
        path: the policy file.
        policy: overwritten.
        value: the value network, overwritten; None if it is not needed.
        space: the action space of `policy`.

    Raises:
        UserError: the file is missing, unreadable, damaged, of another kind or format, or has no number of `space`.
    """
    header, tensors = _read(path)
    names = header.action_names
    rows = [_counterpart(name, names) for name in space.action_names]
    if all(row is None for row in rows):
        raise UserError(
            f"the policy {path} steers {', '.join(names)} ({header.family} target), "
            f"nothing of which the {space.family} target has"
        )
    previous = [PROGRESS_ENTRIES + names.index(name) if name in names else None for name in space.action_names]
    inputs = [*range(PROGRESS_ENTRIES), *previous]
    networks = ("policy.mean", "value")
    for name in (f"{network}.{layer}.weight" for network in networks for layer in ("hidden.0", "trend")):
        tensors[name] = _take(tensors[name].T, inputs, 0.0).T
    outputs = {"mean.output.weight": 0.0, "mean.output.bias": 0.0, "mean.trend.weight": 0.0}
    for name, new in {**outputs, "log_std": policy.log_std[0].item()}.items():
        tensors[f"policy.{name}"] = _take(tensors[f"policy.{name}"], rows, new)
    policy.load_state_dict(_under("policy.", tensors))
    if value is not None:
        value.load_state_dict(_under("value.", tensors))


def _read(path: Path) -> tuple[PolicyHeader, dict[str, Tensor]]:
    """Read a policy file and check the shapes, dtypes and values of its tensors."""
    with FILES.reading(path):
        header, tensors = FILES.read(path)
        size, generator = len(header.action_names), torch.Generator()
        observed = header.observation_entries
        if observed - size not in (PROGRESS_ENTRIES, EARLIER_ENTRIES):
            raise ValueError(f"a policy of {size} numbers observes {PROGRESS_ENTRIES + size}")
        expected = _tensors(GaussianPolicy(observed, size, 1.0, generator), MLP(observed, 1, generator))
        fits = _shapes(tensors) == _shapes(expected) and all(
            tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values()
        )
        if not fits:
            raise ValueError("its tensors are not those of a policy")
    return header, with_every_entry(tensors, size)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _tensors(policy: GaussianPolicy, value: MLP) -> dict[str, Tensor]:
    """Return all weights by their names in the file."""
    networks = (("policy", policy), ("value", value))
    return {f"{which}.{name}": tensor for which, network in networks for name, tensor in network.state_dict().items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _counterpart(name: str, names: Sequence[str]) -> int | None:
    """Return the index in `names` of the number that initialises `name`, or None."""
    if name in names:
        return names.index(name)
    ranks = {rank: index for index, other in enumerate(names) if (rank := _rank(other)) is not None}
    lower = [rank for rank in ranks if rank < (_rank(name) or 0)]
    return ranks[max(lower)] if lower else None


def _rank(name: str) -> int | None:
    """Return K of the name "rank K", or None for another name."""
    match = re.fullmatch(r"rank (\d+)", name)
    return int(match[1]) if match else None


def _take(tensor: Tensor, rows: Sequence[int | None], default: float) -> Tensor:
    """Return rows of a tensor (n,...) by index; None gives a row filled with `default`."""
    other = torch.full_like(tensor[0], default)
    return torch.stack([other if row is None else tensor[row] for row in rows])

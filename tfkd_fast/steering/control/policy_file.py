"""Policies that travel: a learned policy as a file, and a policy that starts from one, also for another target."""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.settings import Settings
from tfkd_fast.steering.control.observation import PROGRESS_ENTRIES
from tfkd_fast.steering.control.policy import MLP, GaussianPolicy
from tfkd_fast.steering.targets import ActionSpace
from tfkd_fast.tensor_file import FileKind


class PolicyHeader(Settings):
    """What a policy file says of its policy."""

    controller: str
    family: str
    action_names: tuple[str, ...]
    observation_entries: int


# The format includes what the entries of the observation mean: a policy cannot see with others.
FILES = FileKind("policy", PolicyHeader, 1, "controller.policy", "give the policy.safetensors of a run")


def policy_bytes(controller: str, policy: GaussianPolicy, value: MLP, space: ActionSpace) -> bytes:
    """A policy and its value network in the safetensors format, with a `PolicyHeader` as JSON."""
    header = PolicyHeader(
        controller=controller,
        family=space.family,
        action_names=space.action_names,
        observation_entries=PROGRESS_ENTRIES + space.action_size,
    )
    return FILES.to_bytes(header, _tensors(policy, value))


def find_policy(name: str) -> Path:
    """The file of a shipped policy, or else the path that `name` is."""
    shipped = files("tfkd_fast.recipes") / "policies" / f"{name}.safetensors"
    return Path(str(shipped)) if shipped.is_file() else Path(name)


def load_policy(path: Path, policy: GaussianPolicy, value: MLP | None, space: ActionSpace) -> None:
    """Take over what a file says of the numbers that `space` has, too, found by their names.

    A number "rank K" that the file lacks is steered as the greatest rank below K in it: there, that bin held rank K, or
    the classes ended before. Any other that it lacks starts as in a new policy, at the neutral action and the initial
    standard deviation. Inputs for the previous action are found by the name alone, since one that stood in for another
    would count twice; what the file never saw has no influence.

    Raises:
        UserError: if the file is missing, unreadable, damaged, of another kind or format, or steers nothing of `space`.
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
    """The content of a policy file, checked."""
    header, tensors = FILES.read(path)
    size, generator = len(header.action_names), torch.Generator()
    observed = PROGRESS_ENTRIES + size
    expected = _tensors(GaussianPolicy(observed, size, 1.0, generator), MLP(observed, 1, generator))
    fits = (
        header.observation_entries == observed
        and _shapes(tensors) == _shapes(expected)
        and all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())
    )
    if not fits:
        raise FILES.foreign(path)
    return header, tensors


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _tensors(policy: GaussianPolicy, value: MLP) -> dict[str, Tensor]:
    """All weights by the names that they have in the file."""
    networks = (("policy", policy), ("value", value))
    return {f"{which}.{name}": tensor for which, network in networks for name, tensor in network.state_dict().items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _counterpart(name: str, names: Sequence[str]) -> int | None:
    """Where in `names` stands that which `name` is steered as."""
    if name in names:
        return names.index(name)
    ranks = {rank: index for index, other in enumerate(names) if (rank := _rank(other)) is not None}
    below = [rank for rank in ranks if rank < (_rank(name) or 0)]
    return ranks[max(below)] if below else None


def _rank(name: str) -> int | None:
    """K of "rank K"."""
    match = re.fullmatch(r"rank (\d+)", name)
    return int(match[1]) if match else None


def _take(tensor: Tensor, rows: Sequence[int | None], default: float) -> Tensor:
    """Rows of a tensor (n,...) by their numbers; one of `default` for None."""
    other = torch.full_like(tensor[0], default)
    return torch.stack([other if row is None else tensor[row] for row in rows])

"""Weights of teachers that no run of this package trained: files of others, and what timm and torchvision publish.

A file is read without running any code that it might hold.
"""

import argparse
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from tfkd_fast.errors import UserError, shorten
from tfkd_fast.files import open_regular, reading
from tfkd_fast.models import FeatureNetwork

HELD_AS = ("model", "state_dict", "model_state_dict")
"""Where checkpoints keep the weights of their network: RepDistiller and mdistiller under the first one."""

IMAGENET_NUMBERS = "791ce0333040dd249d13133f90d28ef0263ffc01e5de0afd85b3e32048d7d456"
"""SHA-256 of the WordNet numbers of the 1000 classes of ImageNet (ILSVRC 2012), in their order, with spaces between."""

Tensors = Mapping[str, Tensor]


class Published(NamedTuple):
    """A network with the weights that its package publishes, and the images and classes that they were trained on."""

    network: nn.Module
    classes: tuple[str, ...] | None
    """The names of the classes in the order of the logits; None where the package does not tell."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    """Height and width of the images."""


def read_weights(path: Path) -> Tensors:
    """The weights in a file by name: a .safetensors file, or a checkpoint of torch with a state_dict as it is or under
    a key of `HELD_AS`, also one that `DataParallel` saved.

    Raises:
        UserError: the file is missing, damaged, holds no weights, or more than plain data.
    """
    with reading(path, "the weights of the teacher", "name another file"):
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a program, as plain values
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            if not _is_pickle(path):
                raise ValueError("it is no checkpoint of torch") from None
            raise UserError(
                f"{path} holds more than weights, which is not read because it could run code: save the state_dict"
            ) from None
    held = next((content[key] for key in HELD_AS if isinstance(content, dict) and key in content), content)
    if not isinstance(held, dict) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError(f"{path} holds no weights by name: save the state_dict of the network")
    parallel = all(name.startswith("module.") for name in held)
    return {name.removeprefix("module.") if parallel else name: value for name, value in held.items()}


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle or an archive, in which torch keeps one, and not a page that a server sent instead."""
    with open_regular(path) as file:
        return file.read(1) == pickle.PROTO or zipfile.is_zipfile(file)


def load_weights(network: nn.Module, weights: Tensors, path: Path, name: str) -> None:
    """Load weights into a network by their names.

    A network of this package also takes those of the published network that it is: layer by layer, of each kind in
    their order, whatever their names.

    Args:
        network: the network, which is changed.
        weights: weights by name.
        path: the file that they are from, for messages.
        name: the name of the network, for messages.

    Raises:
        UserError: they are those of another network.
    """
    own = network.state_dict()
    if set(weights) == set(own) and all(weights[key].shape == own[key].shape for key in own):
        network.load_state_dict(dict(weights))
        return
    if isinstance(network, FeatureNetwork) and _load_in_order(network, weights):
        return
    missing, unknown = [key for key in own if key not in weights], [key for key in weights if key not in own]
    others = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    what = f"no {missing[0]}" if missing else f"a {unknown[0]}" if unknown else f"another shape of {others[0]}"
    raise UserError(f"{path} does not hold the weights of the network {name}: it has {what}")


def _load_in_order(network: nn.Module, weights: Tensors) -> bool:
    """Load convolutions, batch norms and linear layers, each in their order; False where they do not fit."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        layer, _, part = name.rpartition(".")
        layers.setdefault(layer, {})[part] = value
    kinds: list[tuple[type[nn.Module], Callable[[Tensors], bool]]] = [
        (nn.BatchNorm2d, lambda parts: "running_mean" in parts),
        (nn.Conv2d, lambda parts: parts["weight"].dim() == 4),
        (nn.Linear, lambda parts: parts["weight"].dim() == 2),
    ]
    if any("weight" not in parts for parts in layers.values()):
        return False
    pairs: list[tuple[nn.Module, dict[str, Tensor]]] = []
    for kind, is_one in kinds:
        mine = [module for module in network.modules() if isinstance(module, kind)]
        theirs = [parts for parts in layers.values() if is_one(parts)]
        if len(mine) != len(theirs):
            return False
        pairs += zip(mine, theirs, strict=True)
    for module, parts in pairs:
        shapes = {part: value.shape for part, value in module.state_dict().items() if part != "num_batches_tracked"}
        if shapes != {part: value.shape for part, value in parts.items() if part != "num_batches_tracked"}:
            return False
    if len(pairs) != len(layers):
        return False
    for module, parts in pairs:
        module.load_state_dict(parts, strict=False)  # older files do not count the batches of a batch norm
    return True


def published(name: str) -> Published:
    """The network `timm/NAME` or `torchvision/NAME` with the weights that are published for it.

    Raises:
        UserError: they cannot be fetched, or there are none.
    """
    package, _, rest = name.partition("/")
    try:
        return _of_timm(rest) if package == "timm" else _of_torchvision(rest)
    except UserError:
        raise
    except Exception as error:  # of the network, of the hub, of a damaged cache
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"the published weights of {name} cannot be fetched ({reason[:200]}): name a file that has them, as in "
            f"--teacher {name}@FILE"
        ) from error


def named_as_in(own: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The classes of published weights by the names that a data set has for them.

    The classes of ImageNet are words where weights are published and WordNet numbers in its folders, in the order of
    these numbers both.

    Args:
        own: the classes of the data set.
        classes: those of the weights, in the order of the logits.
    """
    numbers = sorted(own)
    is_imagenet = sha256(" ".join(numbers).encode()).hexdigest() == IMAGENET_NUMBERS
    return tuple(numbers if is_imagenet and len(classes) == len(numbers) else classes)


def _of_timm(name: str) -> Published:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm/{name} needs a package that is not installed: pip install 'tfkd-fast[timm]'") from None
    if not timm.is_model_pretrained(name):
        raise UserError(f"timm publishes no weights for {name!r}: name a file of weights, as in timm/{name}@FILE")
    network = timm.create_model(name, pretrained=True)
    facts: Any = network.pretrained_cfg
    size = facts["input_size"][1], facts["input_size"][2]
    return Published(network, _imagenet_classes(facts["num_classes"]), tuple(facts["mean"]), tuple(facts["std"]), size)


def _imagenet_classes(count: int) -> tuple[str, ...] | None:
    """The names that torchvision has for the classes of ImageNet, which timm's networks with 1000 logits know."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES) if count == len(_IMAGENET_CATEGORIES) else None


def _of_torchvision(name: str) -> Published:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"torchvision has no network {shorten(name)}")
    weights = models.get_model_weights(name).DEFAULT
    facts = weights.transforms()
    network = models.get_model(name, weights=weights)
    size = facts.crop_size[0], facts.crop_size[-1]
    return Published(network, tuple(weights.meta["categories"]), tuple(facts.mean), tuple(facts.std), size)

"""Logits and features of any network.

A network of this package gives its features itself. Those of any other `nn.Module` are read by hooks, and only where a
method reads features: the maps of stages are what some of its modules give, and the pooled features are what its
classifier takes.

Which modules end a stage is found out by the size of the maps (B,C,H,W) that modules give: of the modules that give
maps of one size, the last one to end, but for those inside of a block that takes such maps and gives smaller ones.
Sizes that a larger one follows, as inside of squeeze and excitation, and maps of one pixel that no convolution made, as
those of a global pooling, are no stages. A network may name its stages itself:
`network.stages = ["layer1", "layer2"]`. The classifier is the last linear layer, unless the network names another
module: `network.classifier = "head.fc"`.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tfkd_fast.errors import UserError
from tfkd_fast.models.features import FeatureName, FeatureNetwork, Features, FeatureShapes, shape_of
from tfkd_fast.randomness import all_seeded

Images = tuple[int, int, int]
"""Channels, height and width of images."""

Size = tuple[int, int]
"""Height and width of maps."""


class ReadPoints(NamedTuple):
    """Where features are read in a network that does not give them itself."""

    stages: tuple[nn.Module, ...]
    """The modules that give the maps of the stages."""
    classifier: nn.Module
    """The module that takes the pooled features."""


_points: "WeakKeyDictionary[nn.Module, ReadPoints]" = WeakKeyDictionary()


def logits_and_features(
    network: nn.Module, names: Collection[FeatureName], images: Tensor
) -> tuple[Tensor, Features | None]:
    """The logits of images (B,C,H,W), and the features that are named; None where none are."""
    if not names:
        return full_precision(network(images)), None
    if isinstance(network, FeatureNetwork):
        logits, features = network(images, return_features=True)
        return logits, features.only(names)
    logits, features = _read(network, images)
    return full_precision(logits), features.only(names)


def full_precision(logits: Tensor) -> Tensor:
    """The logits in float32 where they are in a shorter format, in which losses are not computed."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def feature_shapes(network: nn.Module, image_shape: Images) -> FeatureShapes:
    """The shapes of the features that a network gives of images (channels, height, width).

    Raises:
        UserError: they are those of a network of others, which has no maps of stages or no classifier.
    """
    names: tuple[FeatureName, ...] = ("stages", "stem", "block_sums")
    with evaluating(network), torch.no_grad():
        _, features = logits_and_features(network, names, blank_images(network, image_shape))
    assert features is not None
    stem = None if features.stem is None else shape_of(features.stem)
    maps, sums = (tuple(map(shape_of, maps)) for maps in (features.before_relu, features.block_sums))
    pairs = zip(features.before_relu, features.after_relu, strict=True)
    linear = tuple(stage for stage, (before, after) in enumerate(pairs) if before is after)
    return FeatureShapes(maps, int(features.pooled.shape[1]), stem, sums, linear)


def gives_finite_logits(network: nn.Module, image_shape: Images) -> bool:
    """Whether a network in evaluation mode gives finite logits for noise, see `logits_of_noise`."""
    return bool(logits_of_noise(network, image_shape).isfinite().all())


def logits_of_noise(network: nn.Module, image_shape: Images) -> Tensor:
    """The logits (4,K) that a network in evaluation mode gives for `noise`, the same ones whenever it is asked."""
    with all_seeded(0), evaluating(network), torch.no_grad():
        logits: Tensor = network(noise(network, image_shape))
    return logits


def noise(network: nn.Module, image_shape: Images) -> Tensor:
    """Four images (4, channels, height, width) of standard normal noise, which have the range of standardised images,
    in the dtype and on the device of a network's weights."""
    images = torch.randn(4, *image_shape, generator=torch.Generator().manual_seed(0))
    return images.to(blank_images(network, image_shape))


def classifier_of(network: nn.Module) -> nn.Module:
    """The module that takes the pooled features of a network to its logits.

    Raises:
        UserError: the network of others has no linear layer and names no other module, or names one that it does not
            have.
    """
    own = getattr(network, "classifier", None)
    if isinstance(network, FeatureNetwork):
        assert isinstance(own, nn.Module)
        return own
    if isinstance(own, str):
        return _submodule(network, own, "classifier")
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            f"{type(network).__name__} has no linear layer whose input could be its pooled features: name the module "
            "that makes the logits of them, as in network.classifier = 'head'"
        )
    return linear[-1]


def blank_images(network: nn.Module, image_shape: Images, count: int = 1) -> Tensor:
    """Black images (count, channels, height, width) in the dtype and on the device of a network's weights."""
    parameter = next(network.parameters(), torch.empty(0))
    return torch.zeros(count, *image_shape, dtype=parameter.dtype, device=parameter.device)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context manager in which a network is in evaluation mode."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _read(network: nn.Module, images: Tensor) -> tuple[Tensor, Features]:
    """Run a network of others, and read its features by hooks."""
    if network not in _points:
        _points[network] = _find_points(network, images)
    points = _points[network]
    maps: dict[nn.Module, Tensor] = {}
    pooled: list[Tensor] = []
    with _hooks() as add:
        for stage in points.stages:
            add(stage.register_forward_hook(lambda module, inputs, output: maps.__setitem__(module, output)))
        add(points.classifier.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0])))
        logits = network(images)
    if not pooled or pooled[-1].dim() != 2:
        shape = f"takes {tuple(pooled[-1].shape[1:])} of an image" if pooled else "is not used"
        raise UserError(
            f"the classifier of {type(network).__name__} {shape}, so that there are no pooled features (B, width): "
            "name the module that takes them, as in network.classifier = 'head'"
        )
    stages = [maps[stage] for stage in points.stages]
    return logits, Features(stages, stages, pooled[-1])


def _find_points(network: nn.Module, images: Tensor) -> ReadPoints:
    named = getattr(network, "stages", None)
    if isinstance(named, list | tuple) and all(isinstance(name, str) for name in named):
        stages = tuple(_submodule(network, name, "stages") for name in named)
    else:
        stages = _find_stages(network, images)
    if not stages:
        raise UserError(
            f"{type(network).__name__} has no module that gives maps (B,C,H,W), which this method reads: name the "
            "modules that do, as in network.stages = ['layer1', 'layer2']"
        )
    return ReadPoints(stages, classifier_of(network))


def _find_stages(network: nn.Module, images: Tensor) -> tuple[nn.Module, ...]:
    """The modules that end a stage, see above."""
    ended: dict[Size, tuple[int, nn.Module]] = {}
    """Size of maps -> the last module that gave some, and its number in the order in which modules end."""
    began: list[tuple[int, nn.Module] | None] = []
    """For each module that is being run, the last one before it that gave maps of the size of its input."""
    number = count()

    def begin(module: nn.Module, inputs: Any) -> None:
        began.append(ended.get(_size(inputs, images) or (0, 0)))

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        before, taken, size = began.pop(), _size(inputs, images), _size((output,), images)
        changes = taken is not None and size not in (None, taken) and type(module) is not nn.Sequential
        if taken is not None and before is not None and changes:
            ended[taken] = before  # the stage ends before a block that makes maps smaller
        if size is not None and (size != (1, 1) or any(isinstance(part, nn.Conv2d) for part in module.modules())):
            ended[size] = next(number), module

    with _hooks() as add, evaluating(network), torch.no_grad():
        for module in network.modules():
            if module is not network:
                add(module.register_forward_pre_hook(begin))
                add(module.register_forward_hook(end))
        network(images[:1])
    stages: list[nn.Module] = []
    largest = 0
    for (height, width), (_, module) in sorted(ended.items(), key=lambda item: item[1][0], reverse=True):
        if height * width > largest:
            stages.insert(0, module)
            largest = height * width
    return tuple(stages)


def _size(values: Any, images: Tensor) -> Size | None:
    """Height and width of the first of some values, if it is maps (B,C,H,W) with the proportions of the images, rather
    than (B,H,W,C)."""
    maps = values[0] if values else None
    if not isinstance(maps, Tensor) or maps.dim() != 4:
        return None
    (height, width), (own_height, own_width) = images.shape[-2:], maps.shape[-2:]
    return (own_height, own_width) if abs(own_height * width - own_width * height) < max(height, width) else None


def _submodule(network: nn.Module, name: str, attribute: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        names = ", ".join(name for name, _ in network.named_children())
        raise UserError(
            f"{type(network).__name__}.{attribute} names the module {name!r}, which it does not have; its first ones "
            f"are {names}"
        ) from None


@contextmanager
def _hooks() -> Iterator[Callable[[RemovableHandle], object]]:
    """Context manager at whose end the hooks are removed that its function was given."""
    with ExitStack() as stack:
        yield lambda handle: stack.callback(handle.remove)

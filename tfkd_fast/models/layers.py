"""Layers of the networks, and the features that a network gives.

The layers convert weights and images to one dtype by themselves, because autocast does not convert tensors that
torch.func maps. The first convolution converts the images to the dtype of the autocast region, by its operator.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast import ops
from tfkd_fast.models.folding import FoldingConv
from tfkd_fast.ops import conv_algorithms, fused
from tfkd_fast.ops.convolution import norm_relu

FeatureName = Literal["stages", "stem", "block_sums"]
"""Names of the features that a method may ask for; `Features.pooled` comes with any of them."""


class Features(NamedTuple):
    """Inner representations of a network, for methods that distil them.

    The maps of a stage are what its last ReLU takes and gives, before pooling. Stages of different networks go together
    by the size of their maps: of 32x32 images those of a VGG are 32, 16, 8, 4 and 4 pixels wide, those of a residual
    network 32, 16 and 8, so that the first three of each are pairs; of images twice that size, too.

    RepDistiller (Tian et al., 2020) calls the maps of a network feat_f and ends the list with `pooled`. For a VGG the
    maps are `after_relu`. For a ResNet they are `stem` and `after_relu`. For a wide residual network, which normalises
    and activates before a convolution, they are `stem` and `block_sums`. Its `preact=True` gives `before_relu` in place
    of the maps of stages, for every network.
    """

    before_relu: Sequence[Tensor]
    """One (B, width, H, W) for each stage; () unless "stages" was asked for, like `after_relu`."""
    after_relu: Sequence[Tensor]
    pooled: Tensor
    """(B, width of the last stage): the averaged last map, which the classifier takes."""
    stem: Tensor | None = None
    """(B, width, H, W), the map that the first stage of a residual network takes: that of its first convolution, in a
    ResNet after batch norm and ReLU, in a wide residual network as it is. None for a VGG, which begins with its first
    stage, and unless it was asked for."""
    block_sums: Sequence[Tensor] = ()
    """One (B, width, H, W) for each stage of a residual network: the sum that its last block ends with, before anything
    is done to it. In a ResNet that is `before_relu`; a wide residual network normalises it before the ReLU, as a part
    of what follows. () for a VGG, and unless it was asked for."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """The features with `change` applied to each tensor."""
        stem = None if self.stem is None else change(self.stem)
        before, after, sums = ([change(part) for part in parts] for parts in self._maps())
        return Features(before, after, change(self.pooled), stem, sums)

    def only(self, names: Collection[FeatureName]) -> "Features":
        """The pooled features and those that are named."""
        return Features(
            self.before_relu if "stages" in names else (),
            self.after_relu if "stages" in names else (),
            self.pooled,
            self.stem if "stem" in names else None,
            self.block_sums if "block_sums" in names else (),
        )

    def in_float32(self) -> "Features":
        """The same features in float32. A map of a stage is converted when it is first read, and once: gradients of
        several readers are summed in float32."""
        before, after, sums = (Float32Maps(parts) for parts in self._maps())
        stem = None if self.stem is None else self.stem.float()
        return Features(before, after, self.pooled.float(), stem, sums)

    def as_computed(self) -> "Features":
        """The same features with the maps of stages in the dtype in which the network computed them, for layers that
        compute in that dtype, too; what they give is converted to float32 before a loss is made of it."""
        before, after, sums = (parts.as_computed if isinstance(parts, Float32Maps) else parts for parts in self._maps())
        return self._replace(before_relu=before, after_relu=after, block_sums=sums)

    @classmethod
    def stack(cls, several: Sequence["Features"]) -> "Features":
        """The features of n networks with an axis of n in front."""
        first = several[0]
        before, after, sums = (
            [stack(maps) for maps in zip(*parts, strict=True)]
            for parts in zip(*(features._maps() for features in several), strict=True)
        )
        stems = [features.stem for features in several if features.stem is not None]
        pooled = stack([features.pooled for features in several])
        return cls(before, after, pooled, None if first.stem is None else stack(stems), sums)

    def _maps(self) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        return self.before_relu, self.after_relu, self.block_sums


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """The n tensors as one (n,...); of one tensor no copy is made."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


class Float32Maps(Sequence[Tensor]):
    """Maps in float32, each of which is converted when it is first read."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self.as_computed = maps
        self._converted: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.as_computed)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        if places not in self._converted:
            self._converted[places] = self.as_computed[places].float()
        return self._converted[places]


def logits_and_features(
    network: nn.Module, names: Collection[FeatureName], images: Tensor
) -> tuple[Tensor, Features | None]:
    """The logits of images (B,C,H,W), and the features that are named; None where none are."""
    if not names:
        return network(images), None
    logits, features = network(images, return_features=True)
    return logits, features.only(names)


class FeatureShapes(NamedTuple):
    """The shapes of the features of one image."""

    maps: tuple[tuple[int, int, int], ...]
    """Channels, height and width of the maps of each stage, which are the same before and after ReLU."""
    pooled: int
    stem: tuple[int, int, int] | None = None
    """None for a network without a stem apart from its first stage."""
    block_sums: tuple[tuple[int, int, int], ...] = ()
    """One for each stage of a residual network."""


def feature_shapes(network: nn.Module, image_shape: tuple[int, int, int]) -> FeatureShapes:
    """The shapes of the features that a network gives of images (channels, height, width)."""
    was_training, parameter = network.training, next(network.parameters())
    with torch.no_grad():
        images = torch.zeros(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
        _, features = network.eval()(images, return_features=True)
    network.train(was_training)
    stem = None if features.stem is None else _shape(features.stem)
    maps, sums = (tuple(map(_shape, maps)) for maps in (features.before_relu, features.block_sums))
    return FeatureShapes(maps, int(features.pooled.shape[1]), stem, sums)


def gives_finite_logits(network: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Whether a network in evaluation mode gives finite logits for a few images (channels, height, width) of standard
    normal noise, which have the range of standardised images."""
    was_training, parameter = network.training, next(network.parameters())
    noise = torch.randn(4, *image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network.eval()(noise.to(parameter))
    network.train(was_training)
    return bool(logits.isfinite().all())


def _shape(maps: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = maps.shape
    return int(channels), int(height), int(width)


class Conv(FoldingConv):
    """A convolution whose padding keeps the size of the image, but for the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, *, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (3, 3) and self.stride == (1, 1):
            return ops.conv3x3(x, self.weight, self.bias)
        return conv_algorithms.convolve_as_chosen(x, self.weight, self.bias, self.stride[0])


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also works for bfloat16 images which torch.func maps."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype or not fused.inside_torch_func():
            return super().forward(x)
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)  # torch.func maps no batch norm of two dtypes


def norm_relu_pool(norm: nn.Module, x: Tensor, *, pool: bool = False, add: Tensor | None = None) -> Tensor:
    """Apply batch norm, the sum with `add`, ReLU and, with `pool`, 2x2 max-pooling to x (B,C,H,W); in training, and
    without one of the two, this is one operator."""
    assert isinstance(norm, nn.BatchNorm2d)
    batches, mean, var = norm.num_batches_tracked, norm.running_mean, norm.running_var
    if not norm.training and add is None and not pool and mean is not None and var is not None:
        finished = norm_relu(x, norm.weight, norm.bias, mean, var, norm.eps)
        if finished is not None:
            return finished
    if not norm.training or batches is None or mean is None or var is None or (pool and add is not None):
        x = norm(x)
        x = F.relu(x if add is None else x + add)
        return F.max_pool2d(x, 2) if pool else x
    batches.add_(1)
    momentum = 1.0 / float(batches) if norm.momentum is None else norm.momentum  # None: the average of all batches
    numbers = norm.weight, norm.bias, mean, var
    return ops.norm_relu_pool(x, *numbers, momentum=momentum, eps=norm.eps, pool=pool, residual=add)


def convolve(
    conv: nn.Module,
    x: Tensor,
    norm: nn.Module | None = None,
    *,
    add: Tensor | None = None,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """Apply a convolution to x (B,C,H,W), then what is asked for of batch norm, the sum with `add`, ReLU, and 2x2
    max-pooling after ReLU. While the weights of the network stay as they are, that is one operator before pooling, see
    `folding`."""
    assert isinstance(conv, FoldingConv)
    assert norm is None or isinstance(norm, nn.BatchNorm2d)
    if conv.foldings is not None and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        x = x.to(torch.get_autocast_dtype("cpu"))
    folded = conv.folded(norm, x)
    if folded is not None:
        return folded(x, add=add, relu=relu, pool=pool)
    y = conv(x)
    if norm is not None and relu:
        return norm_relu_pool(norm, y, pool=pool, add=add)
    y = y if norm is None else norm(y)
    y = y if add is None else y + add
    y = F.relu(y) if relu else y
    return F.max_pool2d(y, 2) if pool else y


def average_pool(x: Tensor) -> Tensor:
    """Return the means (B,C) of x (B,C,H,W) over all positions."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)  # its gradient is channels-last, too


def average_pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average-pool maps (B,C,H,W) to (B,C,*size).

    If the sizes divide, the gradient is deterministic on CUDA; that of adaptive pooling is not.
    """
    height, width = maps.shape[-2:]
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.avg_pool2d(maps, (height // size[0], width // size[1]))


class Classifier(nn.Linear):
    """The linear layer that computes the logits, in the dtype of its weight even inside an autocast region."""

    def forward(self, pooled: Tensor) -> Tensor:
        with torch.autocast(
            pooled.device.type, enabled=False
        ):  # logits in bf16 would have ties and be too coarse for soft targets
            return super().forward(pooled.to(self.weight.dtype))


def initialise_convolutions(network: nn.Module) -> None:
    """Initialise all convolutions with weights of standard deviation sqrt(2 / (k^2 * out)) and biases 0.

    Source: He et al., "Delving Deep into Rectifiers", 2015, by fan-out.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def scale_widths(channels: Sequence[int], width: float) -> list[int]:
    """Return channel counts times `width`, rounded to multiples of 8 and at least 8, for small machines."""
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}")
    return [max(8, 8 * round(count * width / 8)) for count in channels]

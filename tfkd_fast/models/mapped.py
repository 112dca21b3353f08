"""Networks that torch.func maps over stacked weights.

Autocast leaves tensors that torch.func maps as they are. The layers of this package convert them by themselves; for
torch's own layers, of networks of others, `Autocast` converts them where autocast would, function by function.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from tfkd_fast.models.features import FeatureNetwork
from tfkd_fast.models.reading import full_precision

LOWERED: frozenset[Callable[..., Any]] = frozenset(
    {
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear),
        *(torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm),
        *(torch.einsum, torch.addbmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, Tensor.addmm),
        *(F.scaled_dot_product_attention, F.multi_head_attention_forward),
    }
)
"""Functions that autocast computes in bfloat16."""

NORMS: frozenset[Callable[..., Any]] = frozenset(
    {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, torch.batch_norm, torch.layer_norm, torch.group_norm}
)
"""Functions whose weights stay float32 beside maps in bfloat16, which torch.func does not map."""


class Autocast(TorchFunctionMode):
    """What the autocast region around it would do, for tensors that torch.func maps, too."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = next((part.device.type for part in args if isinstance(part, Tensor)), "cpu")
        if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
            return func(*args, **kwargs)
        if func in LOWERED:
            lower = torch.get_autocast_dtype(device)
            return func(*_converted(args, lower), **dict(zip(kwargs, _converted(kwargs.values(), lower), strict=True)))
        if func in NORMS and args[0].dtype != torch.float32:
            normed = func(args[0].float(), *args[1:], **kwargs)
            return normed.to(args[0].dtype)
        return func(*args, **kwargs)


def _converted(values: Any, dtype: torch.dtype) -> list[Any]:
    return [
        value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value for value in values
    ]


def call_with(network: nn.Module, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """The logits (B,K) of images by other weights and buffers, which torch.func may map."""
    with nullcontext() if isinstance(network, FeatureNetwork) else Autocast():
        logits: Tensor = functional_call(network, tensors, (images,))
    return full_precision(logits)

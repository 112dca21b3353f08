"""Calls of the operators that meet every kernel: short and long rows, tails, one block and several, odd addresses."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

CLASSES = (1, 3, 10, 16, 33, 100, 129, 300, 1000, 1024, 1026, 5000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FEW_SAMPLES, MANY_SAMPLES = 3, 150  # less than a block has rows, and more

Call = tuple[Any, ...]


def soft_target_loss() -> Iterator[Call]:
    """(logits, labels, targets, temperature, hard_weight, class_rows, reduction)"""
    for form, logits, labels, reduction in _losses():
        classes, batch = logits.shape[-1], logits.shape[-2]
        settings = _setting(logits, 2.0), _setting(logits, 0.3)
        if classes <= 300 and form != 1:
            yield logits, labels, _distributions(classes, logits=logits), *settings, True, reduction
        else:
            yield logits, labels, _distributions(*logits.shape[:-2], batch, logits=logits), None, None, False, reduction


def soft_target_loss_with_stats() -> Iterator[Call]:
    """(logits, labels, targets, similarity, temperature, hard_weight, class_rows, reduction)"""
    for _, logits, labels, reduction in _losses():
        classes, batch = logits.shape[-1], logits.shape[-2]
        similarity = torch.zeros(*logits.shape[:-2], classes, classes) if classes <= 300 else None
        targets = _distributions(batch, logits=logits)
        yield logits, labels, targets, similarity, _setting(logits, 2.0), _setting(logits, 0.3), False, reduction


def distillation_loss() -> Iterator[Call]:
    """(logits, teachers, labels, weights, temperature, alpha, reduction)"""
    for form, logits, labels, reduction in _losses():
        batch, classes = logits.shape[-2:]
        settings = _setting(logits, 2.0), _setting(logits, 0.7)
        if form == 0:
            teachers = _odd(torch.randn(1, batch, classes).to(logits.dtype))
            yield logits, teachers, labels, None, *settings, reduction
        elif form == 1:
            dtype = torch.bfloat16 if logits.dtype == torch.float32 else logits.dtype
            weights = torch.rand(3).to(settings[0].dtype).expand(batch, 3)
            yield logits, _odd(torch.randn(3, batch, classes).to(dtype)), labels, weights, *settings, reduction
        else:
            teachers = torch.randn(*logits.shape[:-2], 2, batch, classes).to(logits.dtype)
            yield logits, teachers, None, None, settings[0], _setting(logits, 1.0), reduction


def peer_loss() -> Iterator[Call]:
    """(logits, labels, temperature, alpha, include_self, reduction)"""
    for _, logits, labels, reduction in _losses():
        if logits.dim() == 3:
            temperature = _setting(logits, 2.0).mean()
            alpha, include_self = _setting(logits, 0.5), len(logits) == 1 or reduction == "mean"
            alpha[0] = 1.0  # this candidate needs one softmax, the others two
            yield logits, labels, temperature, alpha, include_self, reduction
    many = torch.randn(64, 5, 100)
    yield many, torch.randint(100, (5,)), torch.ones(()), torch.ones(64), False, "mean"


def rank_binned_targets() -> Iterator[Call]:
    """(similarity, true_mass, bin_masses, bin_starts)"""
    for classes in (2, 3, 33, 130):
        for candidates in ((), (2,)):
            dtype = DTYPES[(classes + len(candidates)) % len(DTYPES)]
            similarity = torch.randn(*candidates, classes, classes).mul(4).round().to(dtype)
            starts = list(range(1, classes, max(1, classes // 70)))
            masses = torch.rand(*candidates, len(starts)).to(dtype)
            yield _odd(similarity), torch.rand(candidates).to(dtype), masses, starts


def candidate_metrics() -> Iterator[Call]:
    """(logits, labels)"""
    for classes in CLASSES[1:]:
        for candidates, samples in ((3, FEW_SAMPLES), (2, MANY_SAMPLES)):
            samples = min(samples, _most_samples(classes))
            dtype = DTYPES[(classes + samples) % len(DTYPES)]
            yield _odd(torch.randn(candidates, samples, classes).to(dtype)), torch.randint(classes, (samples,))


def rank_candidates() -> Iterator[Call]:
    """(criteria, higher_is_better, weights)"""
    for candidates in (1, 2, 33, 300):
        for batch in ((), (3,)):
            for criteria in (1, 4):
                values = torch.randn(*batch, candidates, criteria).mul(2).round()
                yield _odd(values), [True, False, True, True][:criteria], [1.0, 0.25, 0.1, 3.0][:criteria]


def augment() -> Iterator[Call]:
    """(images, indices, draw, pad, flip, mean, std, dtype)"""
    torch.manual_seed(0)
    for k, (height, width) in enumerate(((1, 1), (7, 5), (28, 28), (32, 32), (130, 150))):
        for channels in (1, 2, 3, 4):
            images = _odd(torch.randint(256, (3, height, width, channels), dtype=torch.uint8))
            indices = torch.tensor([[2, 0, 1, 2], [1, 1, 0, 2]])[:, : 1 if height > 100 else 4]
            draw = torch.tensor([[5, 6, 7], [2**63 - 1, 2**32 - 1, 2**32 - 1]])
            of = (indices, draw[0]) if channels % 2 else (indices[0], draw)
            scale = _odd(torch.rand(channels) * 255), _odd(torch.rand(channels) * 100 + 1)
            yield images, *of, (0, 4, 200)[k % 3], k % 2 == 1, *scale, DTYPES[(k + channels) % len(DTYPES)]


def scale_gradient() -> Iterator[Call]:
    """(gradient, upstream)"""
    torch.manual_seed(0)
    for axes, shape in enumerate(((3, 5, 1026), (3, 40, 100), (4, 300, 3), (1, 1, 1), (2, 0, 5))):
        for dtype in DTYPES:
            gradient = torch.randn(shape).to(dtype)
            upstream = _setting(gradient, 1.0).new_ones(shape[: axes % 3])
            upstream += torch.arange(upstream.numel()).view(upstream.shape) % 3  # a third of it is 1
            upstream = upstream.t().contiguous().t() if upstream.dim() == 2 else upstream
            yield (_odd(gradient) if axes % 2 else gradient), upstream


def norm_relu_pool() -> Iterator[Call]:
    """(x, weight, bias, running_mean, running_var, momentum, eps, pool, residual)"""
    for x, pool, residual in _images():
        numbers = [1 + torch.rand(x.shape[1], 2)[:, 0] for _ in range(4)]  # with gaps
        yield x, *numbers, 0.1, 1e-5, pool, residual


def norm_relu_pool_backward() -> Iterator[Call]:
    """(gradient, x, weight, places, mean, invstd, pool, residual)"""
    for x, pool, residual in _images():
        batch, channels, height, width = x.shape
        side, wide = (2, 4) if pool else (1, 1)
        vector = 16 // x.itemsize if channels % (16 // x.itemsize) == 0 else 1
        shape = batch, channels // vector, height // side, width // side
        places = torch.zeros(*shape, dtype=torch.int64)
        for channel in range(vector):
            places |= torch.randint(5 if pool else 2, shape) << (wide * channel)
        bytes_of = max(1, vector * wide // 8)
        places = places.permute(0, 2, 3, 1).unsqueeze(-1) >> (8 * torch.arange(bytes_of)) & 255
        gradient = torch.randn(batch, channels, height // side, width // side)
        numbers = torch.rand(3, channels)
        yield (
            *(_channels_last(gradient.to(x.dtype)), x, numbers[0]),
            *(places.flatten(3).to(torch.uint8).contiguous(), numbers[1], numbers[2], pool, residual is not None),
        )


OPERATORS: dict[str, Callable[[], Iterator[Call]]] = {
    function.__name__: function
    for function in (
        soft_target_loss,
        soft_target_loss_with_stats,
        distillation_loss,
        peer_loss,
        rank_binned_targets,
        candidate_metrics,
        rank_candidates,
        augment,
        scale_gradient,
        norm_relu_pool,
        norm_relu_pool_backward,
    )
}


def make_all(namespace: str, device: str) -> None:
    """Every call on a device; the name of an operator is printed before its calls."""
    for name, calls_of in OPERATORS.items():
        print(name, flush=True)
        for arguments in calls_of():
            getattr(getattr(torch.ops, namespace), name)(*(_moved(argument, device) for argument in arguments))


def _moved(argument: Any, device: str) -> Any:
    """A tensor keeps its strides and its distance from the start of its memory."""
    if not isinstance(argument, Tensor) or argument.device.type == device:
        return argument
    memory = argument.untyped_storage().to(device=device)
    return argument.new_empty(0, device=device).set_(
        memory, argument.storage_offset(), argument.shape, argument.stride()
    )


def _losses() -> Iterator[tuple[int, Tensor, Tensor, str]]:
    """Which of three forms a call is to have, logits, labels, reduction. Every number of classes meets every form and
    every reduction, and every form every reduction and dtype; not all of them together, which would take minutes."""
    torch.manual_seed(0)
    for i, classes in enumerate(CLASSES):
        for k, (candidates, batch) in enumerate(((None, MANY_SAMPLES), (5, FEW_SAMPLES), (2, 40), (1, 0))):
            batch = min(batch, _most_samples(classes))
            shape = (batch, classes) if candidates is None else (candidates, batch, classes)
            logits = torch.randn(shape).mul(3).to(DTYPES[(i + k) % len(DTYPES)])
            labels = torch.randint(classes, shape[:-1] if k % 2 else (batch,))
            logits = _odd(logits) if (i + k) % 3 == 0 else logits
            yield (i - k) % 3, logits, labels, ("mean", "sum", "none")[(i + k) % 3]


def _images() -> Iterator[tuple[Tensor, bool, Tensor | None]]:
    """x, whether there is pooling, and a residual or None."""
    torch.manual_seed(0)
    shapes = (2, 16, 5, 6), (3, 12, 4, 4), (1, 3, 3, 5), (40, 8, 4, 4), (1, 2064, 2, 2), (2, 5, 1, 3)
    for k, shape in enumerate(shapes):
        for dtype in (torch.float32, torch.bfloat16):
            pool = k % 3 < 2 and shape[2] > 1
            x, residual = (_channels_last(torch.randn(shape).to(dtype), odd=k % 2 == 1) for _ in range(2))
            yield x, pool, None if pool or dtype == torch.bfloat16 else residual


def _channels_last(images: Tensor, *, odd: bool = False) -> Tensor:
    memory = images.permute(0, 2, 3, 1)
    return (_odd(memory) if odd else memory.contiguous()).permute(0, 3, 1, 2)


def _most_samples(classes: int) -> int:
    """Enough for several blocks of short rows, and for two long ones: a fiber a thread takes seconds for more."""
    return max(2, 2_500 // classes)


def _setting(logits: Tensor, value: float) -> Tensor:
    """One value a candidate, in the dtype of the loss."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.full(logits.shape[:-2], value, dtype=dtype)


def _distributions(*shape: int, logits: Tensor) -> Tensor:
    return _odd(torch.randn(*shape, logits.shape[-1], dtype=_setting(logits, 0.0).dtype).softmax(-1))


def _odd(tensor: Tensor) -> Tensor:
    """The same values, an element beyond an address that vectors can be loaded from, up to the end of their storage."""
    storage = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return storage[1:].view(tensor.shape).copy_(tensor)

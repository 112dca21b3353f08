"""augment: batches of resident images for training, and the same without augmentation for evaluation."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.harness import COMPILED, EAGER, Call, Case, compiled, our_backends, result_of
from benchmarks.problems import BOTH
from benchmarks.recorded import each, show
from benchmarks.rivals import dali
from tfkd_fast.ops import augment

CIFAR, LARGER = (50_000, 32, 32, 3), (10_000, 96, 96, 3)
MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


def case_of(images: tuple[int, ...], batch: int, pad: int, dtype: torch.dtype) -> Case:
    """Without padding nothing is mirrored either, as in an evaluation."""
    _, height, width, channels = images
    moved = batch * height * width * channels * (1 + dtype.itemsize)
    shape = f"B={batch} H={height} W={width} C={channels} pad={pad}"
    return Case("augment", shape, dtype, moved, partial(variants_of, images=images, batch=batch, pad=pad))


def variants_of(case: Case, device: torch.device, *, images: tuple[int, ...], batch: int, pad: int) -> dict[str, Call]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, images, dtype=torch.uint8, generator=generator)
    orders = [torch.randint(len(pixels), (batch,), generator=generator) for _ in range(case.sets)]
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    resident, scale = pixels.to(device), {"mean": mean.to(device), "std": std.to(device)}
    sets = [(indices.to(device), torch.tensor([1, i, 0], device=device)) for i, indices in enumerate(orders)]

    def batch_of(indices: Tensor, draw: Tensor, backend: str) -> Tensor:
        return augment(resident, indices, draw, pad=pad, flip=pad > 0, **scale, dtype=case.dtype, backend=backend)

    reference = partial(batch_of, backend="reference")
    variants = {
        **{name: result_of(partial(batch_of, backend=name), sets) for name in our_backends(case.operator, device)},
        EAGER: result_of(reference, sets),
        COMPILED: result_of(compiled(reference), sets),
    }
    if device.type == "cpu" and pad > 0:
        variants["torchvision"] = result_of(by_torchvision(pixels, pad, case.dtype), [(order,) for order in orders])
        if dali is not None:
            pipeline = dali(pixels, batch, pad=pad, mean=mean, std=std, dtype=case.dtype)
            variants["DALI"] = result_of(pipeline, [(order,) for order in orders])
    return variants


def by_torchvision(pixels: Tensor, pad: int, dtype: torch.dtype) -> Any:
    """Image by image, as a data set's transforms are: of a batch it would draw one window for all."""
    transform = v2.Compose(
        [
            v2.RandomCrop(pixels.shape[1], padding=pad),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([value / 255 for value in MEAN], [value / 255 for value in STD]),
        ]
    )
    images = pixels.permute(0, 3, 1, 2).contiguous()
    return lambda order: torch.stack([transform(images[index]) for index in order.tolist()]).to(dtype)


CASES = [
    *(case_of(CIFAR, 128, 4, dtype) for dtype in BOTH),
    case_of(CIFAR, 128, 0, torch.bfloat16),
    case_of(CIFAR, 1_024, 4, torch.bfloat16),
    case_of(LARGER, 128, 12, torch.bfloat16),
]


@each(CASES)
def test_augment(benchmark: Any, case: Case, variant: str) -> None:
    show(benchmark, case, variant)

"""The loop written by hand at work on a workload: a plain network, its optimiser, and batches of the random images."""

from collections.abc import Callable

import torch

from tfkd_fast.throughput import plain_loop
from tfkd_fast.throughput.plain_networks import plain_network
from tfkd_fast.throughput.workload import Workload


def careful_epoch(workload: Workload, *, compiled: bool = False) -> Callable[[], None]:
    """Return an epoch of a tuned loop: precision of the workload, channels-last, batches augmented by indexing."""
    bf16 = workload.compute.dtype is torch.bfloat16
    return _epoch(workload, plain_loop.whole_batches, torch.channels_last, bf16=bf16, compiled=compiled)


def fp32_epoch(workload: Workload) -> Callable[[], None]:
    """Return an epoch of the common loop: float32, torch's default memory format, a DataLoader over PIL images."""
    return _epoch(workload, plain_loop.dataloader, torch.contiguous_format, bf16=False)


def careful_evaluation(workload: Workload) -> Callable[[], None]:
    """Return a function that evaluates the network in eval mode on as many images as an epoch has."""
    images, device = workload.image_set(), workload.compute.device
    pixels, labels = images.all_images().to(device), images.labels.to(device)
    model = plain_network(workload.build()).to(memory_format=torch.channels_last)
    bf16 = workload.compute.dtype is torch.bfloat16

    def run() -> None:
        plain_loop.evaluate(model, pixels, labels, workload.batch_size, bf16=bf16)

    return run


def _epoch(
    workload: Workload,
    batches_of: Callable[..., Callable[[], plain_loop.Batches]],
    memory_format: torch.memory_format,
    *,
    bf16: bool,
    compiled: bool = False,
) -> Callable[[], None]:
    images, device = workload.image_set(), workload.compute.device
    pixels, labels = images.all_images().to(device), images.labels.to(device)
    batches = batches_of(pixels, labels, workload.batch_size, device)
    model = plain_network(workload.build()).to(memory_format=memory_format).train()
    frozen, teacher = workload.build_teacher(), None
    if frozen is not None:
        teacher = plain_network(frozen).to(memory_format=memory_format).eval().requires_grad_(False)
    optimizer = plain_loop.make_sgd(model)
    network = torch.compile(model) if compiled else model
    smoothing = plain_loop.SMOOTHING if workload.method == "label-smoothing" else 0.0

    def run() -> None:
        plain_loop.train_epoch(
            network,
            optimizer,
            batches(),
            bf16=bf16,
            memory_format=memory_format,
            smoothing=smoothing,
            teacher=teacher,
        )

    return run

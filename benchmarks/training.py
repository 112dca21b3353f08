"""Images a second of the engine beside a loop written by hand: same network, precision, batch size and images.

    python -m benchmarks.training cifar100.npz --images 12800 --rounds 5

Rounds of all variants are interleaved, so that a slow minute of the machine hits each of them; medians are printed,
and the ratio of the engine to each hand-written loop.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.plain_loop import dataloader_batches, indexed_batches
from benchmarks.plain_loop import train_epoch as plain_epoch
from tfkd_fast.data import make_loader, open_dataset
from tfkd_fast.engine import make_recipe
from tfkd_fast.engine.device import Compute, resolve_compute
from tfkd_fast.engine.population import Candidate
from tfkd_fast.engine.step import train_epoch
from tfkd_fast.methods import Context, find_method
from tfkd_fast.models import vgg8


def engine_variant(method_name: str, file: Path, count: int, batch_size: int, compute: Compute) -> Callable[[], float]:
    """One epoch of the engine under a method, as `tfkd-fast train` runs it."""
    recipe = make_recipe(
        {"method": method_name, "data": {"dataset": "npz", "root": str(file), "batch_size": batch_size}}
    )
    dataset = open_dataset(recipe.data)
    images = dataset.read_train().subset(torch.arange(count))
    classes = len(dataset.classes)
    loader = make_loader(images, dataset, recipe.data, compute.device, compute.dtype, recipe.seed)
    context = Context(classes, recipe.epochs, recipe.seed, compute.device, lambda epoch: 1.0)
    method = find_method(method_name).build(recipe.options, context)
    method.begin_interval(0)
    candidate = Candidate(compute.place(vgg8(classes)), recipe.optimizer)

    def run() -> float:
        result = train_epoch(
            candidate,
            slot=0,
            epoch=0,
            method=method,
            loader=loader,
            compute=compute,
            learning_rate=lambda epoch: recipe.optimizer.learning_rate,
            on_batch=lambda images: None,
        )
        return result.images / result.seconds

    return run


def plain_variant(batches: Callable, file: Path, count: int, batch_size: int, compute: Compute) -> Callable[[], float]:
    """One epoch of the loop written by hand."""
    dataset = open_dataset(make_recipe({"data": {"dataset": "npz", "root": str(file)}}).data)
    train = dataset.read_train().subset(torch.arange(count))
    images, labels = train.all_images(), train.labels
    model = vgg8(len(dataset.classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def run() -> float:
        return plain_epoch(model, optimizer, batches(images, labels, batch_size), compute.precision)

    return run


def rotated(names: list[str], turn: int) -> list[str]:
    """Each variant comes first in its turn: who runs after whom must not matter."""
    start = turn % len(names)
    return names[start:] + names[:start]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="an .npz file as `tfkd-fast train --dataset npz` reads")
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    arguments = parser.parse_args()
    compute = resolve_compute("cpu", arguments.precision)
    common = (arguments.file, arguments.images, arguments.batch_size, compute)
    variants = {
        "tfkd-fast, method ce": engine_variant("ce", *common),
        "tfkd-fast, method tfkd": engine_variant("tfkd", *common),
        "by hand, batches by indexing": plain_variant(indexed_batches, *common),
        "by hand, DataLoader": plain_variant(dataloader_batches, *common),
    }
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(arguments.rounds):
        for name in rotated(list(variants), turn):
            speeds[name].append(variants[name]())
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    first = medians["tfkd-fast, method ce"]
    print(
        f"{compute.device_name}, {torch.get_num_threads()} threads, {compute.precision}, batch {arguments.batch_size}"
    )
    for name, speed in medians.items():
        print(f"{name:30} {speed:8.0f} images/s   ce is {first / speed:.2f}x")


if __name__ == "__main__":
    main()

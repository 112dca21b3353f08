"""The training step beside other people's programs: `python -m benchmarks.peers`.

    pip install 'tfkd-fast[bench-peers]'                     # timm and Lightning
    git clone https://github.com/HobbitLong/RepDistiller     # is no package: its folder is named
    python -m benchmarks.peers --repdistiller RepDistiller

Each trains the same network on the same random images of CIFAR's shape, from a DataLoader over PIL images with the same
augmentation, by its own parts: timm by its loader and optimiser in the loop of its training script, Lightning by its
Trainer without logger, checkpoints and progress bar, both in the precision of the engine; RepDistiller by its loop with
its networks, as it is shipped, in float32. None of their code is copied. Peers that are not there are named.
"""

import argparse
import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.run import device_name
from tfkd_fast import throughput as bench
from tfkd_fast.device import resolve_compute
from tfkd_fast.errors import nearest
from tfkd_fast.models import MODELS, ModelSettings
from tfkd_fast.throughput.by_hand import careful_epoch
from tfkd_fast.throughput.plain_loop import MEAN, SOFT_WEIGHT, STD, PerImage, divergence
from tfkd_fast.throughput.plain_networks import plain_network
from tfkd_fast.throughput.workload import engine_epoch

Epoch = Callable[[], object]
"""Trains one epoch."""


class Missing(Exception):
    """A peer that cannot be measured, and why."""


class Pictures(Dataset[tuple[Any, int]]):
    """The random images as PIL images with a `transform` that a loader sets, as torchvision's data sets have it."""

    def __init__(self, images: PerImage) -> None:
        self.images, self.transform = images, None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        picture = Image.fromarray(self.images.images[index])
        return (self.transform(picture) if self.transform else picture), int(self.images.labels[index])


class Numbered(Dataset[tuple[Tensor, int, int]]):
    """Images with their numbers, as RepDistiller's loop wants them for a student with a teacher."""

    def __init__(self, images: PerImage) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return *self.images[index], index


def per_image(workload: bench.Workload) -> PerImage:
    images = workload.image_set()
    return PerImage(images.all_images(), images.labels)


def networks(workload: bench.Workload) -> tuple[nn.Module, nn.Module | None]:
    """The student and the teacher in torch's layers, channels-last."""
    student, teacher = plain_network(workload.build()), workload.build_teacher()
    student = student.to(memory_format=torch.channels_last).train()
    if teacher is None:
        return student, None
    return student, plain_network(teacher).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def timm_epoch(workload: bench.Workload) -> Epoch:
    """timm's loader and optimiser, in the order of calls of its training script with --amp and --channels-last."""
    require("timm")
    if workload.teacher is not None:
        raise Missing("timm is measured with labels alone")
    from timm.data import create_loader
    from timm.optim import create_optimizer_v2

    student, _ = networks(workload)
    loader = create_loader(
        Pictures(per_image(workload)),
        input_size=(3, 32, 32),
        batch_size=workload.batch_size,
        is_training=True,
        use_prefetcher=False,
        no_aug=False,
        train_crop_mode="rkrc",
        re_prob=0.0,
        color_jitter=None,
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
    )
    optimizer = create_optimizer_v2(student, opt="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1 if workload.method == "label-smoothing" else 0.0)

    def run() -> None:
        for images, labels in loader:
            images = images.contiguous(memory_format=torch.channels_last)
            with workload.compute.autocast():
                loss = loss_function(student(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def lightning_epoch(workload: bench.Workload) -> Epoch:
    """A LightningModule and the Trainer. What `fit` prepares, some hundredths of a second, is part of an epoch."""
    require("lightning")
    import lightning

    student, teacher = networks(workload)
    smoothing = 0.1 if workload.method == "label-smoothing" else 0.0

    class Student(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            images, labels = batch
            images = images.contiguous(memory_format=torch.channels_last)
            logits = self.student(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            if self.teacher is None:
                return loss
            with torch.no_grad():
                taught = self.teacher(images)
            return (1 - SOFT_WEIGHT) * loss + SOFT_WEIGHT * divergence(logits, taught)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

        def on_train_epoch_start(self) -> None:
            if self.teacher is not None:
                self.teacher.eval()

    module = Student()
    loader = DataLoader(per_image(workload), workload.batch_size, shuffle=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def run() -> None:
        with warnings.catch_warnings(action="ignore"):
            trainer = lightning.Trainer(
                accelerator=workload.compute.device.type,
                precision="bf16-mixed" if workload.compute.precision == "bf16" else "32-true",
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, loader)

    return run


def repdistiller_epoch(workload: bench.Workload, folder: Path | None) -> Epoch:
    """RepDistiller's loops with its networks, from a clone."""
    how = "git clone https://github.com/HobbitLong/RepDistiller, and name its folder by --repdistiller"
    if folder is None:
        raise Missing(how)
    if not (folder / "helper" / "loops.py").is_file():
        raise Missing(f"{folder} is no clone of it: {how}")
    if workload.model.width != 1:
        raise Missing("it has no narrower networks")
    sys.path.insert(0, str(folder))
    loops = importlib.import_module("helper.loops")
    zoo = importlib.import_module("models").model_dict
    student = zoo[workload.model.name](num_classes=bench.CLASSES)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    options, images = SimpleNamespace(print_freq=100, distill="kd", gamma=0.1, alpha=0.9, beta=0.0), per_image(workload)
    if workload.teacher is None:
        smoothing = 0.1 if workload.method == "label-smoothing" else 0.0
        loader: DataLoader[Any] = DataLoader(images, workload.batch_size, shuffle=True)
        arguments = student, nn.CrossEntropyLoss(label_smoothing=smoothing), optimizer, options
        return _quietly(lambda: loops.train_vanilla(1, loader, *arguments))
    distillation = importlib.import_module("distiller_zoo").DistillKL(4)
    modules = nn.ModuleList([student, zoo[workload.teacher.name](num_classes=bench.CLASSES)])
    losses = nn.ModuleList([nn.CrossEntropyLoss(), distillation, distillation])
    numbered = DataLoader(Numbered(images), workload.batch_size, shuffle=True, collate_fn=default_collate)
    return _quietly(lambda: loops.train_distill(1, numbered, modules, losses, optimizer, options))


def _quietly(epoch: Epoch) -> Epoch:
    """Without what it prints."""

    def run() -> None:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            epoch()

    return run


def require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Missing("not installed: pip install 'tfkd-fast[bench-peers]'")


def measure(
    workload: bench.Workload, rounds: int, repdistiller: Path | None = None
) -> tuple[list[bench.Measurement], dict[str, str]]:
    """The engine, the careful loop written by hand and the peers, in turns; and why others were not measured."""
    variants: dict[str, Epoch] = {
        "tfkd-fast": engine_epoch(workload, 1, "sequential"),
        bench.careful_loop(workload.compute): careful_epoch(workload),
    }
    missing: dict[str, str] = {}
    precision = workload.compute.precision
    peers: dict[str, Callable[[], Epoch]] = {
        f"timm, {precision}": lambda: timm_epoch(workload),
        f"Lightning, {precision}": lambda: lightning_epoch(workload),
        "RepDistiller as shipped, fp32": lambda: repdistiller_epoch(workload, repdistiller),
    }
    for name, build in peers.items():
        try:
            variants[name] = build()
        except Missing as reason:
            missing[name] = str(reason)
    return bench.measure_interleaved(variants, workload.images, rounds), missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg8", help="network of the student")
    parser.add_argument("--teacher", help="network of the teacher; none by default")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--repdistiller", type=Path, metavar="FOLDER", help="a clone of RepDistiller")
    options = parser.parse_args()
    for name in filter(None, (options.model, options.teacher)):
        if name not in MODELS:
            parser.error(f"unknown model {name!r}: {nearest(name, MODELS)}")
    teacher = ModelSettings(name=options.teacher) if options.teacher else None
    compute, student = resolve_compute("auto", "auto"), ModelSettings(name=options.model)
    method: bench.MethodName = "kd" if teacher else "ce"
    workload = bench.Workload(compute, student, options.batch_size, options.steps, method, teacher)
    rows, missing = measure(workload, options.rounds, options.repdistiller)
    taught = f"{options.teacher} -> " if teacher else ""
    print(f"{device_name(compute.device)} · {taught}{options.model}, batch {options.batch_size}\n")
    print("| program | images/s | `tfkd-fast` is |\n|---|---|---|")
    for row in rows:
        ratio = bench.ratio(rows[0], row)
        print(f"| {row.variant} | {row.images_per_second:,.0f} | {ratio.median:.2f} x ± {ratio.spread:.0%} |")
    for name, reason in missing.items():
        print(f"{name} was not measured: {reason}")


if __name__ == "__main__":
    main()

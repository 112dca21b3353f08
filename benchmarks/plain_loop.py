"""A training loop as one writes it by hand, to measure the engine against: same network, precision and batch size.

Two forms of input: a torchvision DataLoader that transforms image by image (what most people run), and whole batches
cropped and mirrored by indexing (what a careful person writes). Nothing here comes from tfkd_fast but the network.
"""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
Batches = Iterator[tuple[Tensor, Tensor]]


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images (N,3,32,32) uint8, transformed one at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def dataloader_batches(images: Tensor, labels: Tensor, batch_size: int) -> Batches:
    """One epoch through a DataLoader."""
    yield from DataLoader(PerImage(images, labels), batch_size, shuffle=True)


def indexed_batches(images: Tensor, labels: Tensor, batch_size: int) -> Batches:
    """One epoch of batches that are cropped and mirrored whole."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    padded = F.pad(images, (4, 4, 4, 4))
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (N,3,9,9,32,32)
    for index in torch.randperm(len(images)).split(batch_size):
        dy, dx = torch.randint(9, (2, len(index)))
        x = windows[index, :, dy, dx]
        x = torch.where(torch.rand(len(index), 1, 1, 1) < 0.5, x.flip(-1), x)
        yield (x.float() / 255 - mean) / std, labels[index]


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches, precision: str) -> float:
    """Cross-entropy over one epoch; returns images a second."""
    model.train()
    images_seen, started = 0, time.perf_counter()
    for images, labels in batches:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images_seen += len(labels)
    return images_seen / (time.perf_counter() - started)

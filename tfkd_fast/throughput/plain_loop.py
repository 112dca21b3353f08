"""A training loop written by hand, to compare the engine with: it uses no engine, loader, network or operator of this
package.

There are two forms of input: a torchvision DataLoader that transforms image by image, as is common, and whole batches
that are cropped and mirrored by indexing on the device, as in tuned code.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
"""Channel statistics of CIFAR-100, pixel values 0..1."""

SMOOTHING = 0.1
"""Mass that label smoothing spreads over all classes."""

TEMPERATURE, SOFT_WEIGHT = 4.0, 0.9
"""Temperature of distillation, and the weight of its divergence; the cross-entropy has the rest."""

Batches = Iterator[tuple[Tensor, Tensor]]
"""Images (B,3,32,32) float32 and labels (B,) int64 of the batches of an epoch."""

Network = Callable[[Tensor], Tensor]
"""A function from images to logits (B,C)."""


class PerImage(Dataset[tuple[Tensor, int]]):
    """A data set like torchvision's: images (N,3,32,32) uint8 as PIL images, transformed one at a time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision import transforms  # a second to import

        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def dataloader(images: Tensor, labels: Tensor, batch_size: int, device: torch.device) -> Callable[[], Batches]:
    """Return a function that yields the batches of an epoch from a DataLoader.

    On the CPU, whose cores are busy, it works in the training process; for a GPU it has 8 worker processes.
    """
    on_gpu = device.type == "cuda"
    dataset = PerImage(images.cpu(), labels.cpu())
    workers = 8 if on_gpu else 0
    loader = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=workers, pin_memory=on_gpu, persistent_workers=on_gpu
    )

    def epoch() -> Batches:
        for batch, batch_labels in loader:
            yield batch.to(device, non_blocking=True), batch_labels.to(device, non_blocking=True)

    return epoch


def whole_batches(images: Tensor, labels: Tensor, batch_size: int, device: torch.device) -> Callable[[], Batches]:
    """Return a function that yields the batches of an epoch, cropped and mirrored by indexing on the device."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
    padded = F.pad(images, (4, 4, 4, 4))
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (N,3,9,9,32,32)

    def epoch() -> Batches:
        for index in torch.randperm(len(images), device=device).split(batch_size):
            dy, dx = torch.randint(9, (2, len(index)), device=device)
            x = windows[index, :, dy, dx]
            x = torch.where(torch.rand(len(index), 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
            yield (x.float() / 255 - mean) / std, labels[index]

    return epoch


def train_epoch(
    model: Network,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    *,
    bf16: bool,
    memory_format: torch.memory_format,
    smoothing: float = 0.0,
    teacher: Network | None = None,
) -> None:
    """Train a model for one epoch.

    Args:
        model: the network.
        optimizer: its optimiser.
        batches: the batches of the epoch.
        bf16: whether to use autocast to bfloat16.
        memory_format: memory format of the images.
        smoothing: of the labels.
        teacher: a network to distil; None for the loss of the labels alone.
    """
    for images, labels in batches:
        images = images.contiguous(memory_format=memory_format)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(images)
            if teacher is not None:
                with torch.no_grad():
                    teacher_logits = teacher(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        if teacher is not None:
            loss = (1 - SOFT_WEIGHT) * loss + SOFT_WEIGHT * divergence(logits.float(), teacher_logits.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The loss of Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, as textbooks write it."""
    student = F.log_softmax(logits / TEMPERATURE, dim=1)
    teacher = F.softmax(teacher_logits / TEMPERATURE, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean") * TEMPERATURE**2


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, *, bf16: bool) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a model in eval mode on images (N,3,32,32) uint8 on its device."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    right, entropy = 0, 0.0
    model.eval()
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=bf16):
        for batch, batch_labels in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            x = ((batch.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            logits = model(x).float()
            right += int((logits.argmax(1) == batch_labels).sum())
            entropy += float(F.cross_entropy(logits, batch_labels, reduction="sum"))
    return right / len(labels), entropy / len(labels)


def make_sgd(model: nn.Module) -> torch.optim.SGD:
    """Build the SGD optimiser of the loops written by hand, which updates all weights in one call."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)

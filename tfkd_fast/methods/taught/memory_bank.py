"""Embeddings of all training images, for methods that compare those of a batch with more than the batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast.randomness import Purpose, bounded_integers, random_words

UNKNOWN = -1
"""The label of an image that was not in a batch yet."""


class MemoryBank:
    """Embeddings of every training image by several networks, and its label, for one student; all tensors keep their
    place."""

    def __init__(self, networks: int, images: int, size: int, momentum: float, device: torch.device) -> None:
        """Random embeddings, from torch's generator on the CPU.

        Args:
            networks: the number of networks whose embeddings are kept.
            images: the number of training images.
            size: the number of entries of an embedding.
            momentum: the share of what was there before in an embedding that is kept anew.
            device: the device of the bank.
        """
        bound = 1.0 / math.sqrt(size / 3.0)
        self._momentum = momentum
        self.embeddings = torch.empty(networks, images, size).uniform_(-bound, bound).to(device)
        """(N,images,size) float32: the embedding of every image by each network."""
        self.labels = torch.full((images,), UNKNOWN, device=device)
        """(images,) int64: the label of every image, `UNKNOWN` until it was in a batch."""
        self.steps = torch.zeros((), dtype=torch.int64, device=device)
        """() int64: the number of batches that were kept, by which images are drawn."""

    def draw(self, indices: Tensor, count: int, seed: int) -> Tensor:
        """(B,count) int64: training images that are drawn for each of a batch, whose numbers are `indices` (B,); the
        same ones for the same seed and step."""
        places = indices.unsqueeze(1) * -(-count // 4) + torch.arange(-(-count // 4), device=indices.device)
        words = random_words(places & 0xFFFFFFFF, Purpose.NEGATIVE, seed=seed, epoch=self.steps)
        return bounded_integers(torch.cat(words, dim=1)[:, :count], len(self.labels))

    def products(self, network: int, embeddings: Tensor) -> Tensor:
        """(B,images): inner products of embeddings (B,size) with those of all images by a network. The bank
        may change before the gradient is worked out."""
        return embeddings @ self.embeddings[network].clone().to(embeddings.dtype).T

    @torch.no_grad()
    def keep(self, indices: Tensor, embeddings: tuple[Tensor, ...]) -> None:
        """Move the embeddings of a batch, images `indices` (B,), towards those (B,size) of each network, and scale them
        to length 1."""
        self.steps += 1
        for bank, fresh in zip(self.embeddings, embeddings, strict=True):
            average = self._momentum * bank[indices] + (1.0 - self._momentum) * fresh.to(bank.dtype)
            bank.index_copy_(0, indices, F.normalize(average, dim=1))

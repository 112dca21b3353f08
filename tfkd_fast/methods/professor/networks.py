"""The networks of a conditional adversarial autoencoder between a teacher and its student.

Bang, Lee, Shim (Information Sciences 576, 2021) reformulate that of Zhang, Song, Qi (CVPR 2017) and publish no
architecture: layers and wiring are our choice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2
"""Negative slope of LeakyReLU."""


class Professor(nn.Module):
    """An encoder of what a teacher makes of an image, and a generator of what to add to its logits.

    The code that lies between them is to be noise to whoever knows the label: what classes have in common, not which
    one it is. Untrained, the professor says what the teacher says.
    """

    def __init__(self, features: int, num_classes: int, code_size: int, temperature: float, *, told: bool) -> None:
        """`told`: whether the generator is told the label (the literal CAAE), for images whose label is known."""
        super().__init__()
        self.temperature = temperature
        self.told = told
        self.encoder = nn.Sequential(
            nn.Linear(features + num_classes, 512),
            nn.BatchNorm1d(512),
            nn.LeakyReLU(SLOPE),
            nn.Linear(512, 256),
            nn.BatchNorm1d(256),
            nn.LeakyReLU(SLOPE),
            nn.Linear(256, code_size),
        )
        last = nn.Linear(512, num_classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.generator = nn.Sequential(
            nn.Linear(code_size + num_classes * told, 256),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            last,
        )

    def forward(self, pooled: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Refined logits (B,C) and codes (B,D) of pooled features (B,F), logits (B,C), labels (B,), all float32."""
        code = self.encoder(torch.cat([pooled, logits / self.temperature], dim=1))
        told = [torch.zeros_like(logits).scatter(1, labels.unsqueeze(1), 1.0)] if self.told else []
        return logits + self.generator(torch.cat([code, *told], dim=1)), code


class Discriminator(nn.Module):
    """Scores vectors that it is shown with a label: above 0 for those that it takes for real. Spectral normalisation
    bounds its slope (Miyato et al., ICLR 2018)."""

    def __init__(self, size: int, num_classes: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        width = size + num_classes
        for following in hidden:
            layers += [spectral_norm(nn.Linear(width, following)), nn.LeakyReLU(SLOPE)]
            width = following
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Linear(width, 1)))

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,) of vectors (B,size) with labels (B,)."""
        condition = F.one_hot(labels, self.num_classes).to(vectors.dtype)
        score: Tensor = self.layers(torch.cat([vectors, condition], dim=1)).squeeze(1)
        return score

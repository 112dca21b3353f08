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
    """An encoder of a teacher's features and logits, and a generator of what is added to the logits.

    Given the label, the code between them should be noise: it has what classes have in common, not which class it is.
    An untrained professor returns the logits of its teacher.
    """

    def __init__(
        self, features: int, num_classes: int, code_size: int, temperature: float, *, label_conditioned: bool
    ) -> None:
        """Build the networks.

        Args:
            features: number of the teacher's pooled features.
            num_classes: number of classes of the teacher.
            code_size: number of elements of a code.
            temperature: divides the logits that the encoder reads.
            label_conditioned: whether the generator is given the label (the literal CAAE), for images whose label is
                known.
        """
        super().__init__()
        self.temperature = temperature
        self.label_conditioned = label_conditioned
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
            nn.Linear(code_size + num_classes * label_conditioned, 256),
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
        condition = [torch.zeros_like(logits).scatter(1, labels.unsqueeze(1), 1.0)] if self.label_conditioned else []
        return logits + self.generator(torch.cat([code, *condition], dim=1)), code


class Discriminator(nn.Module):
    """Scores vectors under the condition of a label: above 0 for those that it takes for real. Spectral normalisation
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

"""The network of a grade: the first stages of the student, under a head of their own."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfkd_fast.errors import UserError
from tfkd_fast.models import VGG, ResidualNetwork
from tfkd_fast.models.layers import BatchNorm, Classifier, Conv, average_pool, initialise_convolutions, norm_relu_pool

ABSENT = -200.0
"""The logit of a class that the grade does not have: finite, and its part of a softmax in float32 is exactly 0."""


class Head(nn.Module):
    """A teaching reference head: convolution 1x1, batch norm, ReLU, global average pool, one linear layer.

    The authors' code has no ReLU, and pools to 2x2 in the first grade.
    """

    labels: Tensor

    def __init__(self, in_channels: int, width: int, labels: Sequence[int], num_classes: int) -> None:
        """
        Args:
            labels: labels of the classes that the head distinguishes.
            num_classes: number of classes of the data set.
        """
        super().__init__()
        self.conv = Conv(in_channels, width, kernel=1)
        self.norm = BatchNorm(width)
        self.classifier = Classifier(width, len(labels))
        self.register_buffer("labels", torch.tensor(labels), persistent=False)
        self.num_classes = num_classes
        initialise_convolutions(self)

    def forward(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of maps (B,C,H,W), those of other classes ABSENT."""
        return self._logits(norm_relu_pool(self.norm, self.conv(maps)))

    @torch.no_grad()
    def predict(self, maps: Tensor) -> Tensor:
        """Logits (B, num_classes) of a frozen head, with the running statistics of its batch norm and without
        gradient."""
        norm = self.norm
        statistics = norm.running_mean, norm.running_var
        return self._logits(F.relu(F.batch_norm(self.conv(maps), *statistics, norm.weight, norm.bias, eps=norm.eps)))

    @torch.no_grad()
    def inherit(self, before: "Head") -> None:
        """Take batch norm and the rows of the classifier from the head of the grade before, for the classes that it
        knows. The convolution stays, since it takes other maps."""
        self.norm.load_state_dict(before.norm.state_dict())
        rows = torch.searchsorted(self.labels, before.labels)
        self.classifier.weight[rows] = before.classifier.weight
        self.classifier.bias[rows] = before.classifier.bias

    def _logits(self, active: Tensor) -> Tensor:
        known = self.classifier(average_pool(active))
        return known.new_full((len(known), self.num_classes), ABSENT).index_copy(1, self.labels, known)


class Grade(nn.Module):
    """The first stages of a student and a head."""

    def __init__(
        self,
        student: nn.Module,
        stages: int,
        head: Head | None,
        watch: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        """
        Args:
            head: None for the student's own, on top of all stages.
            watch: called with the maps of each stage while the network is in training mode.
        """
        super().__init__()
        if not isinstance(student, VGG | ResidualNetwork):
            raise UserError(
                f"method education deepens a student stage by stage, and {type(student).__name__} has no stages to run "
                "apart: choose a VGG or a residual network as the model"
            )
        self.student, self.head = student, head
        self._stages, self._watch = stages, watch

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,C) of images (B,...)."""
        outputs = self.student.run_stages(images, self._stages)
        if self._watch is not None and self.training:
            self._watch(outputs)
        return self.student.classifier(average_pool(outputs[-1])) if self.head is None else self.head(outputs[-1])

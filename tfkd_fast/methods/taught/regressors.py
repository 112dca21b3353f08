"""Layers that bring the feature maps of a student to the channels and the size of a teacher's."""

import torch.nn.functional as F
from torch import Tensor, nn


class Regressor(nn.Module):
    """A convolution and batch norm, with ReLU on request: 3x3 of stride 2 from maps of twice the teacher's size, 4x4
    transposed of stride 2 from maps of half its size, a kernel that covers the difference from other larger maps, and
    3x3 from other smaller maps, which keep their size.

    Source: ConvReg of RepDistiller (models/util.py); for other smaller maps that of SimKD's code.
    """

    def __init__(self, student: tuple[int, int, int], teacher: tuple[int, int, int], *, relu: bool) -> None:
        super().__init__()
        (channels, height, width), (wanted, teacher_height, teacher_width) = student, teacher
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if height == 2 * teacher_height:
            self.conv = nn.Conv2d(channels, wanted, 3, stride=2, padding=1)
        elif height * 2 == teacher_height:
            self.conv = nn.ConvTranspose2d(channels, wanted, 4, stride=2, padding=1)
        elif height >= teacher_height:
            self.conv = nn.Conv2d(channels, wanted, (1 + height - teacher_height, 1 + width - teacher_width))
        else:
            self.conv = nn.Conv2d(channels, wanted, 3, padding=1)
        self.norm = nn.BatchNorm2d(wanted)
        self._relu = relu

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,S,H,W) as (B,T,h,w)."""
        maps = self.norm(self.conv(maps))
        return F.relu(maps) if self._relu else maps

"""A trained student behind its pre-processing: pixels or image files in, logits or probabilities out."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from tfkd_fast.data import DataIdentity
from tfkd_fast.data.images import convert_colours, from_pillow, read_rgb, show_centre
from tfkd_fast.errors import UserError

ImageOrFile = Image.Image | Path | str
"""An image of Pillow's, which is taken as it lies; or the path of an image file, which is turned upright."""

OVERSHOOT = 1.0
"""How far a floating-point pixel may lie outside of 0..1 (our choice): further than interpolation takes it, and less
than grey levels 0..255 or normalised images do."""


class Normalise(nn.Module):
    """Pixels less the mean of the training images, over their deviation, channel by channel."""

    mean: Tensor
    """(C,1,1) float32: the mean in grey levels."""
    std: Tensor
    """(C,1,1) float32: the deviation in grey levels."""

    def __init__(self, trained: DataIdentity) -> None:
        """Normalise as the images of a data set are; like those of a loader, to the bit."""
        super().__init__()
        for name, values in (("mean", trained.mean), ("std", trained.std)):
            levels = torch.tensor([255 * value for value in values]).view(-1, 1, 1)
            self.register_buffer(name, levels, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B,C,H,W) float32 of pixels (B,C,H,W): integers 0..255, or floating point 0..1.

        Raises:
            UserError: floating-point pixels are of another range, which compiled and exported code does not look for.
        """
        if pixels.is_floating_point() and not torch.compiler.is_compiling():
            outside = (pixels - 0.5).abs() > 0.5 + OVERSHOOT
            if outside.any():
                raise UserError(
                    f"floating-point pixels are between 0 and 1, and one is {float(pixels[outside][0]):g}: divide grey "
                    "levels by 255 or hand them over as uint8, and do not normalise them"
                )
        levels = 255 * pixels.float() if pixels.is_floating_point() else pixels.float()
        return (levels - self.mean) / self.std


class ImageClassifier(nn.Module):
    """A student with all that belongs to it: a module that takes pixels and gives logits.

    It is in evaluation mode, and its weights are those of the network alone: `classifier.network`.
    """

    def __init__(
        self, network: nn.Module, trained: DataIdentity, *, centre_crop: float = 1.0, temperature: float | None = None
    ) -> None:
        """Put a network behind the pre-processing of the images that it was trained on.

        Args:
            network: the network, from normalised images (B,C,H,W) float32 to logits.
            trained: the data set that it was trained on.
            centre_crop: as `data.centre_crop`, for images that are brought to the size of the network.
            temperature: what logits are divided by for probabilities that hold on images that the network was not
                trained on; None where it is not known.
        """
        super().__init__()
        self.network = network
        self.normalise = Normalise(trained)
        self.trained = trained
        self.classes = trained.classes
        self.image_shape = trained.image_shape
        self.centre_crop = centre_crop
        self.temperature = temperature
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, number of classes) of pixels (B,C,H,W), uint8 or floating point 0..1; see `Normalise`
        for what is refused."""
        logits: Tensor = self.network(self.normalise(pixels))
        return logits

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the probabilities (B, number of classes) float32 of pixels: the softmax of logits over temperature,
        or of the logits as they are where no temperature is known."""
        return self.calibrated(self(pixels))

    def calibrated(self, logits: Tensor) -> Tensor:
        """Return the probabilities float32 of logits (B, number of classes), see `probabilities`."""
        return (logits.float() / (self.temperature or 1.0)).softmax(-1)

    def read(self, images: ImageOrFile | Iterable[ImageOrFile]) -> Tensor:
        """Read an image or several of any size and colours as the network takes them.

        Each is brought to the size and colours of the training images in the way in which image files of a data set
        are: the largest centred square or the part of it that `data.centre_crop` names, 8 bits, transparent pixels on
        white; to grey where the network was trained on grey images. One that has them keeps its pixels.

        Returns:
            (B,C,H,W) uint8, channels-last in memory.

        Raises:
            UserError: there is no image, or one cannot be read; the message names it.
        """
        several = [images] if isinstance(images, Image.Image | Path | str) else images
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
            pixels = list(pool.map(self._read, several))
        if not pixels:
            raise UserError("there are no images to read: give one or more")
        return torch.stack(pixels).contiguous(memory_format=torch.channels_last)

    def _read(self, image: ImageOrFile) -> Tensor:
        channels, _, size = self.image_shape
        rgb = convert_colours(image, "an image") if isinstance(image, Image.Image) else read_rgb(Path(image))
        square = show_centre(rgb, size, self.centre_crop)
        return from_pillow(square.convert("L") if channels == 1 else square)

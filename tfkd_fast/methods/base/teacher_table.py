"""The keys of the `[teachers]` table that the engine reads; a method may add others."""

from typing import Annotated

from pydantic import Field

from tfkd_fast.models import MODELS, ModelSettings, Width
from tfkd_fast.settings import FilePath, ReadIf, Settings


class NetworkTeacher(ModelSettings):
    """A teacher that no run of this package trained: a network with its weights."""

    name: str
    """Name of the network, as model.name has it."""
    width: Annotated[Width, ReadIf("name", MODELS.__contains__, "name is a network of tfkd_fast")] = 1.0
    """Factor that multiplies the number of channels of every layer."""
    weights: FilePath | None = None
    """File with the weights, .safetensors or a checkpoint of torch; unset, those that timm or torchvision publish."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the logits; empty, those of the published weights, or else those of the data
    set in their order."""
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Mean of its images, for each channel; empty, that of the published weights or of the data set."""
    std: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """Standard deviation of its images, like mean."""
    image_size: int | None = Field(default=None, ge=1, le=1024)
    """Pixels a side of its images; unset, as the published weights or the data set have them."""


class TeacherTable(Settings):
    """The teachers of a run, and how their outputs are kept."""

    runs: tuple[FilePath, ...] = ()
    """Folders of the finished runs whose students are the teachers; --teacher names one."""
    networks: tuple[NetworkTeacher, ...] = ()
    """Teachers that are networks with weights from elsewhere, after those of runs; --teacher NAME@FILE names one."""
    cache: FilePath | None = None
    """File that keeps the teachers' outputs; unset, the teachers look at every batch."""
    views: int = Field(default=0, ge=0, le=10_000)
    """Epochs after which the augmentation of the training images repeats, so that outputs can be kept; 0 never repeats
    it."""

"""The algorithms of the convolutions of a run, as its folder and the user's cache hold them."""

import warnings
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field

from tfkd_fast.errors import Notice
from tfkd_fast.ops import conv_algorithms
from tfkd_fast.ops.conv_algorithms import Algorithms, Choices, Convolution, Pass

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ChosenConvolution(BaseModel):
    """A convolution, and the algorithm of each of its passes that was measured."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    in_channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    weight_dtype: Literal["float32", "bfloat16"]
    kernel: int = Field(ge=1)
    stride: int = Field(ge=1)
    algorithms: dict[Pass, str]

    @classmethod
    def make(cls, convolution: Convolution, passes: frozenset[Pass], algorithms: Algorithms) -> Self:
        """The record of a convolution whose `passes` were measured."""
        chosen = {name: own for name, own in algorithms._asdict().items() if name in passes}
        own = {"weight_dtype": NAMES[convolution.weight_dtype], "algorithms": chosen}
        return cls.model_validate(convolution._asdict() | own)

    @property
    def convolution(self) -> Convolution:
        """The shape and the dtype."""
        values = self.model_dump(exclude={"algorithms"}) | {"weight_dtype": DTYPES[self.weight_dtype]}
        return Convolution(**values)


class ConvolutionRecord(BaseModel):
    """The algorithms of the convolutions of a run, and what they were measured for."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    threads: int = Field(default=1, ge=1)
    """Number of threads of the measurement."""
    batch: int = Field(default=1, ge=1)
    """Number of images of the measurement."""
    convolutions: tuple[ChosenConvolution, ...] = ()
    """Those that were measured; others are torch's, and so is all of a run without measurement."""

    @property
    def choices(self) -> Choices:
        """The same as a table that operators read."""
        return {chosen.convolution: Algorithms(**chosen.algorithms) for chosen in self.convolutions}

    @property
    def passes(self) -> dict[str, int]:
        """The number of measured passes by algorithm."""
        names = [own for chosen in self.convolutions for own in chosen.algorithms.values()]
        return {own: names.count(own) for own in sorted(set(names))}

    def available(self) -> Self:
        """The record with torch's algorithm where this machine has not the one that was chosen; a `Notice` says so."""
        missing: set[str] = set()
        convolutions = []
        for chosen in self.convolutions:
            algorithms = dict(chosen.algorithms)
            for name, own in chosen.algorithms.items():
                if own not in conv_algorithms.serving(name, chosen.convolution, self.batch):
                    missing.add(own)
                    algorithms[name] = "torch"
            convolutions.append(chosen.model_copy(update={"algorithms": algorithms}))
        if missing:
            names = ", ".join(sorted(missing))
            warnings.warn(
                Notice(
                    f"the run computed convolutions by algorithms that this machine has not ({names}): those of torch "
                    "serve in their place, and the last bits of results differ"
                ),
                stacklevel=3,
            )
        return self.model_copy(update={"convolutions": tuple(convolutions)})

"""The `[optimizer]` table: by which rule the weights are updated."""

from typing import Annotated, Literal

from pydantic import Field

from tfkd_fast.settings import LARGEST, Forms, ReadIf, Settings, default_of


class OptimizerBase(Settings):
    """The keys that all optimisers have."""

    name: str
    """Rule by which the gradient changes the weights: stochastic gradient descent with momentum (sgd), or Adam with
    decoupled weight decay (adamw)."""
    learning_rate: float
    """Learning rate that the schedule multiplies."""
    weight_decay: float
    """Weight decay, a multiple of every weight."""
    decay_norms_and_biases: Annotated[bool, ReadIf("weight_decay", bool, "weight_decay is above 0")] = True
    """Whether the weights of normalisation layers and the biases decay, too: all parameters of one axis."""
    clip_norm: float | None = Field(default=None, gt=0, le=LARGEST)
    """The largest norm of a student's gradient, over all of its weights; a longer one is scaled down to it. Unset:
    gradients stay as they are."""

    accumulate: int = Field(default=1, ge=1, le=1_000_000)
    """Number of batches whose mean gradient makes one update; the last batches of an epoch make one, however few."""
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """Decay of a moving average of weights and batch norm statistics, which is saved and tested beside the student.
    Unset: there is none."""

    def beyond_plain_sgd(self) -> str | None:
        """The first key by which a step is not that of stochastic gradient descent with momentum on one batch, or
        None."""
        keys = ("name", "decay_norms_and_biases", "clip_norm", "accumulate")
        return next((key for key in keys if getattr(self, key) != default_of(SGDSettings, key)), None)


class SGDSettings(OptimizerBase):
    """Stochastic gradient descent, with the reference recipe of RepDistiller (Tian et al., ICLR 2020)."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(default=0.05, gt=0, le=LARGEST)
    """Learning rate that the schedule multiplies."""
    weight_decay: float = Field(default=5e-4, ge=0, le=LARGEST)
    """Weight decay, added to the gradient as a multiple of every weight."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of stochastic gradient descent."""
    nesterov: Annotated[bool, ReadIf("momentum", bool, "momentum is above 0")] = False
    """Whether the momentum is that of Nesterov."""


class AdamWSettings(OptimizerBase):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019), with the defaults of torch."""

    name: Literal["adamw"]
    learning_rate: float = Field(default=1e-3, gt=0, le=LARGEST)
    """Learning rate that the schedule multiplies."""
    weight_decay: float = Field(default=1e-2, ge=0, le=LARGEST)
    """Weight decay: the share of every weight that a step takes off, over the learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the moving average of the gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the moving average of their squares."""
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    """Number that is added to the root of the averaged squares."""


OptimizerSettings = Annotated[SGDSettings | AdamWSettings, Forms("name")]
"""The `[optimizer]` table."""

DEFAULT_OPTIMIZER = SGDSettings()

"""Training with a process that was searched for, stretched over the run and moved to its pair of networks, or with a
uniform one."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, Interval, Plan
from tfkd_fast.methods.distpro.pathways import Pathway, biased_softmax, without_small
from tfkd_fast.methods.distpro.process import load_process
from tfkd_fast.methods.distpro.student import PathwaysSettings, PathwayStudent, context_pathways
from tfkd_fast.settings import LARGEST, FilePath, ReadIf, Settings

SPANS = 8
"""Equal parts of a run, in each of which the same pathways are computed (our choice)."""


class ProcessSettings(Settings):
    """The `[process]` table."""

    uniform: bool = False
    """Whether all pathways weigh the same from the first epoch to the last, in place of a process that was searched
    for: the control of one (our choice)."""
    file: Annotated[FilePath | None, ReadIf("uniform", lambda uniform: not uniform, "uniform is false")] = None
    """Process to train with: a file that distpro-search wrote, or the folder of its run; the method needs one."""
    strength: float = Field(default=1.0, gt=0, le=LARGEST)
    """Factor of the weights, which of K pathways are strength * K times the shares of the process (the authors' command
    for retraining, with 1)."""


class DistProSettings(PathwaysSettings):
    """The tables of DistPro."""

    process: ProcessSettings = ProcessSettings()
    """The process that sets the weights of the pathways."""


class DistPro(PathwayStudent):
    """DistPro with a process: the weights of the K pathways are K times its shares at the same relative time, taken in
    the middle of every epoch, and a strength.

    Our choice: weights hold for an epoch, as a process is smooth (the paper's assumption), and a pathway is skipped in
    a span of the run in which its weight is always small, so that few kinds of steps are captured. Connectors that no
    span wants are not there.
    """

    def __init__(self, settings: DistProSettings, context: Context) -> None:
        """
        Raises:
            UserError: without a process, and for a file that holds none for this run, see `load_process`.
        """
        super().__init__(settings, context)
        pathways = context_pathways(context, settings.pathways)
        shares = biased_softmax(_alpha_by_epoch(settings.process, pathways, context.epochs))
        spans = shares.split(math.ceil(context.epochs / SPANS))
        weights = torch.cat([span * without_small(span, settings.pathways.skip_below).any(dim=0) for span in spans])
        used = weights.any(dim=0).nonzero().flatten().tolist()
        self.connect([pathways[number] for number in used])
        self._schedule = settings.process.strength * len(pathways) * weights[:, used]  # (epochs, pathways)

    def resume_interval(self, interval: Interval) -> Plan:
        self.set_weights(self._schedule[interval.first_epoch])
        return replace(super().resume_interval(interval), phase=tuple(self.computed))

    def state_dict(self) -> dict[str, Any]:
        return {"schedule": self._schedule}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: for a run that began with another process.
        """
        if not torch.equal(self._schedule, state["schedule"]):
            raise UserError("the process that process.file names is not the one that this run began with: restore it")


def _alpha_by_epoch(settings: ProcessSettings, pathways: tuple[Pathway, ...], epochs: int) -> Tensor:
    """(epochs, K) float32: the numbers alpha of K pathways in the middle of every epoch."""
    if settings.uniform:
        return torch.ones(epochs, len(pathways))
    if settings.file is None:
        raise UserError(
            "method distpro trains with a process that was searched for: set process.file to the folder of a run of "
            "distpro-search, or process.uniform = true for equal weights"
        )
    process = load_process(Path(settings.file)).transfer(pathways)
    return torch.stack([process.at((epoch + 0.5) / epochs) for epoch in range(epochs)])

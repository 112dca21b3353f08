"""Training with a process that was searched for: stretched over the run, and moved to its pair of networks."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, Interval, Plan
from tfkd_fast.methods.distpro.pathways import biased_softmax, without_small
from tfkd_fast.methods.distpro.process import load_process
from tfkd_fast.methods.distpro.student import PathwaysSettings, PathwayStudent, context_pathways
from tfkd_fast.settings import FilePath, Settings

SPANS = 8
"""Equal parts of a run, in each of which the same pathways are computed (our choice)."""


class ProcessSettings(Settings):
    """The `[process]` table."""

    file: FilePath | None = None
    """Process to train with: a file that distpro-search wrote, or the folder of its run; the method needs one."""


class DistProSettings(PathwaysSettings):
    """The tables of DistPro."""

    process: ProcessSettings = ProcessSettings()
    """The process that sets the weights of the pathways."""


class DistPro(PathwayStudent):
    """DistPro with a process: the weights of the pathways are its weights at the same relative time, taken in the
    middle of every epoch.

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
        if settings.process.file is None:
            raise UserError(
                "method distpro trains with a process that was searched for: "
                "set process.file to the folder of a run of distpro-search"
            )
        pathways = context_pathways(context, settings.pathways)
        process = load_process(Path(settings.process.file)).transfer(pathways)
        alpha = torch.stack([process.at((epoch + 0.5) / context.epochs) for epoch in range(context.epochs)])
        spans = biased_softmax(alpha).split(math.ceil(context.epochs / SPANS))
        weights = torch.cat([span * without_small(span, settings.pathways.skip_below).any(dim=0) for span in spans])
        used = weights.any(dim=0).nonzero().flatten().tolist()
        self.connect([pathways[number] for number in used])
        self._schedule = weights[:, used]  # (epochs, pathways)

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

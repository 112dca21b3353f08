"""Divergence: a candidate whose loss, state or outputs are not finite, with the cause that is found and its remedy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.finiteness import named_tensors, nonfinite_names
from tfkd_fast.methods.base import HoldoutMetrics, TeacherOutputs, TrainingStatistics
from tfkd_fast.training.feed import StepInput

NO_STATISTICS = TrainingStatistics(math.nan, math.nan, math.nan, math.nan)
"""The training statistics of a candidate that diverged."""
NO_FIGURES = HoldoutMetrics(*[math.nan] * len(fields(HoldoutMetrics)))
"""The held-out figures of a candidate that diverged."""


@dataclass(frozen=True)
class Fault:
    """Why a candidate counts as diverged."""

    what: str
    """What is not finite, when, and because of what where that is known: a clause."""
    remedy: str
    """What to do about it: a clause."""

    def tell(self, slot: int, candidates: int, checkpoints: str = "") -> str:
        """The sentence about candidate `slot` of so many, with a clause about checkpoints between fault and remedy."""
        whose = f"candidate {slot}: " if candidates > 1 else ""
        return f"{whose}{self.what}{checkpoints and '; '}{checkpoints}: {self.remedy}"


class Diverged(UserError):
    """Candidates diverged, and the run cannot go on without them."""

    def __init__(self, faults: Mapping[int, Fault], candidates: int) -> None:
        slot, fault = next(iter(faults.items()))
        super().__init__(fault.tell(slot, candidates))
        self.candidates = frozenset(faults)


class NonFiniteFigure(UserError):
    """A figure of a trained student is not finite."""


def usual_remedy(compute: Compute) -> str:
    """What helps where no other cause was found: a lower learning rate, or more precision where there is more."""
    return "lower optimizer.learning_rate" + (" or use --precision fp32" if compute.dtype is torch.bfloat16 else "")


def state_fault(names: Sequence[str], epoch: int, compute: Compute) -> Fault:
    """The fault of a candidate that has tensors of these names which are not finite after a 0-based epoch."""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Fault(f"not finite after epoch {epoch + 1}: {names[0]}{others}", usual_remedy(compute))


def output_fault(when: str, compute: Compute) -> Fault:
    """The fault of a candidate whose outputs are not finite although its tensors are; `when` is a clause."""
    return Fault(f"the outputs of the student are not finite {when}", usual_remedy(compute))


def figures_fault(metrics: HoldoutMetrics | None, when: str, compute: Compute) -> Fault | None:
    """The fault that held-out figures of a candidate show; None where they are finite, or where there are none."""
    for name in ("top1", "nll", "calibrated_nll"):
        value = getattr(metrics, name, 0.0)
        if not math.isfinite(value):
            return Fault(f"the held-out {name} became {value} {when}", usual_remedy(compute))
    return None


def loss_fault(
    losses: Sequence[Sequence[float]], names: Sequence[str], epoch: int, compute: Compute
) -> tuple[int, Fault] | None:
    """The first step of a 0-based epoch whose loss is not finite, and the fault that it is; None where there is none.

    Args:
        losses: the loss of each step of one candidate, then its terms.
        names: the names of the terms.
        epoch: the epoch.
        compute: what the run computes in.
    """
    for step, (total, *terms) in enumerate(losses):
        if math.isfinite(total):
            continue
        bad = [name for name, term in zip(names, terms, strict=False) if not math.isfinite(term)]
        which = f" in its {'term' if len(bad) == 1 else 'terms'} {', '.join(bad)}" if 0 < len(bad) < len(names) else ""
        where = f"the loss became {total}{which} in epoch {epoch + 1}, step {step + 1}"
        if epoch == step == 0:
            return step, Fault(f"{where}, before anything was learned", "set usual values for the terms of the loss")
        return step, Fault(where, usual_remedy(compute))
    return None


def input_fault(found: Fault, inputs: StepInput, teachers: Sequence[str], outputs: Sequence[TeacherOutputs]) -> Fault:
    """The fault of a loss with the cause in what the step was given, or `found` as it is where that is finite.

    Args:
        found: the fault without its cause.
        inputs: the images of the step, for one candidate.
        teachers: the names of the teachers whose outputs the step read.
        outputs: their outputs.
    """
    indices = inputs.batch.indices
    if nonfinite_names(named_tensors(inputs.mix_partners)):
        return Fault(f"{found.what}, because images are mixed in shares that are not finite", "lower data.mix_alpha")
    if nonfinite_names(named_tensors(inputs)):
        image = _first_nonfinite(inputs.batch.images, indices)
        return Fault(f"{found.what}, because training image {image} is not finite as it is shown", "mend that image")
    for name, of_teacher in zip(teachers, outputs, strict=True):
        if nonfinite_names(named_tensors(of_teacher)):
            image = _first_nonfinite(of_teacher.logits, indices)
            return Fault(
                f"{found.what}, because what teacher {name} gives for training image {image} is not finite",
                "name another run as the teacher, or train it again",
            )
    return found


def _first_nonfinite(values: Tensor, indices: Tensor) -> int:
    """The index, of indices (1,B), of the first row of values (1,B,...) that is not finite, or the first one of all."""
    bad = ~values.flatten(2).isfinite().all(-1)
    return int(indices[bad][0]) if bad.any() else int(indices.flatten()[0])

"""A distillation process: the weight of every pathway over the time of a run, and the file that it travels in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods.distpro.pathways import Pathway
from tfkd_fast.settings import Settings

FORMAT = 1
"""Of the file."""

FILE = "process.safetensors"


class Header(Settings):
    """What a file says of its process."""

    format: int
    teacher: str
    student: str
    pathways: tuple[Pathway, ...]


@dataclass(frozen=True)
class Process:
    """alpha of K pathways at T moments; between two of them it moves along a straight line."""

    pathways: tuple[Pathway, ...]
    times: Tensor  # (T,) float64, rising: 0 is the start of a run, 1 its end
    alpha: Tensor  # (T,K) float32, see `biased_softmax`

    def at(self, time: float) -> Tensor:
        """(K,) at a time of 0 .. 1; before the first moment as then, and likewise after the last."""
        following = int(torch.searchsorted(self.times, time, right=True))
        before, after = max(0, following - 1), min(following, len(self.times) - 1)
        if before == after:
            return self.alpha[before]
        share = (time - self.times[before]) / (self.times[after] - self.times[before])
        return torch.lerp(self.alpha[before], self.alpha[after], float(share))

    def moved(self, pathways: Sequence[Pathway]) -> Self:
        """For the pathways of another pair of networks: each takes the alpha of the one with the same transform that is
        nearest to it in relative depth, by the sum of the distances at the teacher and at the student; of equally near
        ones the first. Then all are shifted alike, so that the weights have the same sum as before. (Our choice.)

        Raises:
            UserError: for a transform that this process does not know.
        """
        sources = [_nearest(pathway, self.pathways) for pathway in pathways]
        alpha = self.alpha[:, sources]
        shift = self.alpha.logsumexp(-1, keepdim=True) - alpha.logsumexp(-1, keepdim=True)
        return type(self)(tuple(pathways), self.times, alpha + shift)

    def to_bytes(self, teacher: str, student: str) -> bytes:
        """In the safetensors format, with a `Header` as JSON; `teacher` and `student` name the networks."""
        header = Header(format=FORMAT, teacher=teacher, student=student, pathways=self.pathways)
        tensors = {"times": self.times, "alpha": self.alpha}
        return safetensors.torch.save(tensors, metadata={"process": header.model_dump_json()})


def _nearest(pathway: Pathway, known: Sequence[Pathway]) -> int:
    def distance(number: int) -> float:
        other = known[number]
        return abs(other.teacher_depth - pathway.teacher_depth) + abs(other.student_depth - pathway.student_depth)

    alike = [number for number, other in enumerate(known) if other.transform == pathway.transform]
    if not alike:
        names = sorted({other.transform for other in known})
        raise UserError(
            f"the process has no pathways through {pathway.transform}: set pathways.transforms to {json.dumps(names)}"
        )
    return min(alike, key=distance)


def load_process(path: Path) -> Process:
    """From a file, or from the folder of the run that searched for it.

    Raises:
        UserError: if it is missing, unreadable, damaged, of another kind or format.
    """
    path = path / FILE if path.is_dir() else path
    foreign = UserError(
        f"{path} is no process file of tfkd-fast, or is damaged: give the {FILE} of a run of distpro-search"
    )
    try:
        with safetensors.safe_open(path, "pt") as file:
            values: dict[str, Any] = json.loads((file.metadata() or {})["process"])
            times, alpha = file.get_tensor("times"), file.get_tensor("alpha")
            version = values["format"]
    except FileNotFoundError:
        raise UserError(
            f"process.file names {path}, which does not exist: give the folder of a finished run of distpro-search"
        ) from None
    except OSError as error:
        raise UserError(f"process.file names {path}, which cannot be read: {error}") from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError):
        raise foreign from None
    if version != FORMAT:
        raise UserError(f"the process {path} has format {version}, but this version of tfkd-fast reads format {FORMAT}")
    try:
        header = Header.model_validate(values)
    except ValidationError:
        raise foreign from None
    fits = (
        len(times) > 0
        and times.dtype == torch.float64
        and alpha.dtype == torch.float32
        and alpha.shape == (len(times), len(header.pathways))
        and bool((times.diff() > 0).all())
        and bool(alpha.isfinite().all())
    )
    if not fits:
        raise foreign
    return Process(header.pathways, times, alpha)

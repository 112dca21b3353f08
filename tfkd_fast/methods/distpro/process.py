"""A distillation process: the weight of every pathway over the time of a run, and the file that it travels in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods.distpro.pathways import Pathway
from tfkd_fast.settings import Settings
from tfkd_fast.strict_json import to_json
from tfkd_fast.tensor_file import FileKind

FILE = "process.safetensors"


class Header(Settings):
    """The header of the file of a process."""

    teacher: str
    student: str
    pathways: tuple[Pathway, ...]


FILES = FileKind("process", Header, 1, "process.file", "give the folder of a finished run of distpro-search")


@dataclass(frozen=True)
class Process:
    """The numbers alpha of K pathways at T moments; between two moments they move along straight lines."""

    pathways: tuple[Pathway, ...]
    times: Tensor
    """(T,) float64: the moments, rising; 0 is the start of a run, 1 its end."""
    alpha: Tensor
    """(T,K) float32: the numbers whose `biased_softmax` are the weights of the pathways."""

    def at(self, time: float) -> Tensor:
        """The numbers alpha (K,) float32 at a time of 0 .. 1; before the first moment its numbers, after the last those
        of the last."""
        following = int(torch.searchsorted(self.times, time, right=True))
        before, after = max(0, following - 1), min(following, len(self.times) - 1)
        if before == after:
            return self.alpha[before]
        share = (time - self.times[before]) / (self.times[after] - self.times[before])
        return torch.lerp(self.alpha[before], self.alpha[after], float(share))

    def transfer(self, pathways: Sequence[Pathway]) -> Self:
        """Move the process to the pathways of another pair of networks.

        Each pathway takes the alpha of the known pathway with the same transform that is nearest to it in relative
        depth, by the sum of the distances at the teacher and at the student; of equally near ones the first. Then all
        alpha are shifted by the same number, so that the weights have the same sum as before. (Our choice.)

        Raises:
            UserError: for a transform that this process does not know.
        """
        sources = [_nearest(pathway, self.pathways) for pathway in pathways]
        alpha = self.alpha[:, sources]
        shift = self.alpha.logsumexp(-1, keepdim=True) - alpha.logsumexp(-1, keepdim=True)
        return type(self)(tuple(pathways), self.times, alpha + shift)

    def to_bytes(self, teacher: str, student: str) -> bytes:
        """The process in the safetensors format, with a `Header` as JSON; `teacher` and `student` name the networks."""
        header = Header(teacher=teacher, student=student, pathways=self.pathways)
        return FILES.to_bytes(header, {"times": self.times, "alpha": self.alpha})


def _nearest(pathway: Pathway, known: Sequence[Pathway]) -> int:
    def distance(number: int) -> float:
        other = known[number]
        return abs(other.teacher_depth - pathway.teacher_depth) + abs(other.student_depth - pathway.student_depth)

    alike = [number for number, other in enumerate(known) if other.transform == pathway.transform]
    if not alike:
        names = sorted({other.transform for other in known})
        raise UserError(
            f"the process has no pathways through {pathway.transform}: set pathways.transforms to {to_json(names)}"
        )
    return min(alike, key=distance)


def load_process(path: Path) -> Process:
    """Load a process from a file, or from the folder of the run that searched for it.

    Raises:
        UserError: if it is missing, unreadable, damaged, of another kind or format.
    """
    path = path / FILE if path.is_dir() else path
    with FILES.reading(path):
        header, tensors = FILES.read(path)
        times, alpha = tensors["times"], tensors["alpha"]
        fits = (
            tensors.keys() == {"times", "alpha"}
            and times.ndim == 1
            and len(times) > 0
            and times.dtype == torch.float64
            and alpha.dtype == torch.float32
            and alpha.shape == (len(times), len(header.pathways))
            and bool((times.diff() > 0).all())
            and bool(alpha.isfinite().all())
        )
        if not fits:
            raise ValueError("its tensors are not those of a process")
    return Process(header.pathways, times, alpha)

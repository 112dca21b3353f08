"""A run that is read from its folder: recipe, log, summary, its student, and what belongs to it to be used."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from tfkd_fast.errors import UserError, nearest, shorten
from tfkd_fast.events import Event
from tfkd_fast.files import expand_home, is_there
from tfkd_fast.models import NetworkOrFactory, imports_code
from tfkd_fast.runs import hub
from tfkd_fast.runs.classifier import ImageClassifier, Normalise
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import read_log
from tfkd_fast.runs.recipe import Recipe, read_recipe
from tfkd_fast.runs.student import StudentHeader, read_student, read_student_header

Weights = Literal["last", "best", "ema"]
"""The weights of a run by name: of the last epoch, of the epoch that was best on held-out images, or their moving
average."""


@dataclass(frozen=True)
class StoredRun:
    """A finished or unfinished run. Files are read when they are asked for."""

    folder: RunFolder
    recipe: Recipe
    """The resolved recipe: every value of the run."""

    @property
    def path(self) -> Path:
        """The path of the run folder."""
        return self.folder.path

    @cached_property
    def summary(self) -> Mapping[str, Any] | None:
        """The figures of a finished run, top-1 and top-5 in percent; None as long as the run is not finished."""
        return self.folder.read_summary()

    @cached_property
    def events(self) -> list[Event]:
        """The events of the log in their order, see `tfkd_fast.events`; empty before the run was started.

        A last line that was cut off by a kill is left out, and so are kinds of events that this version does not know.

        Raises:
            UserError: if another line is damaged.
        """
        lines = read_log(self.folder.metrics) if self.folder.metrics.exists() else []
        return [line.event for line in lines if line.event is not None]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the student's logits."""
        return self._header.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C,H,W) of the images that the student was trained on."""
        return self._header.image_shape

    def student(self) -> nn.Module:
        """The student of the last epoch, on the CPU in float32 and in evaluation mode.

        It takes normalised images (B,C,H,W) float32, see `normalise`, and gives logits (B, number of classes).

        Raises:
            UserError: if the run is not finished.
        """
        return read_student(self.weights_file("last"))[1]

    def best(self) -> nn.Module:
        """The student of the epoch that was best on held-out images, otherwise like `student`.

        Raises:
            UserError: if no epoch was judged on held-out images, or none yet.
        """
        return read_student(self.weights_file("best"))[1]

    def ema(self) -> nn.Module:
        """The moving average of the student's weights after the last epoch, otherwise like `student`.

        Raises:
            UserError: if the run kept none (`optimizer.ema_decay`), or is not finished.
        """
        return read_student(self.weights_file("ema"))[1]

    def classifier(self, weights: Weights = "last") -> ImageClassifier:
        """A student behind its pre-processing: a module from pixels to logits, which reads image files, too, and has
        the names of the classes and the temperature of the run, on the CPU in float32.

        Args:
            weights: "last", "best" or "ema", for the students of `student`, `best` and `ema`.

        Raises:
            UserError: if the run has no such weights.
        """
        header, network = read_student(self.weights_file(weights))
        temperature = self.temperature(weights)
        return ImageClassifier(network, header, centre_crop=self.recipe.data.centre_crop, temperature=temperature)

    def temperature(self, weights: Weights = "last") -> float | None:
        """What logits are divided by for probabilities, fitted to the held-out images at the end of the run; None where
        there were none, before the end of the run, and for runs of earlier versions."""
        found: float | None = self.metrics(weights).get("holdout_temperature")
        return found

    def metrics(self, weights: Weights = "last") -> dict[str, Any]:
        """The figures of some weights on held-out and test images, as `holdout_top1` and `test_top1`, in percent; there
        are none before the end of the run, and fewer of other weights than of those of the last epoch."""
        prefix = "" if weights == "last" else f"{weights}_"
        own = {
            name.removeprefix(prefix): value for name, value in (self.summary or {}).items() if name.startswith(prefix)
        }
        return {name: value for name, value in own.items() if name.startswith(("holdout_", "test_"))}

    def weights_file(self, weights: Weights) -> Path:
        """The file of a student, see `Weights`.

        Raises:
            UserError: there is none.
        """
        files = {"last": self.folder.student, "best": self.folder.best, "ema": self.folder.ema}
        reasons = {
            "best": "no best epoch: none was judged on held-out images",
            "ema": "no moving average of the weights, as optimizer.ema_decay makes one",
        }
        if weights not in files:
            raise UserError(f"a run has no weights {shorten(weights)}: {nearest(str(weights), files)}")
        if weights in reasons and not files[weights].exists():
            raise UserError(f"{self.path} has {reasons[weights]}; use the student of the last epoch")
        return files[weights]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Images as the student takes them: pixels less the mean of the training images, over their deviation.

        Args:
            pixels: (B,C,H,W), uint8 between 0 and 255, or floating point between 0 and 1.

        Returns:
            (B,C,H,W) float32 on the device of `pixels`.

        Raises:
            UserError: if (C,H,W) is not `image_shape`.
        """
        if tuple(pixels.shape[1:]) != self.image_shape:
            raise UserError(
                f"the student of {self.path} takes images of shape {self.image_shape}, not {tuple(pixels.shape[1:])}: "
                "resize them, and give a batch of them"
            )
        normalised: Tensor = Normalise(self._header).to(pixels.device)(pixels)
        return normalised

    @cached_property
    def _header(self) -> StudentHeader:
        """The header of the student, or before the end of the run that of its best epoch."""
        finished, best = self.folder.student, self.folder.best
        return read_student_header(best if best.exists() and not finished.exists() else finished)


def load_run(path: Path | str, *, model: NetworkOrFactory | None = None) -> StoredRun:
    """A finished or unfinished run, read from its folder.

    Args:
        path: the run folder.
        model: the module or the factory of its network, where this process cannot import it.

    Raises:
        UserError: if the folder holds no run, or its recipe is damaged.
    """
    folder = RunFolder(Path(path))
    return StoredRun(folder, read_recipe(folder, model))


def from_pretrained(
    source: Path | str, *, revision: str | None = None, model: NetworkOrFactory | None = None
) -> StoredRun:
    """A finished run that somebody handed on by `tfkd-fast push`: from a repository of the Hugging Face Hub, by way of
    its cache, or from a folder.

    Nothing is unpickled, and no code is imported that the run names: a network of others' code has to be given.

    Args:
        source: OWNER/NAME for a repository; a path such as "./x" or "/x", or a folder that is there.
        revision: a branch, a tag or a commit of the repository; None for its main branch.
        model: the module or the factory of the network, where it is of others' code.

    Raises:
        UserError: there is no such repository or folder, it holds no finished run, a file is damaged, or the network is
            of others' code.
    """
    if not hub.is_folder(source):
        names = [path.name for path in (RunFolder(Path()).recipe, *RunFolder(Path()).handed_on())]
        path = hub.fetch(str(source), names, revision)
    elif revision is None:
        path = expand_home(source)
    else:
        raise UserError(f"{source} is a folder, which has no revisions: leave revision out")
    folder = RunFolder(path)
    for file in (folder.recipe, folder.summary, folder.student):
        if not is_there(file):
            raise UserError(f"{source} holds no finished run of tfkd-fast, because it has no {file.name}: name another")
    run = load_run(path, model=model)
    for file in (folder.student, folder.best, folder.ema):
        if is_there(file):
            name = read_student_header(file).name
            if model is None and imports_code(name):
                raise UserError(
                    f"the network of {source} is {name}, code of others that is not imported: give it as model"
                )
            if name != run.recipe.model.name:
                raise UserError(
                    f"{file} is of a {name}, and the recipe beside it of a {run.recipe.model.name}: get both again"
                )
    return run

"""What trackers have in common: a listener that hands the points of all curves to another program."""

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from tfkd_fast.errors import Notice, UserError
from tfkd_fast.events import Event, RunFinished, RunResumed, RunStarted
from tfkd_fast.runs.folder import RunFolder
from tfkd_fast.runs.log import Listener
from tfkd_fast.runs.trackers.scalars import Curves, Point

LONGEST_REASON = 300
"""Characters of a tracker's own words that a sentence quotes."""


class Tracker(Listener, ABC):
    """Gives the scalars of a run to a tracker.

    A tracker that cannot be begun stops the run before its first epoch. One that fails later is told nothing more, and
    a `Notice` says so: the log of the run has everything.
    """

    title: ClassVar[str]
    """The name of the tracker, for people."""
    package: ClassVar[str]
    """The package that is imported."""
    extra: ClassVar[str]
    """The extra of this package that installs it."""

    def __init__(self, folder: RunFolder, recipe: dict[str, Any]) -> None:
        """Prepare for a run.

        Args:
            folder: the folder of the run, which need not be there yet.
            recipe: the tables of its recipe, for trackers that show them.

        Raises:
            UserError: the tracker is not installed.
        """
        if importlib.util.find_spec(self.package) is None:
            raise UserError(
                f"the recipe names a tracker that is not installed, {self.title}: pip install "
                f"'tfkd-fast[{self.extra}]', or take it out of trackers"
            )
        self.folder, self.recipe = folder, recipe
        self._curves = Curves()
        self._begun = self._finished = False

    @abstractmethod
    def begin(self, epoch: int) -> None:
        """Begin a run of the tracker, or go on with that of this folder after so many epochs."""

    @abstractmethod
    def write(self, points: Sequence[Point]) -> None:
        """Hand over points, at least one, which all have the same epoch."""

    @abstractmethod
    def end(self, *, finished: bool) -> None:
        """End the run of the tracker, as one that is finished or that may go on later."""

    def event(self, event: Event) -> None:
        """Hand over the points that an event has; at the first event, begin.

        Raises:
            UserError: the tracker cannot be begun.
        """
        points = self._curves.points(event)
        match event:
            case RunStarted():
                self._begin(0)
            case RunResumed() if not self._begun:
                self._begin(event.epoch)
            case RunFinished():
                self._finished = True
        if points and self._begun:
            with self._losing_it():
                self.write(points)

    def close(self) -> None:
        """End the run of the tracker, however the run ends."""
        if self._begun:
            with self._losing_it():
                self.end(finished=self._finished)
            self._begun = False

    def _begin(self, epoch: int) -> None:
        try:
            self.begin(epoch)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.title} cannot begin ({_in_short(error)}): mend that and go on with "
                f"{self.folder.resume_option}, or train without that tracker"
            ) from None
        self._begun = True

    @contextmanager
    def _losing_it(self) -> Iterator[None]:
        """Context manager for a block after which the tracker is told nothing more if it raises."""
        try:
            yield
        except Exception as error:
            self._begun = False
            lost = (
                f"{self.title} failed and is told nothing more ({_in_short(error)}); the log of the run has everything"
            )
            warnings.warn(Notice(lost), stacklevel=2)


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__

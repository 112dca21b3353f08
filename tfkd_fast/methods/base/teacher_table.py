"""The keys of the `[teachers]` table that the engine reads; a method may add others."""

from pydantic import Field

from tfkd_fast.settings import FilePath, Settings


class TeacherTable(Settings):
    """The teachers of a run, and how their outputs are kept."""

    runs: tuple[FilePath, ...] = ()
    """Folders of the finished runs whose students are the teachers; --teacher names one."""
    cache: FilePath | None = None
    """File that keeps the teachers' outputs; unset, the teachers look at every batch."""
    views: int = Field(default=0, ge=0, le=10_000)
    """Epochs after which the augmentation of the training images repeats, so that outputs can be kept; 0 never repeats
    it."""

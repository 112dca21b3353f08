"""The cache of teachers: their outputs for the training images, read from a file instead of computed in every step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast import tensor_file
from tfkd_fast.data import Dataset, Loader
from tfkd_fast.data.loaders import free_memory
from tfkd_fast.device import Compute
from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Needs, TeacherOutputs
from tfkd_fast.models import Features
from tfkd_fast.runs.checkpoint import write_atomically
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.teachers.teacher import Teacher, Teachers
from tfkd_fast.tensor_file import ForeignFile

CACHE = "cache"
"""Kind of the file, see `tensor_file`."""


class CachedTeachers(Teachers):
    """Teachers whose outputs for V views of N images are known; a view is one augmentation of every image.

    Tables (V*N,...) keep their place in memory on the device: logits in float32, features in the dtype of the run.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        compute: Compute,
        batch_size: int,
        *,
        features: bool,
        tables: dict[str, Tensor],
        images: int,
    ) -> None:
        """Serve outputs from tables.

        Args:
            teachers, compute, batch_size, features: see `Teachers`.
            tables: name -> (V*N,...), such as "0.logits" for the logits of the first teacher.
            images: the number N of images.
        """
        super().__init__(teachers, compute, batch_size, features=features)
        self._tables = {name: table.to(compute.device) for name, table in tables.items()}
        self._images = images
        self._views = len(tables["0.logits"]) // images
        self._first = torch.zeros((), dtype=torch.int64, device=compute.device)

    def start(self, epoch: int, wanted: Sequence[int] | None = None) -> None:
        super().start(epoch, wanted)
        self._first.fill_(epoch % self._views * self._images)

    def outputs(self, images: Tensor, indices: Tensor) -> tuple[TeacherOutputs, ...]:
        rows = (self._first + indices).flatten()
        return tuple(self._found(number, rows, indices.shape) for number in self._wanted)

    def _found(self, number: int, rows: Tensor, shape: torch.Size) -> TeacherOutputs:
        def part(name: str) -> Tensor:
            return self._tables[f"{number}.{name}"].index_select(0, rows).unflatten(0, shape)

        features: Features | None = None
        if f"{number}.pooled" in self._tables:
            stages = len(self.teachers[number].facts.shapes.maps)
            before = [part(f"before_relu.{stage}") for stage in range(stages)]
            features = Features(before, [F.relu(feature_map) for feature_map in before], part("pooled"))
        return TeacherOutputs(part("logits"), features)


def gather_teachers(
    teachers: Sequence[Teacher], needs: Needs, recipe: Recipe, dataset: Dataset, loader: Loader, compute: Compute
) -> Teachers:
    """Prepare the teachers of a run, with a cache if the recipe names one; a cache that does not exist is made.

    Args:
        teachers: the loaded teachers.
        method: says whether features are needed.
        recipe: the recipe of the run.
        dataset: the data set of the run.
        loader: the loader of the training images.
        compute: device and precision.

    Raises:
        UserError: the cache is of other teachers, images or augmentations, cannot be written, or does not fit on the
            device, or the augmentations do not repeat.
    """
    batch_size, features = recipe.data.batch_size, needs.features
    present = Teachers(teachers, compute, batch_size, features=features)
    if not teachers or recipe.teachers.cache is None:
        return present
    if recipe.data.augment and not recipe.repeated_views:
        raise UserError(
            "teachers.cache needs images that come again: set teachers.views to the augmentations of each image, or "
            "data.augment to false"
        )
    if recipe.data.mix != "none":
        raise UserError("teachers.cache holds single images: set data.mix to none, or leave the cache out")
    path = Path(recipe.teachers.cache)
    images, views = len(loader.order(0)), recipe.repeated_views or 1
    wanted = {
        "teachers": present.checksums,
        "data set": dataset.fingerprint,
        "data.holdout": recipe.data.holdout,
        "data.augment": [recipe.data.augment, recipe.data.flip],
        "teachers.views": views,
        "seed": recipe.seed if recipe.data.augment else None,
        "precision": compute.precision,
        "features": features,
    }
    if path.exists():
        tables = _read(path, wanted)
    else:
        tables = _compute_tables(present, loader, views)
        content = tensor_file.to_bytes(CACHE, wanted, tables)
        try:
            write_atomically(path, lambda file: file.write(content))
        except OSError as error:
            raise UserError(f"cannot write teachers.cache {path}: {error.strerror}") from None
    needed = sum(table.nbytes for table in tables.values())
    if compute.device.type == "cuda" and needed > free_memory(compute.device):
        raise UserError(f"teachers.cache {path} needs {needed / 2**30:.1f} GiB, more than is free: leave it out")
    return CachedTeachers(teachers, compute, batch_size, features=features, tables=tables, images=images)


def _compute_tables(teachers: Teachers, loader: Loader, views: int) -> dict[str, Tensor]:
    """Compute tables (V*N,...) by name, on the CPU; the images of each view are in the order of their indices."""
    order = loader.order(0).sort().values
    columns: dict[str, list[Tensor]] = {}
    for view in range(views):
        for batch in loader.visit(order, view):
            for number, outputs in enumerate(teachers.predict(batch.images.unsqueeze(0))):
                parts = {"logits": outputs.logits}
                if outputs.features is not None:
                    parts["pooled"] = outputs.features.pooled
                    maps = enumerate(outputs.features.before_relu)
                    parts |= {f"before_relu.{stage}": part for stage, part in maps}
                for name, part in parts.items():
                    columns.setdefault(f"{number}.{name}", []).append(part[0].cpu())
    return {name: torch.cat(parts).contiguous() for name, parts in columns.items()}


def _read(path: Path, wanted: dict[str, Any]) -> dict[str, Tensor]:
    try:
        made_of = tensor_file.read_header(path, CACHE)
        different = [name for name in wanted if made_of.get(name) != wanted[name]]
        if not different:
            return tensor_file.read_tensors(path)
    except (OSError, ForeignFile):
        raise UserError(f"{path} is no cache of teachers' outputs: name another file as teachers.cache") from None
    raise UserError(f"teachers.cache {path} was made with another {different[0]}: delete it, or name another file")

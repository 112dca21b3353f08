"""The cache of teachers: their outputs for the training images, read from a file instead of computed in every step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfkd_fast import tensor_file
from tfkd_fast.data import Dataset, Loader
from tfkd_fast.device import Compute, free_memory
from tfkd_fast.errors import UserError
from tfkd_fast.files import reading, write_bytes
from tfkd_fast.methods.base import Needs, TeacherOutputs
from tfkd_fast.models import FeatureName, Features
from tfkd_fast.runs.recipe import Recipe
from tfkd_fast.teachers.teacher import Teacher, Teachers, in_float32

CACHE = "cache"
"""Kind of the file, see `tensor_file`."""

NOT_IN_PIXELS = {"dataset", "root", "classes", "per_class", "batch_size", "loader", "workers"}
"""Keys of the `[data]` table that a cache does not depend on: the fingerprint of the data set says what the first four
choose, and the others do not change an image, unless the loader is dali. Every other key does, or says which images
there are."""


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
        features: frozenset[FeatureName],
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
        self._names, self._images = features, images
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

        if not self._names:
            return TeacherOutputs(part("logits"), None)
        shapes = self.teachers[number].facts.shapes
        stages = len(shapes.maps) if "stages" in self._names else 0
        sums = len(shapes.block_sums) if "block_sums" in self._names else 0
        has_stem = "stem" in self._names and shapes.stem is not None
        before = [part(f"before_relu.{stage}") for stage in range(stages)]
        features = Features(
            before,
            [maps if stage in shapes.linear else F.relu(maps) for stage, maps in enumerate(before)],
            part("pooled"),
            part("stem") if has_stem else None,
            [part(f"block_sums.{stage}") for stage in range(sums)],
        )
        return in_float32(TeacherOutputs(part("logits"), features))


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
        **{f"data.{key}": value for key, value in recipe.data.model_dump(mode="json", exclude=NOT_IN_PIXELS).items()},
        "data.loader": "dali" if loader.name == "dali" else None,  # the others show the same pixels
        "teachers.networks": [each.model_dump(mode="json", exclude={"weights"}) for each in recipe.teachers.networks],
        "teachers.views": views,
        "seed": recipe.seed if recipe.data.augment else None,
        "precision": compute.precision,
    }
    if path.exists():
        tables = _read(path, wanted, features)
    else:
        tables = _compute_tables(present, loader, views)
        write_bytes(path, tensor_file.to_bytes(CACHE, wanted | {"features": sorted(features)}, tables))
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
            for number in range(len(teachers.teachers)):
                outputs = teachers.predict_one(batch.images.unsqueeze(0), number)
                for name, part in _parts(outputs).items():
                    columns.setdefault(f"{number}.{name}", []).append(part[0].cpu())
    return {name: torch.cat(parts).contiguous() for name, parts in columns.items()}


def _parts(outputs: TeacherOutputs) -> dict[str, Tensor]:
    """What is kept of the outputs, by name; maps after ReLU follow from those before."""
    features = outputs.features
    if features is None:
        return {"logits": outputs.logits}
    stem = {} if features.stem is None else {"stem": features.stem}
    before = {f"before_relu.{stage}": maps for stage, maps in enumerate(features.before_relu)}
    sums = {f"block_sums.{stage}": maps for stage, maps in enumerate(features.block_sums)}
    return {"logits": outputs.logits, "pooled": features.pooled} | stem | before | sums


def _read(path: Path, wanted: dict[str, Any], features: frozenset[FeatureName]) -> dict[str, Tensor]:
    """The tables of a cache that holds what is wanted, or more features."""
    with reading(path, "teachers.cache", "name another file"):
        made_of, tables = tensor_file.read(path, CACHE)
        faults = [
            f"with another {name}" if name in made_of else f"by a version that did not record {name}"
            for name, value in wanted.items()
            if name not in made_of or made_of[name] != value
        ]
        if missing := sorted(features.difference(made_of["features"])):
            faults.append(f"without the features {', '.join(missing)}")
    if faults:
        raise UserError(f"teachers.cache {path} was made {faults[0]}: delete it, or name another file")
    return tables

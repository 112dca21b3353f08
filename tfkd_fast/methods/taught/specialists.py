"""Specialists: teachers that know a group of the classes each, and all classes together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tfkd_fast.errors import UserError
from tfkd_fast.methods.base import Context, TeacherOutputs


def specialist_groups(context: Context) -> list[list[int]]:
    """The labels of each teacher's group, ascending. Raises UserError unless they divide the classes among them."""
    groups = [sorted(teacher.labels) for teacher in context.teachers]
    check_partition(groups, [f"teacher {teacher.name}" for teacher in context.teachers], context)
    return groups


def check_partition(groups: Sequence[Sequence[int]], sources: Sequence[str], context: Context) -> None:
    """Raises UserError, in which a group is called by its source, unless every class is in one group of several."""
    for label in range(context.num_classes):
        name = context.classes[label] if context.classes else str(label)
        owners = [source for group, source in zip(groups, sources, strict=True) if label in group]
        if len(owners) > 1:
            raise UserError(f"class {name!r} is in {owners[0]} and in {owners[1]}: no two groups may share a class")
        if not owners:
            raise UserError(f"class {name!r} is in none of {', '.join(sources)}: together they must have all classes")
    for group, source in zip(groups, sources, strict=True):
        if len(group) < 2:
            raise UserError(f"{source} has {len(group)} of {context.num_classes} classes: a group needs two or more")


class SideBySide:
    """Logits of several teachers as those of one, in the order of the student's classes."""

    def __init__(self, context: Context, teachers: Sequence[int]) -> None:
        """`teachers` are the numbers of the teachers whose logits are combined."""
        known = [label for number in teachers for label in context.teachers[number].labels]
        self._labels = torch.tensor(known, device=context.device)
        self._num_classes = context.num_classes

    def __call__(self, outputs: Sequence[TeacherOutputs]) -> Tensor:
        """Combine the logits of the teachers to (n,B,C) float32, 0 for a class that none of them knows."""
        logits = torch.cat([teacher.logits for teacher in outputs], -1)
        return logits.new_zeros(*logits.shape[:-1], self._num_classes).index_copy(-1, self._labels, logits)

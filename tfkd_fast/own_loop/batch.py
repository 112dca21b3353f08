"""The batch of a step, from what a loop of one's own hands over, and the sums over an epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tfkd_fast.data import MixPartners
from tfkd_fast.errors import UserError, shorten
from tfkd_fast.methods.base import CompanionOutputs, Context, Needs, StepBatch, TeacherOutputs, TrainingStatistics
from tfkd_fast.models import Features
from tfkd_fast.strict_json import to_json
from tfkd_fast.training.step import StepLoss

NO_IMAGE = -1
"""The index of an image where the method does not ask which one it is."""


@dataclass(frozen=True)
class Inputs:
    """What a loop hands over beside the logits; see `Criterion.forward`, whose arguments these are."""

    labels: Tensor
    indices: Tensor | None
    teachers: Sequence[Tensor | TeacherOutputs]
    features: Features | None
    companions: Tensor | CompanionOutputs | None
    slow_logits: Tensor | None
    networks: Sequence[nn.Module]
    mixed_with: tuple[Tensor, float | Tensor] | None


def check_logits(logits: Tensor, inputs: Inputs, context: Context) -> None:
    """Raise UserError for logits and labels that do not go together, or not with the criterion."""
    classes, device = context.num_classes, context.device
    if logits.ndim not in (2, 3) or logits.shape[-1] != classes:
        raise UserError(f"logits must be (images, {classes}): got {tuple(logits.shape)}")
    if logits.device != device:
        raise UserError(f"the logits are on {logits.device} and the criterion on {device}: move it, or set its device")
    check_column("labels", inputs.labels, logits)
    if inputs.mixed_with is not None:
        check_column("the labels of mixed_with", inputs.mixed_with[0], logits)


def check_column(name: str, column: Tensor, logits: Tensor) -> None:
    """Raise UserError for integers (B,) or (n,B) that do not go with logits (B,C) or (n,B,C)."""
    if not isinstance(column, Tensor) or column.dtype != torch.int64:
        got = column.dtype if isinstance(column, Tensor) else type(column).__name__
        raise UserError(f"{name} must be an int64 tensor: got {got}")
    if column.shape not in (logits.shape[:-1], logits.shape[-2:-1]):
        raise UserError(f"{name} must be one a row of the logits: got {tuple(column.shape)}")


def make_batch(method: str, needs: Needs, context: Context, inputs: Inputs, first: int, n: int) -> StepBatch:
    """The batch of candidates `first` to `first + n - 1`.

    A tensor without an axis of candidates is the same for all n of them.

    Raises:
        UserError: something is missing that the method needs.
    """
    labels = _with_axis(inputs.labels, 1, n)
    indices = torch.full_like(labels, NO_IMAGE)
    if needs.indices:
        description = f"which training images these are{or_without_memory(needs)}"
        which = _require(method, "indices", inputs.indices, description)
        check_column("indices", which, labels.unsqueeze(-1))
        if which.device.type == "cpu":  # elsewhere the host would wait
            for index in which[(which < 0) | (which >= context.num_images)].tolist():
                raise UserError(f"there are num_images = {context.num_images} training images: got index {index}")
        indices = _with_axis(which, 1, n)
    if len(inputs.teachers) != len(context.teachers):
        raise UserError(
            f"method {method!r} learns from {len(context.teachers)} teachers: hand the logits of each to the call as "
            f"teachers (got {len(inputs.teachers)})"
        )
    features: Features | None = None
    if needs.features:
        features = _features_with_axis(
            _require(method, "features", inputs.features, "those of the network for these images"), n
        )
    networks = inputs.networks
    if needs.networks and len(networks) != n:
        raise UserError(f"method {method!r} reads the network itself: hand it to the call as networks=[network]")
    slow_logits = None
    if needs.slow_decay is not None:
        slow = _require(method, "slow_logits", inputs.slow_logits, f"of weights averaged with decay {needs.slow_decay}")
        slow_logits = _check_logits("slow_logits", slow.detach(), labels, context.num_classes)
    if inputs.mixed_with is not None and not needs.mixing:
        remedy = f"train it without mixed images{or_without_memory(needs)}"
        raise UserError(f"method {method!r} learns from predictions of single images: {remedy}")
    return StepBatch(
        labels,
        indices,
        first,
        slow_logits,
        features,
        tuple(
            _teacher_outputs(method, needs, teacher, labels, len(facts.labels))
            for teacher, facts in zip(inputs.teachers, context.teachers, strict=True)
        ),
        _companions(method, needs, context, inputs, labels, indices, n) if needs.companions else None,
        tuple(networks),
    )


def or_without_memory(needs: Needs) -> str:
    """The remedy of a method that can do without its memory of single images, for the end of a sentence."""
    if needs.without_memory is None:
        return ""
    table, key, value = needs.without_memory
    return f", or leave its memory out by {table}={to_json({key: value})}"


def mix_partners(inputs: Inputs, n: int) -> MixPartners | None:
    """The partners of mixed images, as the loss of a step takes them; None for images that are not mixed.

    Raises:
        UserError: there is a share for each image, or one that is none.
    """
    if inputs.mixed_with is None:
        return None
    labels, share = inputs.mixed_with
    shares = torch.as_tensor(share, dtype=torch.float32)
    if shares.shape not in ((), (1,), (n,)):
        got = tuple(shares.shape)
        raise UserError(f"the share of mixed_with is that of a whole batch, one for each candidate at most: got {got}")
    if shares.device.type == "cpu" and not ((shares >= 0) & (shares <= 1)).all():  # elsewhere the host would wait
        raise UserError(f"the share of mixed_with must be in 0..1: got {shorten(share)}")
    return MixPartners(_with_axis(labels, 1, n), shares.to(labels.device).expand(n))


def _require(method: str, name: str, value: Any, words: str) -> Any:
    """The value, unless it is None: then UserError says what it should be."""
    if value is None:
        raise UserError(f"method {method!r} needs {name} in each call: {words}")
    return value


def _with_axis(tensor: Tensor, dimensions: int, n: int) -> Tensor:
    """The tensor with an axis of n candidates in front of its `dimensions`, unless it has one."""
    return tensor.expand(n, *tensor.shape) if tensor.ndim == dimensions else tensor


def _check_logits(name: str, logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Logits (n,B,C) in float32 beside labels (n,B), of logits that may come without the axis.

    Raises:
        UserError: they are of other images or other classes.
    """
    own = _with_axis(logits.float(), 2, len(labels))
    if own.shape != (*labels.shape, classes):
        raise UserError(f"{name} must be ({labels.shape[1]}, {classes}), images and classes: got {tuple(logits.shape)}")
    return own


def _features_with_axis(features: Features, n: int) -> Features:
    """Features with an axis of candidates, in float32; those of one candidate come without the axis."""
    return (
        features.map(lambda maps: maps.unsqueeze(0)) if n == 1 and features.pooled.ndim == 2 else features
    ).in_float32()


def _teacher_outputs(
    method: str, needs: Needs, teacher: Tensor | TeacherOutputs, labels: Tensor, classes: int
) -> TeacherOutputs:
    """The outputs of a teacher that knows so many classes, for images with labels (n,B)."""
    logits, features = (teacher, None) if isinstance(teacher, Tensor) else teacher
    if needs.features and features is None:
        raise UserError(f"method {method!r} reads features of its teachers: hand over TeacherOutputs(logits, features)")
    constant = features and _features_with_axis(features, len(labels)).map(Tensor.detach)
    return TeacherOutputs(_check_logits("logits of a teacher", logits.detach(), labels, classes), constant)


def _companions(
    method: str, needs: Needs, context: Context, inputs: Inputs, labels: Tensor, indices: Tensor, n: int
) -> CompanionOutputs:
    """The outputs for companions. Logits alone are those for other images of the same labels."""
    outputs = "CompanionOutputs(logits, labels, indices, features)" if needs.features else "the logits"
    words = {
        "same-class": "the logits of another image of the class of each, without gradient",
        "previous": "CompanionOutputs(logits, labels, indices) of the batch before, shown again",
    }.get(needs.companions or "", f"{outputs} of another view of each image")
    companions = _require(method, "companions", inputs.companions, words)
    if isinstance(companions, Tensor):
        if needs.companions == "previous":
            raise UserError(f"method {method!r} needs companions in each call: {words}")
        companions = CompanionOutputs(companions, labels, indices)
    if needs.features and companions.features is None:
        raise UserError(f"method {method!r} needs companions in each call: {words}")
    if needs.companions == "previous" and labels.shape[1] > context.batch_size:
        raise UserError(f"batch_size = {context.batch_size} is the largest batch: got {labels.shape[1]} images")
    logits = companions.logits if needs.companion_gradient else companions.logits.detach()
    features = companions.features and _features_with_axis(companions.features, n)
    if features and not needs.companion_gradient:
        features = features.map(Tensor.detach)
    own, which = _with_axis(companions.labels, 1, n), _with_axis(companions.indices, 1, n)
    logits = _check_logits("logits of companions", logits, own, context.num_classes)
    return CompanionOutputs(logits, own, which, features)


@dataclass
class EpochSums:
    """Sums over the samples that each of P candidates was trained on in an epoch."""

    candidates: int
    names: list[str] = field(default_factory=list)
    """Names of the terms of the loss; empty where it has one only."""
    samples: list[int] = field(default_factory=list)
    """How many images each candidate was trained on."""
    rows: Tensor | None = None
    """(P,4+T) float64: sums of the loss, of correct predictions, of the label's probability, of the entropy, and of T
    terms of the loss; None before the first step."""

    def add(self, first: int, loss: StepLoss, size: int) -> None:
        """Add a step of candidates `first`, `first + 1`, ... on `size` images each."""
        terms = loss.terms if len(loss.terms) > 1 else {}
        means = [loss.total, *terms.values()]
        sums = [means[0].detach().double() * size, *(part.double() for part in loss.statistics)]
        sums += [term.detach().double() * size for term in means[1:]]
        own = torch.stack(sums, dim=1)
        if self.rows is None:
            self.names, self.samples = list(terms), [0] * self.candidates
            self.rows = own.new_zeros(self.candidates, own.shape[1])
        self.rows[first : first + len(own)] += own
        for slot in range(first, first + len(own)):
            self.samples[slot] += size

    def statistics(self) -> list[TrainingStatistics]:
        """Means of each candidate that was trained; the host waits for the device here."""
        means = []
        for row, samples in zip([] if self.rows is None else self.rows.tolist(), self.samples, strict=True):
            loss, correct, true_probability, entropy, *terms = (total / max(samples, 1) for total in row)
            named = dict(zip(self.names, terms, strict=True))
            means.append(TrainingStatistics(loss, correct, true_probability, entropy, named))
        return means

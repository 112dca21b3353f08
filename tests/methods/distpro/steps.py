"""Steps of training on random images, for methods that look ahead: a small student, a small teacher."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from tests.methods.steps import rollback
from tfkd_fast.data import Batch
from tfkd_fast.methods import Context
from tfkd_fast.methods.base import StepBatch, TeacherFacts, TeacherOutputs
from tfkd_fast.methods.distpro.student import PathwayStudent
from tfkd_fast.models import Features, FeatureShapes, ModelSettings, build_model, feature_shapes

CLASSES, BATCH = 10, 6
CPU = torch.device("cpu")


def network(name: str = "vgg8", seed: int = 0) -> nn.Module:
    built = build_model(ModelSettings(name=name, width=0.125), CLASSES, 3, seed)
    return built.to(memory_format=torch.channels_last)


def shapes(name: str = "vgg8") -> FeatureShapes:
    return feature_shapes(network(name), (3, 32, 32))


def context(
    student: str = "vgg8", teacher: str = "vgg13", *, taught: FeatureShapes | None = None, epochs: int = 4
) -> Context:
    facts = TeacherFacts("teacher", teacher, tuple(range(CLASSES)), taught or shapes(teacher))
    return Context(
        CLASSES, 100, epochs, 0, CPU, lambda epoch: 1.0, model=student, shapes=shapes(student), teachers=(facts,)
    )


def draw_batch(seed: int, count: int = BATCH) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return Batch(images, labels, torch.randperm(100, generator=generator)[:count])


def in_front(features: Features) -> Features:
    """With an axis for one candidate."""
    return features.map(lambda maps: maps.unsqueeze(0))


def outputs(teacher: nn.Module, images: Tensor) -> tuple[TeacherOutputs]:
    with torch.no_grad():
        logits, features = teacher.eval()(images, return_features=True)
    return (TeacherOutputs(logits.unsqueeze(0), in_front(features)),)


class Step:
    """A `TrainingStep` of a method's student, by torch alone."""

    learning_rate = 0.05
    weight_decay = 5e-4

    def __init__(
        self,
        method: PathwayStudent,
        student: nn.Module,
        taught: Sequence[TeacherOutputs],
        batch: Batch,
        held_out: Batch,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
    ) -> None:
        self.method, self.student, self.batch = method, student.train(), batch
        self.momentum, self.nesterov = momentum, nesterov
        self.weights: list[Tensor] = [*student.parameters(), *method.adapters.parameters()]
        generator = torch.Generator().manual_seed(9)
        self.momenta = [1e-2 * torch.randn(w.shape, generator=generator).to(w) for w in self.weights]
        self.taught, self.held_out = tuple(taught), held_out

    def loss(self) -> Tensor:
        logits, features = self.student(self.batch.images, return_features=True)
        shown = StepBatch(
            self.batch.labels.unsqueeze(0),
            self.batch.indices.unsqueeze(0),
            features=in_front(features),
            teachers=self.taught,
        )
        return self.method.loss(logits.unsqueeze(0), shown).total[0]

    def descend(self, gradients: Sequence[Tensor]) -> None:
        raise AssertionError("the search takes the step by hand")

    def holdout(self) -> Batch:
        return self.held_out

    def teach(self, images: Tensor) -> tuple[TeacherOutputs, ...]:
        raise AssertionError("the validation loss is that of the label alone")

    def tensors(self) -> list[Tensor]:
        """All that a step may change."""
        return [*self.weights, *self.momenta, *self.student.buffers(), *self.method.adapters.buffers()]

    def rollback(self) -> AbstractContextManager[None]:
        return rollback(self.tensors())

    def take(self) -> None:
        """The step itself."""
        gradients = torch.autograd.grad(self.loss(), self.weights, allow_unused=True)
        with torch.no_grad():
            for weight, gradient, momentum in zip(self.weights, gradients, self.momenta, strict=True):
                full = self.weight_decay * weight + (0.0 if gradient is None else gradient)
                momentum.mul_(self.momentum).add_(full)
                weight.sub_(self.learning_rate * (full + self.momentum * momentum if self.nesterov else momentum))

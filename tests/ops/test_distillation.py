"""distillation_loss against float64 formulas, torch's own losses and finite differences, for every backend here."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.losses import TOLERANCE, assert_graph_follows, assert_near, call, operator_of
from tfkd_fast.ops import distillation_loss, soft_target_loss

loss_of: Any = partial(call, distillation_loss)


def problem(
    batch: int, classes: int, *, teachers: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (B,C), teacher logits (M,B,C), labels, and weights (B,M) of which some are 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    teacher_logits = 4 * torch.randn(teachers, batch, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    weights = torch.rand(batch, teachers, generator=generator, dtype=torch.float64)
    weights[weights < 0.2] = 0.0
    return logits.to(dtype), teacher_logits.to(dtype), labels, weights


def formula(
    logits: Tensor, teachers: Tensor, labels: Tensor, weights: Tensor, temperature: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """Loss of each sample and its gradient, from torch's losses and autograd in float64."""
    z = logits.detach().double().requires_grad_()
    log_softened = (z / temperature).log_softmax(-1)
    loss = (1 - alpha) * F.cross_entropy(z, labels, reduction="none")
    for m, teacher in enumerate(teachers.double()):
        kl = F.kl_div(log_softened, (teacher / temperature).log_softmax(-1), reduction="none", log_target=True).sum(-1)
        loss = loss + alpha * weights[:, m].double() * temperature**2 * kl
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (4.0, 0.9), (2.5, 0.3), (0.5, 0.0)])
@pytest.mark.parametrize("teachers", [1, 3])
def test_loss_and_gradient(backend: Any, teachers: int, temperature: float, alpha: float, dtype: torch.dtype) -> None:
    logits, teacher_logits, labels, weights = problem(7, 10, teachers=teachers, dtype=dtype)
    losses, gradients = formula(logits, teacher_logits, labels, weights, temperature, alpha)
    keywords = {"temperature": temperature, "alpha": alpha, "teacher_weights": weights}
    loss = loss_of(backend, logits.requires_grad_(), teacher_logits, labels, **keywords)
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == loss_dtype
    assert_near(loss.detach(), losses.mean(), TOLERANCE[loss_dtype])
    (5 * loss).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert_near(logits.grad, 5 * gradients / 7, TOLERANCE[dtype])


@pytest.mark.parametrize(("student", "teacher"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_dtypes_may_differ(backend: Any, student: torch.dtype, teacher: torch.dtype) -> None:
    logits, teacher_logits, labels, weights = problem(5, 9)
    logits, teacher_logits = logits.to(student), teacher_logits.to(teacher)
    losses, gradients = formula(logits, teacher_logits, labels, weights, 2.0, 0.9)
    loss = loss_of(backend, logits.requires_grad_(), teacher_logits, labels, temperature=2.0, teacher_weights=weights)
    loss.backward()
    assert logits.grad is not None
    assert_near(loss.detach(), losses.mean(), TOLERANCE[torch.float32])
    assert_near(logits.grad, gradients / 5, TOLERANCE[student])


def test_defaults(backend: Any) -> None:
    """Two axes are one teacher; teachers count the same; without labels there is no cross-entropy and no alpha."""
    logits, teachers, labels, _ = problem(6, 5, dtype=torch.float32)
    one = torch.ones(6, 1)
    losses, _ = formula(logits, teachers[:1], labels, one, 4.0, 1.0)
    assert_near(loss_of(backend, logits, teachers[0]), losses.mean(), 2e-6)
    losses, _ = formula(logits, teachers[:1], labels, one, 4.0, 0.9)
    assert_near(loss_of(backend, logits, teachers[0], labels), losses.mean(), 2e-6)
    losses, _ = formula(logits, teachers, labels, one.expand(6, 2) / 2, 4.0, 1.0)
    assert_near(loss_of(backend, logits, teachers, reduction="sum"), losses.sum(), 2e-6)
    losses, _ = formula(logits, teachers, labels, torch.tensor([0.7, 0.3]).expand(6, 2), 4.0, 1.0)
    by_teacher = loss_of(backend, logits, teachers, teacher_weights=torch.tensor([0.7, 0.3]), reduction="none")
    assert_near(by_teacher, losses, 2e-6)


def test_one_teacher_is_a_soft_target(backend: Any) -> None:
    logits, teachers, labels, _ = problem(6, 5)
    target = (teachers[0] / 3).softmax(-1)
    soft = call(soft_target_loss, backend, logits, labels, target, temperature=3.0, hard_weight=0.25, rows="sample")
    torch.testing.assert_close(loss_of(backend, logits, teachers[0], labels, temperature=3.0, alpha=0.75), soft)


@pytest.mark.parametrize("own_teachers", [False, True])
def test_candidates_are_independent(backend: Any, own_teachers: bool) -> None:
    problems = [problem(6, 5, seed=seed) for seed in range(3)]
    logits, teachers, labels, weights = (torch.stack(tensors) for tensors in zip(*problems, strict=True))
    temperature, alpha = torch.tensor([1.0, 3.0, 2.0]).double(), torch.tensor([0.0, 0.4, 1.0]).double()
    if not own_teachers:
        teachers, labels, weights = teachers[0], labels[0], weights[0]
    keywords = {"temperature": temperature, "alpha": alpha, "teacher_weights": weights}
    loss = loss_of(backend, logits.requires_grad_(), teachers, labels, **keywords)
    assert loss.shape == (3,)
    loss.sum().backward()
    assert logits.grad is not None
    for p in range(3):
        own = (teachers[p], labels[p], weights[p]) if own_teachers else (teachers, labels, weights)
        losses, gradients = formula(logits[p], *own, float(temperature[p]), float(alpha[p]))
        torch.testing.assert_close(loss[p].detach(), losses.mean())
        torch.testing.assert_close(logits.grad[p], gradients / 6)


@settings(max_examples=30)
@given(
    batch=st.integers(1, 20),
    classes=st.integers(1, 70),
    teachers=st.integers(1, 4),
    temperature=st.floats(0.2, 20.0),
    alpha=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    backend: Any, batch: int, classes: int, teachers: int, temperature: float, alpha: float, seed: int
) -> None:
    logits, teacher_logits, labels, weights = problem(batch, classes, teachers=teachers, dtype=torch.float32, seed=seed)
    losses, gradients = formula(logits, teacher_logits, labels, weights, temperature, alpha)
    keywords = {"temperature": temperature, "alpha": alpha, "teacher_weights": weights}
    loss = loss_of(backend, logits.requires_grad_(), teacher_logits, labels, **keywords)
    loss.backward()
    assert logits.grad is not None
    # As for the soft targets: an exponent z/T is off by 6e-8 |z/T|, and so is, relatively, every probability.
    largest = float(torch.cat([logits.detach().flatten(), teacher_logits.flatten()]).abs().max())
    exponent = (1.0 + largest * max(1.0, 1.0 / temperature)) * (1.0 + teachers)
    assert abs(loss.item() - losses.mean().item()) <= 1e-6 * max(1.0, temperature**2) * exponent
    atol = 1e-6 * max(1.0, temperature) * exponent / batch
    torch.testing.assert_close(logits.grad.double(), gradients / batch, rtol=0.0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [100, 1000, 1500, 20_000])
def test_many_classes(backend: Any, classes: int, dtype: torch.dtype) -> None:
    logits, teachers, labels, weights = problem(3, classes, dtype=dtype)
    losses, gradients = formula(logits, teachers, labels, weights, 2.0, 0.7)
    keywords = {"temperature": 2.0, "alpha": 0.7, "teacher_weights": weights, "reduction": "none"}
    loss = loss_of(backend, logits.requires_grad_(), teachers, labels, **keywords)
    loss.sum().backward()
    assert logits.grad is not None
    roundings = 2e-6 + 6e-8 * classes**0.5  # C rounded terms are summed in float32: of the roundings sqrt(C) add up
    assert_near(loss.detach(), losses, roundings)
    assert_near(logits.grad, gradients, max(TOLERANCE[dtype], roundings))


def test_strides_do_not_matter(backend: Any) -> None:
    logits, teachers, labels, weights = problem(6, 5)
    strided = logits.t().contiguous().t().requires_grad_()
    loss = loss_of(
        backend,
        strided,
        teachers.transpose(0, 2).contiguous().transpose(0, 2),
        torch.stack([labels, labels], 1)[:, 0],
        teacher_weights=weights.t().contiguous().t(),
    )
    loss.backward()
    losses, gradients = formula(logits, teachers, labels, weights, 4.0, 0.9)
    torch.testing.assert_close(loss.detach(), losses.mean())
    torch.testing.assert_close(strided.grad, gradients / 6)


def test_infinity_and_nan_as_in_the_reference(backend: Any) -> None:
    """Row by row, in the student and in a teacher; a teacher of weight 0 adds nothing, whatever it says."""
    inf, nan = float("inf"), float("nan")
    rows = [[-inf, 0.0, 1.0], [inf, 0.0, 1.0], [nan, 0.0, 1.0], [-inf, -inf, -inf], [1e4, -1e4, 0.0], [1.0, 0.0, 2.0]]
    odd, plain = torch.tensor(rows), torch.tensor([[0.5, 0.0, -1.0]]).expand(6, 3)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    for student, teacher, weights in (
        (odd, plain, [1.0, 1.0]),
        (plain, odd, [1.0, 1.0]),
        (plain, odd, [0.0, 1.0]),
    ):
        keywords = {"temperature": 2.0, "teacher_weights": torch.tensor(weights), "reduction": "none"}
        teachers = torch.stack([teacher, plain])
        actual, expected = student.clone().requires_grad_(), student.clone().requires_grad_()
        loss = loss_of(backend, actual, teachers, labels, **keywords)
        reference = distillation_loss(expected, teachers, labels, backend="reference", **keywords)  # type: ignore[arg-type]
        loss.sum().backward()
        reference.sum().backward()
        torch.testing.assert_close(loss, reference, equal_nan=True)
        torch.testing.assert_close(actual.grad, expected.grad, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 100, 1500])
@pytest.mark.parametrize("student_too", [True, False])
def test_classes_that_are_left_out(backend: Any, student_too: bool, classes: int, dtype: torch.dtype) -> None:
    """-inf, other classes in each row: for teachers and student it is as if they were not there, and they get no
    gradient; for the teachers alone they are classes of probability 0."""
    logits, teachers, labels, _ = problem(5, classes, dtype=dtype)
    out = torch.rand(5, classes, generator=torch.Generator().manual_seed(1)) < 0.6
    out[0], out[1] = torch.arange(classes) == labels[0], torch.arange(classes) != labels[1]  # the label, all but it
    out[range(2, 5), labels[2:]] = False
    odd = logits.masked_fill(out, -torch.inf) if student_too else logits.clone()
    loss = loss_of(backend, odd.requires_grad_(), teachers.masked_fill(out, -torch.inf), temperature=2.0)
    loss.backward()
    expected, gradient = 0.0, torch.zeros(5, classes, dtype=torch.float64)
    for i, left in enumerate(~out):
        z, known = logits[i].double().requires_grad_(), left if student_too else torch.ones_like(left)
        predicted = (z / 2.0)[known].log_softmax(-1)[left[known]]
        for teacher in teachers[:, i, left].double():
            log_p = (teacher / 2.0).log_softmax(-1)
            of_teacher = 2.0**2 * (log_p.exp() * (log_p - predicted)).sum() / (5 * len(teachers))
            expected += of_teacher.item()
            gradient[i] += torch.autograd.grad(of_teacher, z, retain_graph=True)[0]
    assert odd.grad is not None
    roundings = 2e-6 + 6e-8 * classes**0.5
    assert_near(loss.detach(), torch.tensor(expected), roundings)
    assert_near(odd.grad, gradient, max(TOLERANCE[dtype], roundings))
    if student_too:
        assert not odd.grad[out].any()


def test_empty_batch(backend: Any) -> None:
    logits, labels = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = loss_of(backend, logits, torch.zeros(2, 0, 3), labels)
    loss.backward()
    assert bool(loss.isnan())  # as torch.nn.functional.cross_entropy
    assert logits.grad is not None
    assert logits.grad.shape == (0, 3)
    assert loss_of(backend, logits, torch.zeros(2, 0, 3), labels, reduction="sum").item() == 0.0


def test_gradcheck(backend: Any) -> None:
    logits, teachers, labels, weights = problem(4, 5)

    def loss(z: Tensor) -> Tensor:
        return loss_of(backend, z, teachers, labels, temperature=2.0, teacher_weights=weights)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def test_teachers_are_constants(backend: Any) -> None:
    logits, teachers, labels, weights = problem(4, 5)
    loss = loss_of(
        backend, logits.requires_grad_(), teachers.requires_grad_(), labels, teacher_weights=weights.requires_grad_()
    )
    loss.backward()
    assert logits.grad is not None
    assert teachers.grad is None
    assert weights.grad is None


def test_vmap_is_a_call_for_each(backend: Any) -> None:
    problems = [problem(6, 5, seed=seed, dtype=torch.float32) for seed in range(3)]
    logits, teachers, labels, weights = (torch.stack(tensors) for tensors in zip(*problems, strict=True))
    weights = weights.float()

    def loss(z: Tensor, t: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return loss_of(backend, z, t, y, teacher_weights=w)

    each = torch.stack([loss(*case) for case in zip(logits, teachers, labels, weights, strict=True)])
    torch.testing.assert_close(torch.func.vmap(loss)(logits, teachers, labels, weights), each)
    shared = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None, None))
    expected = torch.stack([torch.func.grad(loss)(z, teachers[0], labels[0], weights[0]) for z in logits])
    torch.testing.assert_close(shared(logits, teachers[0], labels[0], weights[0]), expected)


def test_compiles_as_one_graph(backend: Any) -> None:
    logits, teachers, labels, weights = (tensor.to(backend.device) for tensor in problem(6, 5, dtype=torch.float32))

    def loss(z: Tensor, alpha: Tensor) -> Tensor:
        return distillation_loss(z, teachers, labels, alpha=alpha, teacher_weights=weights, backend=backend.name)

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="inductor" if backend.name == "cpp" else "aot_eager")
    results = []
    for function in (loss, compiled):
        z = logits.clone().requires_grad_()
        value = function(z, torch.tensor(0.4, device=backend.device))
        value.backward()
        results.append((value, z.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("batch", [6, 0])
def test_registration(backend: Any, batch: int) -> None:
    operator = operator_of(backend, "distillation_loss")
    logits, teachers, labels, weights = (tensor.to(backend.device) for tensor in problem(batch, 5, dtype=torch.float32))
    settings_ = (
        torch.tensor(2.0, device=backend.device),
        torch.tensor(0.5, device=backend.device),
        "mean" if batch else "sum",
    )
    torch.library.opcheck(operator, (logits, teachers, labels, weights.float(), *settings_))
    torch.library.opcheck(operator, (logits, teachers, None, None, *settings_))


@pytest.mark.gpu
def test_a_captured_graph_follows_its_inputs_and_never_waits(backend: Any) -> None:
    if backend.device.type != "cuda":
        pytest.skip("a backend of the CPU")
    logits, teachers, labels, _ = (tensor.cuda() for tensor in problem(128, 100, dtype=torch.float32))
    alpha = torch.tensor(0.9, device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        z = logits.detach().requires_grad_()
        loss = distillation_loss(z, teachers, labels, alpha=alpha, backend=backend.name)
        return loss.detach(), torch.autograd.grad(loss, z)[0]

    def change() -> None:
        logits.mul_(2)
        alpha.fill_(0.5)

    assert_graph_follows(step, change)


@pytest.mark.parametrize("label", [-100, 5])
def test_a_label_out_of_range_is_refused(backend: Any, label: int) -> None:
    if backend.device.type == "cuda":
        pytest.skip("a device-side assertion ends the process' use of the device")
    labels = torch.tensor([0, label])
    if backend.name == "triton":
        loss = loss_of(backend, torch.zeros(2, 5), torch.zeros(2, 5), labels, reduction="none")
        assert loss.isnan().tolist() == [False, True]
        return
    with pytest.raises((IndexError, RuntimeError), match=r"label|out of bounds"):
        loss_of(backend, torch.zeros(2, 5), torch.zeros(2, 5), labels)


Z, T, Y = torch.zeros(4, 3), torch.zeros(2, 4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((Z, T.int(), Y), {}, TypeError, "teacher_logits must be floating point"),
        ((Z, T[:, :3], Y), {}, ValueError, r"teacher_logits must be \(B,C\), \(M,B,C\) or \(P,M,B,C\)"),
        ((Z, T[0, 0], Y), {}, ValueError, "teacher_logits must be"),
        ((Z.expand(5, 4, 3), T.expand(6, 2, 4, 3), Y), {}, ValueError, "teacher_logits must be"),
        ((Z, T), {"alpha": 0.5}, ValueError, "alpha weighs the teachers against the labels: give labels too"),
        ((Z, T, Y), {"alpha": 1.5}, ValueError, r"alpha must be in 0\.\.1, got 1.5"),
        ((Z, T, Y), {"temperature": -1.0}, ValueError, "temperature must be positive and finite"),
        ((Z, T, Y), {"teacher_weights": torch.ones(3)}, ValueError, r"teacher_weights must be \(M,\), \(B,M\)"),
        ((Z, T, Y), {"teacher_weights": torch.ones(2).int()}, TypeError, "teacher_weights must be floating point"),
        ((Z, T, Y[:2]), {}, ValueError, r"labels must be \(4,\)"),
        ((Z, T, Y), {"reduction": "batchmean"}, ValueError, "reduction must be"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, keywords: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        distillation_loss(*arguments, **keywords)

"""soft_target_loss against float64 formulas, torch's own losses and finite differences, for every backend here."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tfkd_fast.ops import SoftTargetStats, backends, soft_target_loss, soft_target_loss_with_stats

needs_cpp = pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
every_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("cpp", marks=needs_cpp)])

# Relative to the largest entry. float32: a few dozen roundings of 6e-8. Halves: one rounding of the gradient, 2^-9
# (bf16) or 2^-12 (fp16), and one of its product with the upstream gradient.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0.0, atol=tolerance * max(scale, 1e-2), equal_nan=True
    )


def problem(
    batch: int,
    classes: int,
    *,
    candidates: int | None = None,
    rows: str = "class",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and targets with some exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if candidates is None else (candidates,)
    logits = (3 * torch.randn(*lead, batch, classes, generator=generator, dtype=torch.float64)).to(dtype)
    labels = torch.randint(classes, (*lead, batch), generator=generator)
    height = classes if rows == "class" else batch
    targets = torch.rand(*lead, height, classes, generator=generator, dtype=torch.float64)
    targets[targets < 0.3] = 0.0
    targets[..., 0] += 0.1
    return logits, labels, targets / targets.sum(-1, keepdim=True)


def formula(
    logits: Tensor, labels: Tensor, targets: Tensor, temperature: float, hard_weight: float, rows: str
) -> tuple[Tensor, Tensor]:
    """Loss of each sample and its gradient in the sample's logits, written out in float64 for one candidate."""
    logits, targets = logits.detach().double(), targets.double()
    losses, gradients = [], []
    for i, z in enumerate(logits):
        q = targets[labels[i]] if rows == "class" else targets[i]
        y = F.one_hot(labels[i], len(z)).double()
        p_soft, p = (z / temperature).softmax(0), z.softmax(0)
        kl = F.kl_div((z / temperature).log_softmax(0), q, reduction="sum")
        ce = F.cross_entropy(z, labels[i])
        losses.append((1 - hard_weight) * temperature**2 * kl + hard_weight * ce)
        gradients.append((1 - hard_weight) * temperature * (p_soft - q) + hard_weight * (p - y))
    return torch.stack(losses), torch.stack(gradients)


@every_backend
@pytest.mark.parametrize("rows", ["class", "sample"])
@pytest.mark.parametrize(("temperature", "hard_weight"), [(1.0, 0.0), (4.0, 0.0), (1.0, 0.3), (2.5, 0.7), (0.5, 1.0)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_loss_and_gradient(backend: str, rows: Any, temperature: float, hard_weight: float, dtype: torch.dtype) -> None:
    logits, labels, targets = problem(7, 10, rows=rows, dtype=dtype)
    logits.requires_grad_()
    losses, gradients = formula(logits, labels, targets, temperature, hard_weight, rows)
    loss = soft_target_loss(
        logits, labels, targets, temperature=temperature, hard_weight=hard_weight, rows=rows, backend=backend
    )
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == loss_dtype
    assert loss.shape == ()
    assert_near(loss.detach(), losses.mean(), TOLERANCE[loss_dtype])
    (5 * loss).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert_near(logits.grad, 5 * gradients / 7, TOLERANCE[dtype])


@every_backend
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(backend: str, reduction: Any) -> None:
    logits, labels, targets = problem(5, 3)
    logits.requires_grad_()
    losses, gradients = formula(logits, labels, targets, 2.0, 0.25, "class")
    loss = soft_target_loss(
        logits, labels, targets, temperature=2.0, hard_weight=0.25, reduction=reduction, backend=backend
    )
    upstream = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64) if reduction == "none" else torch.tensor(3.0).double()
    expected = {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward(upstream)
    weight = {"mean": upstream / 5, "sum": upstream, "none": upstream.unsqueeze(-1)}[reduction]
    torch.testing.assert_close(logits.grad, weight * gradients)


@every_backend
def test_one_hot_targets_are_cross_entropy(backend: str) -> None:
    logits, labels, _ = problem(64, 100, dtype=torch.float32)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = soft_target_loss(ours, labels, torch.eye(100), backend=backend)
    expected = F.cross_entropy(theirs, labels)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@every_backend
def test_label_smoothing_is_torchs_up_to_the_entropy_of_the_target(backend: str) -> None:
    logits, labels, _ = problem(64, 10, dtype=torch.float32)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    table = 0.9 * torch.eye(10) + 0.1 / 10
    loss = soft_target_loss(ours, labels, table, backend=backend)
    expected = F.cross_entropy(theirs, labels, label_smoothing=0.1)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss + torch.special.entr(table[0]).sum(), expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@every_backend
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rows", ["class", "sample"])
def test_candidates_are_independent(backend: str, rows: Any, shared: bool) -> None:
    """With the P axis each candidate has the loss and the gradient that it has alone."""
    logits, labels, targets = problem(6, 5, candidates=3, rows=rows)
    temperature, hard_weight = torch.tensor([1.0, 3.0, 2.0]).double(), torch.tensor([0.0, 0.4, 1.0]).double()
    if shared:
        labels, targets = labels[0], targets[0]
    logits.requires_grad_()
    loss = soft_target_loss(
        logits, labels, targets, temperature=temperature, hard_weight=hard_weight, rows=rows, backend=backend
    )
    assert loss.shape == (3,)
    loss.sum().backward()
    assert logits.grad is not None
    for p in range(3):
        own = (labels, targets) if shared else (labels[p], targets[p])
        losses, gradients = formula(logits[p], *own, float(temperature[p]), float(hard_weight[p]), rows)
        torch.testing.assert_close(loss[p].detach(), losses.mean())
        torch.testing.assert_close(logits.grad[p], gradients / 6)


@every_backend
def test_rows_decide_when_the_batch_is_as_large_as_the_classes(backend: str) -> None:
    logits, _, targets = problem(4, 4)
    labels = torch.tensor([3, 2, 1, 0])
    by_class = soft_target_loss(logits, labels, targets, rows="class", backend=backend)
    by_sample = soft_target_loss(logits, labels, targets, rows="sample", backend=backend)
    torch.testing.assert_close(by_sample, soft_target_loss(logits, labels, targets.flip(0), backend=backend))
    assert not torch.isclose(by_class, by_sample)


@every_backend
def test_tensors_of_settings_equal_numbers(backend: str) -> None:
    logits, labels, targets = problem(6, 5, dtype=torch.float32)
    by_number = soft_target_loss(logits, labels, targets, temperature=3.0, hard_weight=0.2, backend=backend)
    by_tensor = soft_target_loss(
        logits, labels, targets, temperature=torch.tensor(3.0), hard_weight=torch.tensor(0.2), backend=backend
    )
    assert torch.equal(by_number, by_tensor)


@every_backend
def test_strides_do_not_matter(backend: str) -> None:
    logits, labels, targets = problem(6, 5, candidates=2)
    strided = [
        logits.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_(),
        labels.t().contiguous().t(),
        targets.transpose(1, 2).contiguous().transpose(1, 2),
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    memory = torch.zeros(5, 5, 2).permute(2, 1, 0)
    plain = torch.zeros(2, 5, 5)
    temperature = torch.tensor([1.0, 9.0, 2.0, 9.0]).double()[::2]
    loss, stats = soft_target_loss_with_stats(*strided, memory, temperature=temperature, backend=backend)
    logits.requires_grad_()
    expected, expected_stats = soft_target_loss_with_stats(
        logits, labels, targets, plain, temperature=temperature.clone(), backend=backend
    )
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(strided[0].grad, logits.grad)
    torch.testing.assert_close(memory, plain)
    torch.testing.assert_close(stats, expected_stats)


@every_backend
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 40),
    classes=st.integers(1, 70),
    candidates=st.one_of(st.none(), st.integers(1, 3)),
    rows=st.sampled_from(["class", "sample"]),
    temperature=st.floats(0.1, 20.0),
    hard_weight=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    backend: str,
    batch: int,
    classes: int,
    candidates: int | None,
    rows: Any,
    temperature: float,
    hard_weight: float,
    seed: int,
) -> None:
    logits, labels, targets = problem(batch, classes, candidates=candidates, rows=rows, dtype=torch.float32, seed=seed)
    logits.requires_grad_()
    loss = soft_target_loss(
        logits, labels, targets, temperature=temperature, hard_weight=hard_weight, rows=rows, backend=backend
    )
    loss.sum().backward()
    assert logits.grad is not None
    cases = (
        [(logits, labels, targets, logits.grad)]
        if candidates is None
        else zip(logits, labels, targets, logits.grad, strict=True)
    )
    for (z, y, q, gradient), value in zip(cases, loss.detach().reshape(-1), strict=True):
        losses, gradients = formula(z, y, q, temperature, hard_weight, rows)
        # A float32 exponent z/T is off by 6e-8 |z/T|, and so is, relatively, every probability; both the loss and the
        # gradient are differences of such terms, whose sizes are known. 1e-6 leaves room for sums over the classes.
        exponent = 1.0 + float(z.detach().abs().max()) * max(1.0, 1.0 / temperature)
        assert abs(float(value) - float(losses.mean())) <= 1e-6 * max(1.0, temperature**2) * exponent
        atol = 1e-6 * max(1.0, temperature) * exponent / batch
        torch.testing.assert_close(gradient.double(), gradients / batch, rtol=0.0, atol=atol)


@every_backend
@pytest.mark.parametrize("with_stats", [False, True])
@pytest.mark.parametrize("rows", ["class", "sample"])
def test_gradcheck(backend: str, rows: Any, with_stats: bool) -> None:
    logits, labels, targets = problem(4, 5, candidates=2, rows=rows)
    temperature = torch.tensor([1.0, 2.0]).double()

    def loss(z: Tensor) -> Tensor:
        if with_stats:
            return soft_target_loss_with_stats(
                z, labels, targets, temperature=temperature, hard_weight=0.3, rows=rows, backend=backend
            )[0]
        return soft_target_loss(
            z, labels, targets, temperature=temperature, hard_weight=0.3, rows=rows, backend=backend
        )

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@needs_cpp
def test_a_second_derivative_is_refused() -> None:
    logits, labels, targets = problem(4, 5)
    loss = soft_target_loss(logits.requires_grad_(), labels, targets, backend="cpp")
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


@every_backend
def test_targets_and_settings_are_constants(backend: str) -> None:
    logits, labels, targets = problem(4, 5)
    targets.requires_grad_()
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = soft_target_loss(logits.requires_grad_(), labels, targets, temperature=temperature, backend=backend)
    loss.backward()
    assert logits.grad is not None
    assert targets.grad is None
    assert temperature.grad is None


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stats(backend: str, dtype: torch.dtype) -> None:
    logits, labels, targets = problem(50, 7, candidates=2, dtype=dtype)
    similarity = torch.full((2, 7, 7), 0.5)
    with torch.no_grad():
        loss, stats = soft_target_loss_with_stats(logits, labels, targets, similarity, temperature=3.0, backend=backend)
    torch.testing.assert_close(
        loss, soft_target_loss(logits, labels, targets, temperature=3.0, backend=backend), rtol=0, atol=0
    )
    p = logits.double().softmax(-1)
    expected = SoftTargetStats(
        correct=(logits.argmax(-1) == labels).sum(-1),
        true_probability=p.gather(-1, labels.unsqueeze(-1)).sum((-2, -1)),
        entropy=-(p * p.log()).sum((-2, -1)),
    )
    for name, value, truth in zip(SoftTargetStats._fields, stats, expected, strict=True):
        assert value.dtype == torch.float32, name
        assert value.shape == (2,), name
        torch.testing.assert_close(value, truth.float(), rtol=2e-6, atol=0)
    one_hot = F.one_hot(labels, 7).double()
    torch.testing.assert_close(similarity, (0.5 + one_hot.transpose(-1, -2) @ p).float(), rtol=2e-6, atol=1e-6)


@every_backend
def test_of_equal_logits_the_first_counts_and_a_row_that_is_not_a_number_does_not(backend: str) -> None:
    nan = float("nan")
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [nan, 1.0, 2.0], [0.0, nan, 2.0]])
    labels = torch.tensor([0, 1, 0, 2, 1])
    _, stats = soft_target_loss_with_stats(logits, labels, torch.eye(3), backend=backend)
    assert stats.correct.item() == 1.0


@every_backend
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_extreme_logits_are_finite_and_right(backend: str, temperature: float) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    labels = torch.tensor([0, 0, 2])
    targets = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.8, 0.0], [0.1, 0.0, 0.9]])
    losses, gradients = formula(logits, labels, targets, temperature, 0.5, "class")
    loss, stats = soft_target_loss_with_stats(
        logits, labels, targets, temperature=temperature, hard_weight=0.5, reduction="none", backend=backend
    )
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert all(bool(value.isfinite()) for value in stats)
    assert logits.grad is not None
    assert_near(loss.detach(), losses, 2e-7)
    assert_near(logits.grad, gradients, 2e-6)


@needs_cpp
@pytest.mark.parametrize("hard_weight", [0.0, 0.5, 1.0])
def test_infinity_and_nan_as_in_the_reference(hard_weight: float) -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor(
        [[-inf, 0.0, 1.0], [0.0, -inf, 1.0], [inf, 0.0, 1.0], [nan, 0.0, 1.0], [-inf, -inf, -inf], [0.0, 1.0, -inf]]
    )
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    results = []
    for backend in ("reference", "cpp"):
        z = logits.clone().requires_grad_()
        loss = soft_target_loss(
            z, labels, targets, temperature=2.0, hard_weight=hard_weight, reduction="none", backend=backend
        )
        loss.sum().backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(results[1], results[0], equal_nan=True)


@every_backend
def test_float16_survives_loss_scaling(backend: str) -> None:
    """torch.amp.GradScaler starts at 2^16, above the largest float16, and a gradient of 1/B is below the smallest."""
    logits = torch.full((4096, 2), 0.0, dtype=torch.float16).requires_grad_()
    labels = torch.zeros(4096, dtype=torch.int64)
    loss = soft_target_loss(logits, labels, torch.tensor([[0.5005, 0.4995], [0.0, 1.0]]), backend=backend)
    (loss * 2.0**16).backward()
    assert logits.grad is not None
    # The true value, (0.5 - 0.5005) * 2^16 / 4096 = -0.008, has one rounding in float16.
    torch.testing.assert_close(logits.grad[:, 0], torch.full((4096,), -0.008).half(), rtol=2e-3, atol=0)


@every_backend
def test_empty_batch(backend: str) -> None:
    logits, labels = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    similarity = torch.ones(3, 3)
    loss, stats = soft_target_loss_with_stats(logits, labels, torch.eye(3), similarity, backend=backend)
    loss.backward()
    assert bool(loss.isnan())  # as torch.nn.functional.cross_entropy
    assert logits.grad is not None
    assert logits.grad.shape == (0, 3)
    assert torch.equal(torch.stack(stats), torch.zeros(3))
    assert torch.equal(similarity, torch.ones(3, 3))
    assert soft_target_loss(logits, labels, torch.eye(3), reduction="sum", backend=backend).item() == 0.0


@needs_cpp
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    logits, labels, targets = problem(400, 100, candidates=2, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            z, similarity = logits.clone().requires_grad_(), torch.zeros(2, 100, 100)
            loss, stats = soft_target_loss_with_stats(z, labels, targets, similarity, backend="cpp")
            loss.sum().backward()
            results.append((loss.detach(), z.grad, similarity, *stats))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_backend
@pytest.mark.parametrize("with_stats", [False, True])
def test_compiles_as_one_graph(backend: str, with_stats: bool) -> None:
    logits, labels, targets = problem(6, 5, candidates=2, dtype=torch.float32)

    def outputs(z: Tensor, memory: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
        if not with_stats:
            return (soft_target_loss(z, labels, targets, temperature=temperature, hard_weight=0.3, backend=backend),)
        loss, stats = soft_target_loss_with_stats(
            z, labels, targets, memory, temperature=temperature, hard_weight=0.3, backend=backend
        )
        return (loss, *stats)

    torch.compiler.reset()
    compiled = torch.compile(outputs, fullgraph=True, backend="aot_eager")
    for temperature in (torch.tensor(1.0), torch.tensor([1.0, 2.5])):
        results = []
        for function in (outputs, compiled):
            z, memory = logits.clone().requires_grad_(), torch.zeros(2, 5, 5)
            values = function(z, memory, temperature)
            values[0].sum().backward()
            results.append((*values, z.grad, memory))
        torch.testing.assert_close(results[1], results[0])


@needs_cpp
@pytest.mark.parametrize("rows", ["class", "sample"])
@pytest.mark.parametrize(("batch", "reduction"), [(6, "mean"), (6, "none"), (0, "sum")])
def test_registration(rows: str, batch: int, reduction: str) -> None:
    """Schema, fake tensors and tracing of the C++ operators; the gradient is attached outside of them."""
    logits, labels, targets = problem(batch, 5, candidates=2, rows=rows, dtype=torch.float32)
    targets, transposed = targets.float(), logits.transpose(1, 2).contiguous().transpose(1, 2)
    keywords = {"class_rows": rows == "class", "reduction": reduction}
    for z, temperature in ((logits, None), (transposed, torch.tensor([1.0, 2.0]))):
        settings_ = (temperature, None)
        torch.library.opcheck(torch.ops.tfkd_fast.soft_target_loss.default, (z, labels, targets, *settings_), keywords)
        for similarity in (None, torch.zeros(2, 5, 5)):
            torch.library.opcheck(
                torch.ops.tfkd_fast.soft_target_loss_with_stats.default,
                (z, labels, targets, similarity, *settings_),
                keywords,
            )


@every_backend
@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_out_of_range_is_named(backend: str, label: int) -> None:
    labels = torch.tensor([0, label, 1])
    with pytest.raises(IndexError, match=rf"label {label} is not one of the C = 3 classes"):
        soft_target_loss(torch.zeros(3, 3), labels, torch.eye(3), backend=backend)


Z, Y, Q = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.eye(3)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((Z.int(), Y, Q), {}, TypeError, "logits must be float32"),
        ((Z, Y.int(), Q), {}, TypeError, "labels must be int64"),
        ((Z, Y, Q.int()), {}, TypeError, "targets must be floating point"),
        ((Z[0], Y, Q), {}, ValueError, r"logits must be \(B,C\) or \(P,B,C\) with C >= 1, got \(3,\)"),
        ((Z, Y[:3], Q), {}, ValueError, r"labels must be \(4,\) for these logits, got \(3,\)"),
        ((Z, Y, Q), {"rows": "sample"}, ValueError, r"targets must be \(4, 3\) for these logits, got \(3, 3\)"),
        ((Z.expand(2, 4, 3), Y.expand(3, 4), Q), {}, ValueError, r"labels must be \(4,\) or \(2, 4\)"),
        ((Z, Y, Q), {"rows": "row"}, ValueError, "rows must be"),
        ((Z, Y, Q), {"reduction": "batchmean"}, ValueError, "reduction must be"),
        ((Z, Y, Q), {"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ((Z, Y, Q), {"temperature": float("inf")}, ValueError, "temperature must be positive and finite"),
        ((Z, Y, Q), {"hard_weight": 1.5}, ValueError, r"hard_weight must be in 0\.\.1, got 1.5"),
        ((Z, Y, Q), {"hard_weight": float("nan")}, ValueError, "hard_weight must be in"),
        (
            (Z, Y, Q),
            {"temperature": torch.ones(2)},
            ValueError,
            r"temperature must be \(\) for these logits, got \(2,\)",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, keywords: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        soft_target_loss(*arguments, **keywords)


@pytest.mark.parametrize(
    ("similarity", "error"), [(torch.zeros(2, 3, 3), ValueError), (torch.zeros(3, 3).double(), TypeError)]
)
def test_a_similarity_that_does_not_fit(similarity: Tensor, error: Any) -> None:
    with pytest.raises(error, match="similarity must be"):
        soft_target_loss_with_stats(Z, Y, Q, similarity)

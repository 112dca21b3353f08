"""soft_target_loss against float64 formulas, torch's own losses and finite differences, for every backend here."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.losses import TOLERANCE, assert_near, call, operator_of
from tests.support.threads import using_threads
from tfkd_fast.ops import SoftTargetStats, soft_target_loss, soft_target_loss_with_stats


def loss_of(backend: Any, *args: Any, **keywords: Any) -> Tensor:
    return call(soft_target_loss, backend, *args, **keywords)


def loss_and_stats_of(
    backend: Any, logits: Tensor, labels: Tensor, targets: Tensor, similarity: Tensor | None = None, **keywords: Any
) -> tuple[Tensor, SoftTargetStats]:
    """`similarity` stays the tensor that is written to."""
    memory = None if similarity is None else similarity.to(backend.device)
    results = call(soft_target_loss_with_stats, backend, logits, labels, targets, memory, **keywords)
    if similarity is not None and memory is not similarity:
        similarity.copy_(memory)
    return results


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


@pytest.mark.parametrize("rows", ["class", "sample"])
@pytest.mark.parametrize(("temperature", "hard_weight"), [(1.0, 0.0), (4.0, 0.0), (1.0, 0.3), (2.5, 0.7), (0.5, 1.0)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_loss_and_gradient(backend: Any, rows: Any, temperature: float, hard_weight: float, dtype: torch.dtype) -> None:
    logits, labels, targets = problem(7, 10, rows=rows, dtype=dtype)
    logits.requires_grad_()
    losses, gradients = formula(logits, labels, targets, temperature, hard_weight, rows)
    loss = loss_of(backend, logits, labels, targets, temperature=temperature, hard_weight=hard_weight, rows=rows)
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == loss_dtype
    assert loss.shape == ()
    assert_near(loss.detach(), losses.mean(), TOLERANCE[loss_dtype])
    (5 * loss).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert_near(logits.grad, 5 * gradients / 7, TOLERANCE[dtype])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(backend: Any, reduction: Any) -> None:
    logits, labels, targets = problem(5, 3)
    logits.requires_grad_()
    losses, gradients = formula(logits, labels, targets, 2.0, 0.25, "class")
    loss = loss_of(backend, logits, labels, targets, temperature=2.0, hard_weight=0.25, reduction=reduction)
    upstream = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64) if reduction == "none" else torch.tensor(3.0).double()
    expected = {"mean": losses.mean(), "sum": losses.sum(), "none": losses}[reduction]
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward(upstream)
    weight = {"mean": upstream / 5, "sum": upstream, "none": upstream.unsqueeze(-1)}[reduction]
    torch.testing.assert_close(logits.grad, weight * gradients)


def test_one_hot_targets_are_cross_entropy(backend: Any) -> None:
    logits, labels, _ = problem(64, 100, dtype=torch.float32)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = loss_of(backend, ours, labels, torch.eye(100))
    expected = F.cross_entropy(theirs, labels)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_label_smoothing_is_torchs_up_to_the_entropy_of_the_target(backend: Any) -> None:
    logits, labels, _ = problem(64, 10, dtype=torch.float32)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    table = 0.9 * torch.eye(10) + 0.1 / 10
    loss = loss_of(backend, ours, labels, table)
    expected = F.cross_entropy(theirs, labels, label_smoothing=0.1)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss + torch.special.entr(table[0]).sum(), expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rows", ["class", "sample"])
def test_candidates_are_independent(backend: Any, rows: Any, shared: bool) -> None:
    """With the P axis each candidate has the loss and the gradient that it has alone."""
    logits, labels, targets = problem(6, 5, candidates=3, rows=rows)
    temperature, hard_weight = torch.tensor([1.0, 3.0, 2.0]).double(), torch.tensor([0.0, 0.4, 1.0]).double()
    if shared:
        labels, targets = labels[0], targets[0]
    logits.requires_grad_()
    loss = loss_of(backend, logits, labels, targets, temperature=temperature, hard_weight=hard_weight, rows=rows)
    assert loss.shape == (3,)
    loss.sum().backward()
    assert logits.grad is not None
    for p in range(3):
        own = (labels, targets) if shared else (labels[p], targets[p])
        losses, gradients = formula(logits[p], *own, float(temperature[p]), float(hard_weight[p]), rows)
        torch.testing.assert_close(loss[p].detach(), losses.mean())
        torch.testing.assert_close(logits.grad[p], gradients / 6)


def test_rows_decide_when_the_batch_is_as_large_as_the_classes(backend: Any) -> None:
    logits, _, targets = problem(4, 4)
    labels = torch.tensor([3, 2, 1, 0])
    by_class = loss_of(backend, logits, labels, targets, rows="class")
    by_sample = loss_of(backend, logits, labels, targets, rows="sample")
    torch.testing.assert_close(by_sample, loss_of(backend, logits, labels, targets.flip(0)))
    assert not torch.isclose(by_class, by_sample)


def test_tensors_of_settings_equal_numbers(backend: Any) -> None:
    logits, labels, targets = problem(6, 5, dtype=torch.float32)
    by_number = loss_of(backend, logits, labels, targets, temperature=3.0, hard_weight=0.2)
    by_tensor = loss_of(backend, logits, labels, targets, temperature=torch.tensor(3.0), hard_weight=torch.tensor(0.2))
    assert torch.equal(by_number, by_tensor)


def test_strides_do_not_matter(backend: Any) -> None:
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
    loss, stats = loss_and_stats_of(backend, *strided, memory, temperature=temperature)
    logits.requires_grad_()
    expected, expected_stats = loss_and_stats_of(
        backend, logits, labels, targets, plain, temperature=temperature.clone()
    )
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(strided[0].grad, logits.grad)
    torch.testing.assert_close(memory, plain)
    torch.testing.assert_close(stats, expected_stats)


@settings(max_examples=40)
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
    backend: Any,
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
    loss = loss_of(backend, logits, labels, targets, temperature=temperature, hard_weight=hard_weight, rows=rows)
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


@pytest.mark.parametrize("with_stats", [False, True])
@pytest.mark.parametrize("rows", ["class", "sample"])
def test_gradcheck(backend: Any, rows: Any, with_stats: bool) -> None:
    logits, labels, targets = problem(4, 5, candidates=2, rows=rows)
    temperature = torch.tensor([1.0, 2.0]).double()

    def loss(z: Tensor) -> Tensor:
        if with_stats:
            return loss_and_stats_of(backend, z, labels, targets, temperature=temperature, hard_weight=0.3, rows=rows)[
                0
            ]
        return loss_of(backend, z, labels, targets, temperature=temperature, hard_weight=0.3, rows=rows)

    # The interpreter takes seconds for a call with each number changed: there one drawn direction of all of them.
    assert torch.autograd.gradcheck(loss, logits.requires_grad_(), fast_mode=backend.slow)


def test_a_second_derivative_is_refused_or_right(backend: Any) -> None:
    logits, labels, targets = problem(4, 5)
    loss = loss_of(backend, logits.requires_grad_(), labels, targets)
    if backend.name == "reference":
        assert torch.autograd.gradgradcheck(lambda z: loss_of(backend, z, labels, targets), logits)
        return
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def test_targets_and_settings_are_constants(backend: Any) -> None:
    logits, labels, targets = problem(4, 5)
    targets.requires_grad_()
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = loss_of(backend, logits.requires_grad_(), labels, targets, temperature=temperature)
    loss.backward()
    assert logits.grad is not None
    assert targets.grad is None
    assert temperature.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stats(backend: Any, dtype: torch.dtype) -> None:
    logits, labels, targets = problem(50, 7, candidates=2, dtype=dtype)
    similarity = torch.full((2, 7, 7), 0.5)
    with torch.no_grad():
        loss, stats = loss_and_stats_of(backend, logits, labels, targets, similarity, temperature=3.0)
    torch.testing.assert_close(loss, loss_of(backend, logits, labels, targets, temperature=3.0), rtol=0, atol=0)
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


def test_of_equal_logits_the_first_counts_and_a_row_that_is_not_a_number_does_not(backend: Any) -> None:
    nan = float("nan")
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [nan, 1.0, 2.0], [0.0, nan, 2.0]])
    labels = torch.tensor([0, 1, 0, 2, 1])
    _, stats = loss_and_stats_of(backend, logits, labels, torch.eye(3))
    assert stats.correct.item() == 1.0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_extreme_logits_are_finite_and_right(backend: Any, temperature: float) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    labels = torch.tensor([0, 0, 2])
    targets = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.8, 0.0], [0.1, 0.0, 0.9]])
    losses, gradients = formula(logits, labels, targets, temperature, 0.5, "class")
    loss, stats = loss_and_stats_of(
        backend, logits, labels, targets, temperature=temperature, hard_weight=0.5, reduction="none"
    )
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert all(bool(value.isfinite()) for value in stats)
    assert logits.grad is not None
    assert_near(loss.detach(), losses, 2e-7)
    assert_near(logits.grad, gradients, 2e-6)


@pytest.mark.parametrize("hard_weight", [0.0, 0.5, 1.0])
def test_infinity_and_nan_as_in_the_reference(backend: Any, hard_weight: float) -> None:
    """Row by row: a row that is not finite does not disturb the others."""
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor(
        [[-inf, 0.0, 1.0], [0.0, -inf, 1.0], [inf, 0.0, 1.0], [nan, 0.0, 1.0], [-inf, -inf, -inf], [0.0, 1.0, -inf]]
    )
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    keywords = {"temperature": 2.0, "hard_weight": hard_weight, "reduction": "none"}
    actual, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = loss_of(backend, actual, labels, targets, **keywords)
    reference = soft_target_loss(expected, labels, targets, backend="reference", **keywords)
    loss.sum().backward()
    reference.sum().backward()
    torch.testing.assert_close(loss, reference, equal_nan=True)
    torch.testing.assert_close(actual.grad, expected.grad, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 100, 1500])
def test_the_label_may_be_left_out(backend: Any, classes: int, dtype: torch.dtype) -> None:
    """A logit of -inf and a target of 0 for it: as if there were the other classes only."""
    logits, labels, targets = problem(5, classes, rows="sample", dtype=dtype)
    own = torch.arange(classes) == labels.unsqueeze(1)
    targets = (targets + 0.01).masked_fill(own, 0.0)
    targets /= targets.sum(1, keepdim=True)
    odd = logits.masked_fill(own, -torch.inf).requires_grad_()
    loss = loss_of(backend, odd, labels, targets, rows="sample")
    loss.backward()
    z = logits.double().requires_grad_()
    q, log_p = targets[~own].view(5, -1), z[~own].view(5, -1).log_softmax(-1)
    expected = (q * (q.log() - log_p)).sum(1).mean()
    (gradient,) = torch.autograd.grad(expected, z)
    assert odd.grad is not None
    roundings = 2e-6 + 6e-8 * classes**0.5
    assert_near(loss.detach(), expected.detach(), roundings)
    assert_near(odd.grad, gradient, max(TOLERANCE[dtype], roundings))
    assert not odd.grad[own].any()


def test_float16_survives_loss_scaling(backend: Any) -> None:
    """torch.amp.GradScaler starts at 2^16, above the largest float16, and a gradient of 1/B is below the smallest."""
    logits = torch.full((4096, 2), 0.0, dtype=torch.float16).requires_grad_()
    labels = torch.zeros(4096, dtype=torch.int64)
    loss = loss_of(backend, logits, labels, torch.tensor([[0.5005, 0.4995], [0.0, 1.0]]))
    (loss * 2.0**16).backward()
    assert logits.grad is not None
    # The true value, (0.5 - 0.5005) * 2^16 / 4096 = -0.008, has one rounding in float16.
    torch.testing.assert_close(logits.grad[:, 0], torch.full((4096,), -0.008).half(), rtol=2e-3, atol=0)


def test_empty_batch(backend: Any) -> None:
    logits, labels = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    similarity = torch.ones(3, 3)
    loss, stats = loss_and_stats_of(backend, logits, labels, torch.eye(3), similarity)
    loss.backward()
    assert bool(loss.isnan())  # as torch.nn.functional.cross_entropy
    assert logits.grad is not None
    assert logits.grad.shape == (0, 3)
    assert torch.equal(torch.stack(stats), torch.zeros(3))
    assert torch.equal(similarity, torch.ones(3, 3))
    assert loss_of(backend, logits, labels, torch.eye(3), reduction="sum").item() == 0.0


def test_results_do_not_depend_on_the_number_of_threads(backend: Any) -> None:
    if backend.name != "cpp":
        pytest.skip("the C++ operators alone promise it")
    logits, labels, targets = problem(400, 100, candidates=2, dtype=torch.float32)
    results = []
    for count in (1, 2, 3):
        with using_threads(count):
            z, similarity = logits.clone().requires_grad_(), torch.zeros(2, 100, 100)
            loss, stats = loss_and_stats_of(backend, z, labels, targets, similarity)
            loss.sum().backward()
            results.append((loss.detach(), z.grad, similarity, *stats))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_same_twice(backend: Any) -> None:
    """Sums have a fixed order, also where many blocks share a batch."""
    batch = 300 if backend.slow else 20_000
    logits, labels, targets = problem(batch, 100, dtype=torch.float32)
    results = []
    for _ in range(2):
        z = logits.clone().requires_grad_()
        loss, stats = loss_and_stats_of(backend, z, labels, targets)
        loss.backward()
        results.append((loss.detach(), z.grad, *stats))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [31, 100, 257, 1000, 1025, 5000, 40_000])
def test_many_classes(backend: Any, classes: int, dtype: torch.dtype) -> None:
    """From rows in registers to rows that are read twice; a row of the tensor begins anywhere in memory."""
    logits, labels, targets = problem(3, classes, rows="sample", dtype=dtype)
    losses, gradients = formula(logits, labels, targets, 2.0, 0.3, "sample")
    z = torch.cat([torch.zeros(1, dtype=dtype), logits.flatten()])[1:].view(3, classes).requires_grad_()
    loss, stats = loss_and_stats_of(
        backend, z, labels, targets, temperature=2.0, hard_weight=0.3, rows="sample", reduction="none"
    )
    loss.sum().backward()
    assert z.grad is not None
    probabilities = logits.double().softmax(-1)
    # C rounded terms are summed in float32, in any order: of the roundings, 6e-8 each, sqrt(C) add up.
    roundings = 2e-6 + 6e-8 * classes**0.5
    assert_near(loss.detach(), losses, roundings)
    assert_near(z.grad, gradients, max(TOLERANCE[dtype], roundings))
    assert_near(stats.entropy, torch.special.entr(probabilities).sum(), roundings)


@pytest.mark.parametrize("rows", ["class", "sample"])
def test_vmap_is_a_call_for_each(backend: Any, rows: Any) -> None:
    """Over candidates, over their temperatures and over gradients; a mapped population has both axes."""
    logits, labels, targets = problem(6, 5, candidates=3, rows=rows, dtype=torch.float32)
    temperatures = torch.tensor([1.0, 2.0, 4.0])

    def loss(z: Tensor, q: Tensor, temperature: Tensor) -> Tensor:
        return loss_of(backend, z, labels[0], q.float(), temperature=temperature, hard_weight=0.2, rows=rows)

    each = [loss(z, q, t) for z, q, t in zip(logits, targets, temperatures, strict=True)]
    torch.testing.assert_close(torch.func.vmap(loss)(logits, targets, temperatures), torch.stack(each))
    by_temperature = torch.func.vmap(loss, in_dims=(None, None, 0))(logits[0], targets[0], temperatures)
    torch.testing.assert_close(by_temperature, torch.stack([loss(logits[0], targets[0], t) for t in temperatures]))
    gradient = torch.func.grad(loss)
    torch.testing.assert_close(
        torch.func.vmap(gradient)(logits, targets, temperatures),
        torch.stack([gradient(z, q, t) for z, q, t in zip(logits, targets, temperatures, strict=True)]),
    )
    populations = torch.stack([logits, 2 * logits], dim=1)  # (P,V,B,C), mapped over V
    mapped = torch.func.vmap(loss, in_dims=(1, None, None), out_dims=1)(populations, targets, temperatures)
    torch.testing.assert_close(mapped[:, 1], loss(2 * logits, targets, temperatures))


@pytest.mark.parametrize("with_stats", [False, True])
def test_compiles_as_one_graph(backend: Any, with_stats: bool) -> None:
    logits, labels, targets = problem(6, 5, candidates=2, dtype=torch.float32)
    labels, targets = labels.to(backend.device), targets.to(backend.device)

    def outputs(z: Tensor, memory: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
        keywords: Any = {"temperature": temperature, "hard_weight": 0.3, "backend": backend.name}
        if not with_stats:
            return (soft_target_loss(z, labels, targets, **keywords),)
        loss, stats = soft_target_loss_with_stats(z, labels, targets, memory, **keywords)
        return (loss, *stats)

    torch.compiler.reset()
    # Inductor compiles C++ for seconds: once, for the call that also writes to an argument.
    inductor = backend.name == "cpp" and with_stats
    compiled = torch.compile(outputs, fullgraph=True, backend="inductor" if inductor else "aot_eager")
    for temperature in (torch.tensor(1.0), torch.tensor([1.0, 2.5])):
        results = []
        for function in (outputs, compiled):
            z = logits.to(backend.device, copy=True).requires_grad_()
            memory = torch.zeros(2, 5, 5, device=backend.device)
            values = function(z, memory, temperature.to(backend.device))
            values[0].sum().backward()
            results.append((*values, z.grad, memory))
        torch.testing.assert_close(results[1], results[0])


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [128, 20_000])
def test_a_captured_graph_follows_its_inputs_and_never_waits(backend: Any, batch: int) -> None:
    if backend.device.type != "cuda":
        pytest.skip("a backend of the CPU")
    logits, labels, targets = (tensor.cuda() for tensor in problem(batch, 100, dtype=torch.float32))
    targets = targets.float()
    logits.requires_grad_()
    temperature, similarity = torch.tensor(1.0, device="cuda"), torch.zeros(100, 100, device="cuda")

    def step() -> tuple[Tensor, ...]:
        loss, stats = soft_target_loss_with_stats(
            logits, labels, targets, similarity, temperature=temperature, backend=backend.name
        )
        return (*torch.autograd.grad(3 * loss, logits), loss.detach(), *stats)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        logits.copy_(2 * logits)
        temperature.fill_(4.0)
    similarity.zero_()
    graph.replay()
    replayed = [value.clone() for value in (*captured, similarity)]
    similarity.zero_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        eager = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for actual, expected in zip(replayed, (*eager, similarity), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("rows", ["class", "sample"])
@pytest.mark.parametrize(("batch", "reduction"), [(6, "mean"), (6, "none"), (0, "sum")])
def test_registration(backend: Any, rows: str, batch: int, reduction: str) -> None:
    """Schema, fake tensors and tracing of the operators; the gradient is attached outside of them."""
    plain, with_stats = (operator_of(backend, f"soft_target_loss{ending}") for ending in ("", "_with_stats"))
    logits, labels, targets = problem(batch, 5, candidates=2, rows=rows, dtype=torch.float32)
    logits, labels, targets = (tensor.to(backend.device) for tensor in (logits, labels, targets.float()))
    transposed = logits.transpose(1, 2).contiguous().transpose(1, 2)
    keywords = {"class_rows": rows == "class", "reduction": reduction}
    for z, temperature in ((logits, None), (transposed, torch.tensor([1.0, 2.0], device=backend.device))):
        torch.library.opcheck(plain, (z, labels, targets, temperature, None), keywords)
        for similarity in (None, torch.zeros(2, 5, 5, device=backend.device)):
            torch.library.opcheck(with_stats, (z, labels, targets, similarity, temperature, None), keywords)


@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_out_of_range_is_refused(backend: Any, label: int) -> None:
    """On a device that is an assertion, after which the process has lost the device: not tried here."""
    if backend.device.type == "cuda":
        pytest.skip("a device-side assertion ends the process' use of the device")
    if backend.name == "triton":
        loss = loss_of(backend, torch.zeros(3, 3), torch.tensor([0, label, 1]), torch.eye(3), reduction="none")
        assert loss.isnan().tolist() == [False, True, False]
        return
    with pytest.raises((IndexError, RuntimeError), match=r"label|out of bounds"):
        loss_of(backend, torch.zeros(3, 3), torch.tensor([0, label, 1]), torch.eye(3))


Z, Y, Q = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.eye(3)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((Z.int(), Y, Q), {}, TypeError, "logits must be float32"),
        ((Z, Y.int(), Q), {}, TypeError, "labels must be int64"),
        ((Z, Y, Q.int()), {}, TypeError, "targets must be floating point"),
        ((Z, Y, 0.5), {}, TypeError, "targets must be a tensor, got float: use torch.as_tensor"),
        ((Z[0], Y, Q), {}, ValueError, r"logits must be \(B,C\) or \(P,B,C\) with C >= 1, got \(3,\)"),
        ((Z, Y[:3], Q), {}, ValueError, r"labels must be \(4,\) for these logits, got \(3,\)"),
        ((Z, Y, Q), {"rows": "sample"}, ValueError, r"targets must be \(4, 3\) for these logits, got \(3, 3\)"),
        ((Z.expand(2, 4, 3), Y.expand(3, 4), Q), {}, ValueError, r"labels must be \(4,\) or \(2, 4\)"),
        ((Z, Y, Q), {"rows": "row"}, ValueError, "rows must be"),
        ((Z, Y, Q.to("meta")), {}, ValueError, "targets must be on the device of the logits, cpu, not on meta"),
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


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rows_that_sum_to_one_up_to_rounding_are_taken(dtype: torch.dtype) -> None:
    """1000 classes, each probability rounded to the dtype; a row with NaN is left to the loss, which shows it."""
    targets = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0)).softmax(-1).to(dtype)
    assert soft_target_loss(torch.zeros(3, 1000), Y[:3], targets, rows="sample").isfinite()
    targets[1, 0] = torch.nan
    assert soft_target_loss(torch.zeros(3, 1000), Y[:3], targets, rows="sample").isnan()


@pytest.mark.parametrize(
    ("similarity", "error"), [(torch.zeros(2, 3, 3), ValueError), (torch.zeros(3, 3).double(), TypeError)]
)
def test_a_similarity_that_does_not_fit(similarity: Tensor, error: Any) -> None:
    with pytest.raises(error, match="similarity must be"):
        soft_target_loss_with_stats(Z, Y, Q, similarity)

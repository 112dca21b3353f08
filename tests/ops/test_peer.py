"""peer_loss against float64 formulas, its neighbours and finite differences, for every backend here."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.losses import TOLERANCE, assert_graph_follows, assert_near, call, operator_of
from tfkd_fast.ops import distillation_loss, peer_loss

loss_of: Any = partial(call, peer_loss)


def problem(
    candidates: int, batch: int, classes: int, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(candidates, batch, classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (batch,), generator=generator)


def formula(
    logits: Tensor, labels: Tensor, temperature: float, alpha: Any, include_self: bool
) -> tuple[Tensor, Tensor]:
    """Losses (P,B) and their gradients, written out for each candidate in float64."""
    z = logits.detach().double().requires_grad_()
    predictions = (z.detach() / temperature).softmax(-1)
    losses = []
    for i in range(len(z)):
        peers = [prediction for j, prediction in enumerate(predictions) if include_self or j != i]
        target = torch.stack(peers).mean(0)
        kl = F.kl_div((z[i] / temperature).log_softmax(-1), target, reduction="none").sum(-1)
        a = float(torch.as_tensor(alpha).expand(len(z))[i])
        losses.append((1 - a) * F.cross_entropy(z[i], labels, reduction="none") + a * temperature**2 * kl)
    loss = torch.stack(losses)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), gradient


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (3.0, 0.5), (0.5, 0.0)])
def test_loss_and_gradient(
    backend: Any, temperature: float, alpha: float, include_self: bool, dtype: torch.dtype
) -> None:
    logits, labels = problem(3, 7, 10, dtype=dtype)
    losses, gradients = formula(logits, labels, temperature, alpha, include_self)
    keywords = {"temperature": temperature, "alpha": alpha, "include_self": include_self}
    loss = loss_of(backend, logits.requires_grad_(), labels, **keywords)
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert loss.dtype == loss_dtype
    assert loss.shape == (3,)
    assert_near(loss.detach(), losses.mean(-1), TOLERANCE[loss_dtype])
    (5 * loss).sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert_near(logits.grad, 5 * gradients / 7, TOLERANCE[dtype])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_upstream_gradients(backend: Any, reduction: Any) -> None:
    logits, labels = problem(2, 5, 4)
    losses, gradients = formula(logits, labels, 3.0, 0.5, True)
    loss = loss_of(backend, logits.requires_grad_(), labels, reduction=reduction)
    expected = {"mean": losses.mean(-1), "sum": losses.sum(-1), "none": losses}[reduction]
    torch.testing.assert_close(loss.detach(), expected)
    upstream = torch.linspace(-1.0, 2.0, expected.numel(), dtype=torch.float64).view_as(expected)
    loss.backward(upstream)
    weight = upstream.view(2, -1, 1) / (5 if reduction == "mean" else 1)
    torch.testing.assert_close(logits.grad, weight * gradients)


def test_each_candidate_has_its_alpha_and_its_labels(backend: Any) -> None:
    logits, labels = problem(3, 6, 5)
    alpha = torch.tensor([0.0, 0.3, 1.0]).double()
    losses, _ = formula(logits, labels, 3.0, alpha, False)
    torch.testing.assert_close(loss_of(backend, logits, labels, alpha=alpha, include_self=False), losses.mean(-1))
    own = torch.stack([labels, labels.flip(0), (labels + 1) % 5])
    loss = loss_of(backend, logits, own, alpha=0.0, reduction="none")
    torch.testing.assert_close(loss[2], F.cross_entropy(logits[2], own[2], reduction="none"))


def test_two_candidates_without_themselves_distil_each_other(backend: Any) -> None:
    """Deep mutual learning: the other is the teacher."""
    logits, labels = problem(2, 6, 5)
    loss = loss_of(backend, logits, labels, temperature=2.0, alpha=0.4, include_self=False)
    for i in range(2):
        expected = distillation_loss(logits[i], logits[1 - i], labels, temperature=2.0, alpha=0.4, backend="reference")
        torch.testing.assert_close(loss[i], expected)


def test_a_candidate_alone_teaches_itself_nothing(backend: Any) -> None:
    logits, labels = problem(1, 6, 5)
    loss = loss_of(backend, logits.requires_grad_(), labels, alpha=1.0)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.zeros(1).double())
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


def test_the_others_are_not_lost_beside_a_certain_candidate(backend: Any) -> None:
    """Taking a probability of nearly 1 from the sum of all would leave the others' small ones without digits."""
    logits = torch.tensor([[[16.0, 0.0, 0.0]], [[-8.0, 8.0, 0.0]], [[-9.0, 7.0, 1.0]]])
    labels = torch.zeros(1, dtype=torch.int64)
    losses, gradients = formula(logits, labels, 1.0, 1.0, False)
    actual = logits.clone().requires_grad_()
    loss = loss_of(backend, actual, labels, temperature=1.0, alpha=1.0, include_self=False)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach().double(), losses.mean(-1), rtol=2e-6, atol=0)
    torch.testing.assert_close(actual.grad.double(), gradients, rtol=2e-6, atol=1e-7)


@settings(max_examples=30)
@given(
    candidates=st.integers(1, 9),
    batch=st.integers(1, 12),
    classes=st.integers(1, 70),
    temperature=st.floats(0.3, 20.0),
    alpha=st.floats(0.0, 1.0),
    include_self=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    backend: Any,
    candidates: int,
    batch: int,
    classes: int,
    temperature: float,
    alpha: float,
    include_self: bool,
    seed: int,
) -> None:
    candidates = max(candidates, 1 if include_self else 2)
    logits, labels = problem(candidates, batch, classes, dtype=torch.float32, seed=seed)
    losses, gradients = formula(logits, labels, temperature, alpha, include_self)
    keywords = {"temperature": temperature, "alpha": alpha, "include_self": include_self}
    loss = loss_of(backend, logits.requires_grad_(), labels, **keywords)
    loss.sum().backward()
    assert logits.grad is not None
    # As for the soft targets: an exponent z/T is off by 6e-8 |z/T|, and so is, relatively, every probability.
    exponent = 2.0 * (1.0 + float(logits.detach().abs().max()) * max(1.0, 1.0 / temperature))
    atol = 1e-6 * exponent
    torch.testing.assert_close(loss.detach().double(), losses.mean(-1), rtol=0.0, atol=atol * max(1.0, temperature**2))
    torch.testing.assert_close(
        logits.grad.double(), gradients / batch, rtol=0.0, atol=atol * max(1.0, temperature) / batch
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("candidates", "classes"), [(64, 100), (3, 1000), (5, 1500), (2, 20_000)])
def test_many_classes_and_candidates(backend: Any, candidates: int, classes: int, dtype: torch.dtype) -> None:
    logits, labels = problem(candidates, 2, classes, dtype=dtype)
    losses, gradients = formula(logits, labels, 2.0, 0.7, False)
    keywords = {"temperature": 2.0, "alpha": 0.7, "include_self": False, "reduction": "none"}
    loss = loss_of(backend, logits.requires_grad_(), labels, **keywords)
    loss.sum().backward()
    assert logits.grad is not None
    roundings = 2e-6 + 6e-8 * (classes**0.5 + candidates**0.5)  # of the roundings of a sum sqrt(terms) add up
    assert_near(loss.detach(), losses, roundings)
    assert_near(logits.grad, gradients, max(TOLERANCE[dtype], roundings))


def test_infinity_and_nan_as_in_the_reference(backend: Any) -> None:
    """A sample that is not finite in one candidate disturbs its peers' loss for that sample, and no other sample."""
    inf, nan = float("inf"), float("nan")
    rows = [[-inf, 0.0, 1.0], [inf, 0.0, 1.0], [nan, 0.0, 1.0], [-inf, -inf, -inf], [1e4, -1e4, 0.0], [1.0, 0.0, 2.0]]
    logits = torch.stack([torch.tensor(rows), torch.tensor([[0.5, 0.0, -1.0]]).expand(6, 3), torch.zeros(6, 3)])
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    for include_self in (True, False):
        for alpha in (0.0, 0.5, 1.0):
            keywords = {"alpha": alpha, "include_self": include_self, "reduction": "none"}
            actual, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            loss = loss_of(backend, actual, labels, **keywords)
            reference = peer_loss(expected, labels, backend="reference", **keywords)  # type: ignore[arg-type]
            loss.sum().backward()
            reference.sum().backward()
            torch.testing.assert_close(loss, reference, equal_nan=True)
            torch.testing.assert_close(actual.grad, expected.grad, equal_nan=True)


def test_strides_do_not_matter(backend: Any) -> None:
    logits, labels = problem(3, 6, 5)
    strided = logits.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    loss = loss_of(backend, strided, torch.stack([labels, labels], 1)[:, 0])
    loss.sum().backward()
    losses, gradients = formula(logits, labels, 3.0, 0.5, True)
    torch.testing.assert_close(loss.detach(), losses.mean(-1))
    torch.testing.assert_close(strided.grad, gradients / 6)


def test_empty_batch(backend: Any) -> None:
    logits, labels = torch.zeros(2, 0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    loss = loss_of(backend, logits, labels)
    loss.sum().backward()
    assert loss.isnan().tolist() == [True, True]
    assert logits.grad is not None
    assert logits.grad.shape == (2, 0, 3)


@pytest.mark.parametrize("include_self", [True, False])
def test_the_gradient_is_that_of_a_constant_mean(backend: Any, include_self: bool) -> None:
    """Finite differences of a candidate's loss in its own logits, the mean taken before: gradcheck would move it."""
    logits, labels = problem(2, 3, 4)
    keywords = {"temperature": 2.0, "alpha": 0.6, "include_self": include_self, "reduction": "sum"}
    z = logits.clone().requires_grad_()
    loss_of(backend, z, labels, **keywords).sum().backward()
    predictions = (logits / 2.0).softmax(-1)
    means = predictions.mean(0).expand(2, 3, 4) if include_self else predictions.flip(0)

    def loss(i: int, own: Tensor) -> Tensor:
        kl = F.kl_div((own / 2.0).log_softmax(-1), means[i], reduction="sum")
        return 0.4 * F.cross_entropy(own, labels, reduction="sum") + 0.6 * 4.0 * kl

    step = 1e-6
    assert z.grad is not None
    for i in range(2):
        for index in [(0, 0), (1, 3), (2, 1)]:
            moved = torch.zeros(3, 4).double()
            moved[index] = step
            difference = (loss(i, logits[i] + moved) - loss(i, logits[i] - moved)) / (2 * step)
            torch.testing.assert_close(z.grad[(i, *index)], difference, rtol=1e-7, atol=1e-8)


def test_vmap_is_a_call_for_each(backend: Any) -> None:
    populations = torch.stack([problem(3, 4, 5, seed=seed, dtype=torch.float32)[0] for seed in range(2)])
    _, labels = problem(3, 4, 5)

    def loss(z: Tensor) -> Tensor:
        return loss_of(backend, z, labels).sum()

    torch.testing.assert_close(torch.func.vmap(loss)(populations), torch.stack([loss(z) for z in populations]))
    gradient = torch.func.grad(loss)
    expected = torch.stack([gradient(z) for z in populations])
    torch.testing.assert_close(torch.func.vmap(gradient)(populations), expected)


def test_compiles_as_one_graph(backend: Any) -> None:
    logits, labels = (tensor.to(backend.device) for tensor in problem(3, 6, 5, dtype=torch.float32))

    def loss(z: Tensor, alpha: Tensor) -> Tensor:
        return peer_loss(z, labels, alpha=alpha, backend=backend.name)

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # test_soft_target.py has Inductor
    results = []
    for function in (loss, compiled):
        z = logits.clone().requires_grad_()
        value = function(z, torch.tensor(0.4, device=backend.device))
        value.sum().backward()
        results.append((value, z.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("batch", [6, 0])
def test_registration(backend: Any, batch: int) -> None:
    operator = operator_of(backend, "peer_loss")
    logits, labels = (tensor.to(backend.device) for tensor in problem(3, batch, 5, dtype=torch.float32))
    settings_ = (torch.tensor(2.0, device=backend.device), torch.tensor(0.5, device=backend.device), True)
    torch.library.opcheck(operator, (logits, labels, *settings_, "mean" if batch else "sum"))
    torch.library.opcheck(operator, (logits, labels, *settings_, "none"))


@pytest.mark.gpu
def test_a_captured_graph_follows_its_inputs_and_never_waits(backend: Any) -> None:
    if backend.device.type != "cuda":
        pytest.skip("a backend of the CPU")
    logits, labels = (tensor.cuda() for tensor in problem(8, 128, 100, dtype=torch.float32))
    temperature, alpha = torch.tensor(3.0, device="cuda"), torch.tensor(0.5, device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        z = logits.detach().requires_grad_()
        loss = peer_loss(z, labels, temperature=temperature, alpha=alpha, backend=backend.name)
        return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]

    def change() -> None:
        logits.mul_(2)
        temperature.fill_(1.5)

    assert_graph_follows(step, change)


@pytest.mark.parametrize("label", [-100, 5])
def test_a_label_out_of_range_is_refused(backend: Any, label: int) -> None:
    if backend.device.type == "cuda":
        pytest.skip("a device-side assertion ends the process' use of the device")
    labels = torch.tensor([0, label])
    if backend.name == "triton":
        loss = loss_of(backend, torch.zeros(2, 2, 5), labels, reduction="none")
        assert loss.isnan().tolist() == [[False, True], [False, True]]
        return
    with pytest.raises((IndexError, RuntimeError), match=r"label|out of bounds"):
        loss_of(backend, torch.zeros(2, 2, 5), labels)


Z, Y = torch.zeros(2, 4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((Z[0], Y), {}, ValueError, r"logits must be \(P,B,C\) with P >= 1, got \(4, 3\)"),
        ((Z[:1], Y), {"include_self": False}, ValueError, r"with P >= 2 without include_self, got \(1, 4, 3\)"),
        ((Z.int(), Y), {}, TypeError, "logits must be float32"),
        ((Z, Y[:3]), {}, ValueError, r"labels must be \(4,\) or \(2, 4\)"),
        ((Z, Y), {"temperature": torch.ones(2)}, ValueError, r"temperature must be \(\), one for all candidates"),
        ((Z, Y), {"alpha": torch.ones(3)}, ValueError, r"alpha must be \(\) or \(2,\)"),
        ((Z, Y), {"temperature": 0.0}, ValueError, "temperature must be positive and finite"),
        ((Z, Y), {"alpha": -0.1}, ValueError, r"alpha must be in 0\.\.1"),
        ((Z, Y), {"reduction": "batchmean"}, ValueError, "reduction must be"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, keywords: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        peer_loss(*arguments, **keywords)

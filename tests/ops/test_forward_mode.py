"""Forward-mode differentiation through every operator: right or refused, with every backend; the truth is float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from tests.ops.losses import TOLERANCE, assert_near, call
from tfkd_fast import ops

GENERATOR = torch.Generator().manual_seed(3)
LOGITS = torch.randn(3, 4, 5, generator=GENERATOR, dtype=torch.float64)  # (P,B,C)
TANGENT = torch.randn(3, 4, 5, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.rand(4, 5, generator=GENERATOR, dtype=torch.float64).softmax(-1)  # of samples
LABELS = torch.tensor([0, 4, 2, 1])


def soft_target(backend: Any, z: Tensor, **keywords: Any) -> Any:
    options = {"rows": "sample", "hard_weight": 0.3, "temperature": 2.0}
    return call(ops.soft_target_loss, backend, z, LABELS, TARGETS, **options, **keywords)


def with_stats(backend: Any, z: Tensor, **keywords: Any) -> Any:
    options = {"rows": "sample", "hard_weight": 0.3, "temperature": 2.0}
    return call(ops.soft_target_loss_with_stats, backend, z, LABELS, TARGETS, **options, **keywords)[0]


def distillation(backend: Any, z: Tensor, **keywords: Any) -> Any:
    teachers = torch.stack([3 * TARGETS, -TARGETS])
    return call(ops.distillation_loss, backend, z, teachers, LABELS, temperature=2.0, alpha=0.6, **keywords)


def peer(backend: Any, z: Tensor, **keywords: Any) -> Any:
    return call(ops.peer_loss, backend, z, LABELS, temperature=2.0, alpha=0.6, **keywords)


LOSSES = [soft_target, with_stats, distillation, peer]
Loss = Callable[..., Any]


def by_duals(function: Callable[[Tensor], Tensor], point: Tensor, tangent: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        result: Tensor | None = forward_ad.unpack_dual(function(forward_ad.make_dual(point, tangent))).tangent
        return result


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [soft_target, with_stats, distillation])
def test_losses_against_finite_differences(backend: Any, loss: Loss, reduction: str) -> None:
    """In one drawn direction of all 60: that each number's derivative is right is tested below, with any tangent."""

    def function(z: Tensor) -> Tensor:
        value: Tensor = loss(backend, z, reduction=reduction)
        return value

    point = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, point, check_forward_ad=True, check_backward_ad=False, fast_mode=True)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_tangent_is_the_sum_of_gradient_times_tangent(
    backend: Any, loss: Loss, reduction: str, dtype: torch.dtype
) -> None:
    """The truth is the reverse mode in float64, which other tests hold to formulas and finite differences."""
    point, tangent = LOGITS.to(dtype), TANGENT.to(dtype)

    def function(z: Tensor) -> Tensor:
        value: Tensor = loss(backend, z, reduction=reduction)
        return value

    exact = point.double().requires_grad_()
    each = loss(backend, exact, reduction="none")
    (gradient,) = torch.autograd.grad(each.sum(), exact)
    expected = (gradient * tangent.double()).sum(-1)
    expected = expected.mean(-1) if reduction == "mean" else expected
    tolerance = 4 * TOLERANCE[dtype]  # four gradients and the sum of their products
    actual = jvp(function, (point,), (tangent,))
    assert_near(actual[1], expected, tolerance)
    torch.testing.assert_close(actual[0], function(point), rtol=0, atol=0)
    duals = by_duals(function, point, tangent)
    assert duals is not None
    assert_near(duals, expected, tolerance)


@pytest.mark.parametrize("loss", [soft_target, distillation, peer])
def test_under_vmap_and_jacfwd(backend: Any, loss: Loss) -> None:
    def function(z: Tensor) -> Tensor:
        value: Tensor = loss(backend, z)
        return value

    torch.testing.assert_close(jacfwd(function)(LOGITS), jacrev(function)(LOGITS))
    points, tangents = torch.stack([LOGITS, 2 * LOGITS]), torch.stack([TANGENT, -TANGENT])
    expected = [jvp(function, (z,), (v,))[1] for z, v in zip(points, tangents, strict=True)]
    assert all(bool(each.abs().min() > 1e-6) for each in expected)
    mapped = vmap(lambda z, v: jvp(function, (z,), (v,))[1])(points, tangents)
    torch.testing.assert_close(mapped, torch.stack(expected))
    torch.testing.assert_close(jvp(vmap(function), (points,), (tangents,))[1], torch.stack(expected))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_second_derivative_with_forward_mode_is_refused_or_right(backend: Any, loss: Loss) -> None:
    def function(z: Tensor) -> Tensor:
        value: Tensor = loss(backend, z).sum()
        return value

    def backwards(z: Tensor) -> Tensor:
        leaf = z if z.requires_grad else z.requires_grad_()
        return torch.autograd.grad(function(leaf), leaf)[0]

    orders: list[Callable[[], Any]] = [
        lambda: jvp(grad(function), (LOGITS,), (TANGENT,))[1],
        lambda: grad(lambda z: jvp(function, (z,), (TANGENT,))[1])(LOGITS),
        lambda: by_duals(backwards, LOGITS.clone().requires_grad_(), TANGENT),
    ]
    if backend.name != "reference":
        for order in orders:
            with pytest.raises(RuntimeError, match='no second derivative: use backend="reference"'):
                order()
        return
    leaf = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (expected,) = torch.autograd.grad(gradient, leaf, TANGENT)
    for order in orders:
        torch.testing.assert_close(order(), expected)


def test_the_derivative_of_an_upstream_of_one_is_kept(backend: Any) -> None:
    """The backward pass leaves a multiplication by 1 out, but not by a dual number whose real part is 1."""
    leaf = LOGITS.clone().requires_grad_()
    loss = soft_target(backend, leaf, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss), retain_graph=True)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 3.0))
        (dual,) = torch.autograd.grad(loss, leaf, upstream)
        tangent = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, 3 * gradient)


def constants(backend: Any) -> list[tuple[Callable[[Tensor], Tensor], Tensor]]:
    """What has no gradient in reverse mode, as functions of one argument."""
    images, indices, draw = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.arange(2), torch.tensor([1, 2, 3])
    z, half = LOGITS[0], torch.tensor([0.5, 0.5]).double()
    options = {"pad": 1, "flip": False, "std": torch.ones(3), "dtype": torch.float32}
    return [
        (lambda t: call(ops.soft_target_loss, backend, z, LABELS, TARGETS, rows="sample", temperature=t), 2 * half[0]),
        (lambda w: call(ops.soft_target_loss, backend, z, LABELS, TARGETS, rows="sample", hard_weight=w), half[0]),
        (lambda q: call(ops.soft_target_loss, backend, z, LABELS, q.softmax(-1), rows="sample"), TARGETS),
        (lambda v: call(ops.soft_target_loss_with_stats, backend, v, LABELS, TARGETS, rows="sample")[1].entropy, z),
        (lambda t: call(ops.distillation_loss, backend, z, t), TARGETS),
        (lambda a: call(ops.peer_loss, backend, LOGITS, LABELS, alpha=a), half[0]),
        (lambda v: call(ops.candidate_metrics, backend, v, LABELS).nll, LOGITS),
        (lambda v: call(ops.rank_candidates, backend, v, [True] * 5).ranks, z),
        (lambda m: call(ops.rank_binned_targets, backend, torch.eye(4).double(), half[0], m, [1, 2]), half),
        (lambda m: call(ops.augment, backend, images, indices, draw, mean=m, **options), torch.ones(3)),
    ]


@pytest.mark.parametrize("number", range(10))
def test_what_has_no_gradient_has_no_tangent_with_any_backend(backend: Any, number: int) -> None:
    function, point = constants(backend)[number]
    tangent = by_duals(function, point, torch.ones_like(point))
    assert tangent is None or not tangent.any()
    assert not jvp(function, (point,), (torch.ones_like(point),))[1].any()


def image_calls() -> dict[str, Callable[[Tensor, str | None], Tensor]]:
    """The layers and the update as functions of images, with a backend; bfloat16 and wide, so that cpp is chosen."""
    one, kernel = torch.ones(256), torch.randn(256, 256, 3, 3, generator=GENERATOR) / 48

    def norm(x: Tensor, backend: str | None) -> Tensor:
        ones = one.double() if x.dtype == torch.float64 else one
        return ops.norm_relu_pool(x, ones, ones, 0 * ones, ones.clone(), momentum=0.1, backend=backend)

    def update(x: Tensor, backend: str | None) -> Tensor:
        weight = 2 * x
        ops.sgd_step(weight, 3 * x, torch.zeros_like(x), rate=0.5, backend=backend)
        return weight

    return {"norm_relu_pool": norm, "conv3x3": lambda x, b: ops.conv3x3(x, kernel, backend=b), "sgd_step": update}


@pytest.mark.parametrize("name", ["norm_relu_pool", "conv3x3", "sgd_step"])
@pytest.mark.parametrize("mode", [by_duals, lambda f, x, v: jvp(f, (x,), (v,))[1]], ids=["duals", "jvp"])
def test_layers_and_the_update_take_the_reference_or_refuse(name: str, mode: Callable[..., Tensor]) -> None:
    function = image_calls()[name]
    dtype = torch.float32 if name == "sgd_step" else torch.bfloat16
    x = torch.randn(64, 256, 2, 2, generator=GENERATOR).to(dtype)
    tangent = torch.randn(64, 256, 2, 2, generator=GENERATOR).to(dtype)
    actual = mode(lambda x: function(x, None), x, tangent).double()
    assert torch.equal(actual, mode(lambda x: function(x, "reference"), x, tangent).double())
    assert bool(actual.any())
    if name != "norm_relu_pool":  # which is not continuous: bfloat16 may have another maximum
        truth = jvp(lambda x: function(x, "reference"), (x.double(),), (tangent.double(),))[1]
        assert_near(actual, truth, 4 * TOLERANCE[dtype])
    if ops.backends.operators[name]["cpp"].refuses(x) is None:
        with pytest.raises(RuntimeError, match=f'of {name} has no forward-mode derivative: use backend="reference"'):
            mode(lambda x: function(x, "cpp"), x, tangent)


def test_compiled_forward_mode_is_not_lost() -> None:
    """torch.compile leaves the call to Python, which here means the fastest backend for the processor."""

    def tangent(z: Tensor) -> Tensor:
        return jvp(lambda z: ops.soft_target_loss(z, LABELS, TARGETS, rows="sample"), (z,), (TANGENT,))[1]

    torch.compiler.reset()
    expected = jvp(
        lambda z: ops.soft_target_loss(z, LABELS, TARGETS, rows="sample", backend="reference"), (LOGITS,), (TANGENT,)
    )[1]
    torch.testing.assert_close(torch.compile(tangent, backend="aot_eager")(LOGITS), expected)

"""Losses of C++ in one call from Python: the same bits as in several, and no call that only several can serve."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from tfkd_fast.ops import backends, distillation, losses, native, peer, soft_target

pytestmark = pytest.mark.skipif(
    backends.autograd_extension.missing is not None, reason=str(backends.autograd_extension.missing)
)

GENERATOR = torch.Generator().manual_seed(5)
LOGITS = torch.randn(3, 6, 5, generator=GENERATOR)  # (P,B,C)
LABELS = torch.randint(5, (6,), generator=GENERATOR)
TABLE = torch.randn(5, 5, generator=GENERATOR).softmax(-1)
ROWS = torch.randn(6, 5, generator=GENERATOR).softmax(-1)
TEACHERS = torch.randn(2, 6, 5, generator=GENERATOR)
EACH = torch.tensor([1.0, 2.0, 4.0])

Results = tuple[Tensor, ...]


def soft(z: Tensor, **keywords: Any) -> Results:
    return (soft_target.soft_target_loss(z, LABELS, TABLE.to(losses.loss_dtype(z)), **keywords),)


def with_stats(z: Tensor, **keywords: Any) -> Results:
    similarity = torch.zeros(*z.shape[:-2], 5, 5)
    table = TABLE.to(losses.loss_dtype(z))
    loss, stats = soft_target.soft_target_loss_with_stats(z, LABELS, table, similarity, **keywords)
    return loss, *stats, similarity


def distil(z: Tensor, **keywords: Any) -> Results:
    return (distillation.distillation_loss(z, TEACHERS.to(losses.loss_dtype(z)), LABELS, **keywords),)


def of_peers(z: Tensor, **keywords: Any) -> Results:
    return (peer.peer_loss(z, LABELS, **keywords),)


CALLS: list[tuple[Callable[..., Results], Tensor, dict[str, Any]]] = [
    (soft, LOGITS[0], {}),
    (soft, LOGITS, {"temperature": 2, "hard_weight": 0.3}),
    (soft, LOGITS, {"temperature": EACH, "reduction": "none"}),
    (soft, LOGITS[0].bfloat16(), {"hard_weight": 1, "reduction": "sum", "backend": "cpp"}),
    (soft, LOGITS.double().transpose(1, 2).contiguous().transpose(1, 2), {"temperature": 0.5}),
    (with_stats, LOGITS[0], {"temperature": 3.0}),
    (with_stats, LOGITS.bfloat16(), {"reduction": "none"}),
    (distil, LOGITS[0], {}),
    (distil, LOGITS, {"temperature": EACH, "alpha": 0.4, "teacher_weights": ROWS[:, :2].contiguous()}),
    (distil, LOGITS[0].double(), {"temperature": 2.0, "reduction": "none"}),
    (of_peers, LOGITS, {}),
    (of_peers, LOGITS.bfloat16(), {"alpha": torch.tensor([0.1, 0.5, 1.0]), "include_self": False}),
]


def is_in_one_call(loss: Tensor) -> bool:
    """By the node that gives its gradient: of C++, or of Python."""
    assert loss.grad_fn is not None
    return "CppNode" in loss.grad_fn.name()


@pytest.mark.parametrize("number", range(len(CALLS)))
@pytest.mark.parametrize("factor", [1.0, -2.5])
def test_the_same_bits_as_in_several_calls(monkeypatch: pytest.MonkeyPatch, number: int, factor: float) -> None:
    function, logits, keywords = CALLS[number]

    def run(*, in_one_call: bool) -> Results:
        leaf = logits.detach().requires_grad_()
        results = function(leaf, **keywords)
        assert is_in_one_call(results[0]) == in_one_call
        upstream = factor * torch.arange(1.0, 1 + results[0].numel(), dtype=results[0].dtype).view(results[0].shape)
        (gradient,) = torch.autograd.grad(results[0], leaf, upstream)
        assert not any(result.requires_grad for result in results[1:])
        return (*(result.detach() for result in results), gradient)

    once = run(in_one_call=True)
    with monkeypatch.context() as patched:
        patched.setattr(losses, "takes_one_call", lambda backend: False)
        several = run(in_one_call=False)
    for actual, expected in zip(once, several, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


def test_without_a_gradient_none_is_attached() -> None:
    leaf = LOGITS.clone().requires_grad_()
    assert not soft(LOGITS)[0].requires_grad
    with torch.no_grad():
        assert not soft(leaf)[0].requires_grad
    with torch.inference_mode():
        assert not soft(leaf)[0].requires_grad


def test_a_graph_is_used_once_unless_it_is_retained() -> None:
    leaf = LOGITS[0].clone().requires_grad_()
    (loss,) = soft(leaf)
    loss.backward(retain_graph=True)
    assert leaf.grad is not None
    first = leaf.grad.clone()
    loss.backward()
    assert torch.equal(leaf.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    (loss,) = soft(leaf)
    with torch.no_grad():
        leaf.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_upstream_gradient_may_be_of_any_kind() -> None:
    """Mapped, with a tangent, or of ones that are written out; the truth is the gradient for an upstream of 1."""
    leaf = LOGITS.clone().requires_grad_()
    (loss,) = soft(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf, torch.ones(3), retain_graph=True)
    (mapped,) = torch.autograd.grad(loss, leaf, torch.eye(3), retain_graph=True, is_grads_batched=True)
    torch.testing.assert_close(mapped, torch.eye(3)[:, :, None, None] * gradient)
    (mixed,) = torch.autograd.grad(loss, leaf, torch.tensor([1.0, 1.0, 3.0]), retain_graph=True)
    torch.testing.assert_close(mixed, torch.tensor([1.0, 1.0, 3.0])[:, None, None] * gradient)
    with forward_ad.dual_level():
        (dual,) = torch.autograd.grad(loss, leaf, forward_ad.make_dual(torch.ones(3), torch.full((3,), 3.0)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, 3 * gradient)


def test_hooks_of_saved_tensors_see_what_is_saved() -> None:
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    leaf = LOGITS[0].clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda place: 2 * packed[place].detach()):
        (loss,) = soft(leaf)
    (doubled,) = torch.autograd.grad(loss, leaf)
    (gradient,) = torch.autograd.grad(soft(leaf)[0], leaf)
    assert torch.equal(doubled, 2 * gradient)


class Mode(TorchFunctionMode):
    """Sees the functions of torch that are called."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:FutureWarning")
def test_what_only_several_calls_can_serve() -> None:
    z, in_one_call = LOGITS[0].clone().requires_grad_(), losses.in_one_call("soft_target_loss")

    def serves(logits: Tensor, targets: Tensor = TABLE) -> bool:
        return in_one_call(logits, LABELS, targets, 1.0, 0.0, True, "mean") is not None

    assert serves(z)
    with forward_ad.dual_level():
        assert not serves(forward_ad.make_dual(z, torch.ones_like(z)))
        assert serves(z)
    half, subclass, wide = z.detach().half(), z.detach().as_subclass(Subclass), TABLE.double()
    with Mode():
        assert not serves(z)
    with FakeTensorMode():
        assert not serves(z)
    assert not serves(half)
    assert not serves(subclass)
    assert not serves(z, wide)
    mapped: list[bool] = []
    torch.func.vmap(lambda z: mapped.append(serves(z)) or z)(LOGITS)
    torch.func.grad(lambda z: mapped.append(serves(LOGITS[0])) or z.sum())(LOGITS[0])
    torch.jit.trace(lambda z: mapped.append(serves(z)) or z + 1, LOGITS[0], check_trace=False)
    assert mapped == [False] * 3


def test_several_calls_serve_the_rest() -> None:
    """Each of them with a gradient that is held to the float32 call's."""

    def gradient_of(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = logits.detach().requires_grad_()
        value = loss(leaf)
        assert not is_in_one_call(value)
        return torch.autograd.grad(value, leaf)[0]

    leaf = LOGITS[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(soft(leaf)[0], leaf)
    half = gradient_of(LOGITS[0].half(), lambda z: soft(z)[0])
    torch.testing.assert_close(half.float(), expected, rtol=2**-8, atol=2**-12)
    wide = gradient_of(LOGITS[0], lambda z: soft_target.soft_target_loss(z, LABELS, TABLE.double()))
    assert torch.equal(wide, expected)
    with backends.using_backend("reference"):
        torch.testing.assert_close(gradient_of(LOGITS[0], lambda z: soft(z)[0]), expected)
    torch.testing.assert_close(gradient_of(LOGITS[0], lambda z: soft(z, backend="reference")[0]), expected)


def test_mistakes_are_said_in_the_same_words() -> None:
    z, y, q = LOGITS[0], LABELS, TABLE
    similarity = torch.zeros(1, 5).expand(5, 5)
    mistakes: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: soft(z, temperature=0), ValueError, "temperature must be positive and finite, got 0"),
        (lambda: soft(z, temperature=10**400), OverflowError, "too big|too large"),
        (lambda: soft(z, hard_weight=-1), ValueError, "hard_weight must be in 0..1, got -1"),
        (lambda: soft(z, temperature="1"), TypeError, "temperature must be a number"),
        (lambda: soft(z, reduction="batch"), ValueError, "reduction must be"),
        (lambda: soft_target.soft_target_loss(None, y, q), TypeError, "logits must be a tensor"),
        (lambda: soft_target.soft_target_loss(z, y, None), TypeError, "targets must be a tensor"),
        (lambda: soft_target.soft_target_loss(z, y, q[:4]), ValueError, "targets must be"),
        (lambda: soft_target.soft_target_loss(z, y + 5, q), IndexError, "label"),
        (lambda: soft_target.soft_target_loss_with_stats(z, y, q, similarity), ValueError, "similarity is written to"),
        (lambda: distillation.distillation_loss(z, TEACHERS[:, :4], y), ValueError, "teacher_logits must be"),
        (lambda: distillation.distillation_loss(z, TEACHERS, alpha=0.5), ValueError, "alpha weighs the teachers"),
        (lambda: peer.peer_loss(z, y), ValueError, r"logits must be \(P,B,C\)"),
        (lambda: peer.peer_loss(LOGITS, y, include_self=1), TypeError, "include_self must be True or False"),
    ]
    for call, error, message in mistakes:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (None, "it is for another Python"),
        (SimpleNamespace(torch="2.0.0+other"), "it is for torch 2.0.0+other, not for"),
    ],
)
def test_an_extension_that_does_not_fit_is_not_loaded(monkeypatch: pytest.MonkeyPatch, build: Any, reason: str) -> None:
    monkeypatch.setattr(native, "build_information", lambda: build)
    extension = native.load_autograd()
    assert extension.module is None
    assert reason in str(extension.missing)

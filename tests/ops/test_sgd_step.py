"""The update against its formula in float64; against torch's optimiser: tests/engine/test_step.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.threads import using_threads
from tfkd_fast.ops import backends, sgd_step

BACKENDS = ["reference", "cpp"]
needs_cpp = pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    weight, gradient, momentum = torch.randn(3, *shape, generator=generator).unbind()
    return weight.clone(), gradient.clone(), momentum.clone()


def expected(tensors: Tensors, rate: float, decay: float, factor: float, nesterov: bool) -> list[torch.Tensor]:
    weight, gradient, momentum = (tensor.double() for tensor in tensors)
    direction = gradient + decay * weight
    momentum = factor * momentum + direction
    return [weight - rate * (direction + factor * momentum if nesterov else momentum), momentum]


@needs_cpp
@pytest.mark.parametrize("backend", BACKENDS)
@given(
    shape=st.sampled_from([(), (1,), (17,), (3, 5), (70_001,), (8, 4, 3, 3), (0, 3)]),
    rate=st.floats(1e-4, 1.0),
    decay=st.sampled_from([0.0, 5e-4, 0.1]),
    factor=st.sampled_from([0.0, 0.9]),
    nesterov=st.booleans(),
)
def test_formula(
    backend: str, shape: tuple[int, ...], rate: float, decay: float, factor: float, nesterov: bool
) -> None:
    tensors = draw(shape)
    wanted = expected(tensors, rate, decay, factor, nesterov)
    weight, gradient, momentum = tensors
    before = gradient.clone()
    sgd_step(weight, gradient, momentum, rate=rate, decay=decay, factor=factor, nesterov=nesterov, backend=backend)
    assert torch.equal(gradient, before)
    for ours, exact in zip((weight, momentum), wanted, strict=True):
        # at most six roundings of values below 16
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=6 * 16 * 2**-24)


@needs_cpp
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_layouts(backend: str) -> None:
    tensors = draw((8, 4, 3, 3))
    wanted = expected(tensors, 0.1, 5e-4, 0.9, False)
    weight, gradient, momentum = tensors
    weight, momentum = (tensor.to(memory_format=torch.channels_last) for tensor in (weight, momentum))
    sgd_step(weight, gradient, momentum, rate=0.1, decay=5e-4, backend=backend)  # the gradient lies otherwise
    torch.testing.assert_close(weight.double(), wanted[0], rtol=0, atol=6e-6)
    torch.testing.assert_close(momentum.double(), wanted[1], rtol=0, atol=6e-6)


def test_a_weight_with_gaps_or_another_dtype_is_served_by_the_reference() -> None:
    for weight, gradient, momentum in (draw((6, 4)), tuple(tensor.double() for tensor in draw((6, 4)))):
        cut = [tensor[:, ::2] for tensor in (weight, gradient, momentum)]
        wanted = expected((cut[0], cut[1], cut[2]), 0.1, 0.0, 0.9, False)
        sgd_step(cut[0], cut[1], cut[2], rate=0.1)
        torch.testing.assert_close(cut[0].double(), wanted[0], rtol=0, atol=6e-6)


def test_bad_arguments_are_refused() -> None:
    weight, gradient, momentum = draw((3, 4))
    with pytest.raises(ValueError, match=r"gradient must be \(3, 4\) torch.float32 as the weight is, got \(4, 3\)"):
        sgd_step(weight, gradient.T, momentum, rate=0.1)
    with pytest.raises(ValueError, match=r"momentum must be \(3, 4\) torch.float32 as the weight is, got .*float64"):
        sgd_step(weight, gradient, momentum.double(), rate=0.1)


SHAPES = [(16, 3, 3, 3), (70_001,), (1,), (), (32, 16, 1, 1), (0, 3), (100, 128), (5,)]


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_a_list_is_updated_as_its_tensors_are_one_by_one(backend: str | None) -> None:
    """To the same bits, also where one of them is not for cpp, and by two threads, which share the weights out."""
    rows = [draw(shape, seed) for seed, shape in enumerate(SHAPES)]
    rows.append(tuple(tensor.to(memory_format=torch.channels_last) for tensor in draw((8, 4, 3, 3))))
    if backend != "cpp":
        rows.append(tuple(tensor.double() for tensor in draw((6, 4))))
    one_by_one = [tuple(tensor.clone() for tensor in row) for row in rows]
    weights, gradients, momenta = (list(column) for column in zip(*rows, strict=True))
    with using_threads(2):
        sgd_step(weights, gradients, momenta, rate=0.1, decay=5e-4, backend=backend)
    for row in one_by_one:
        sgd_step(*row, rate=0.1, decay=5e-4, backend=backend)
    for ours, alone in zip(rows, one_by_one, strict=True):
        assert all(map(torch.equal, ours, alone))


def test_lists_that_do_not_fit_are_refused() -> None:
    weight, gradient, momentum = draw((3, 4))
    with pytest.raises(ValueError, match=r"gradient must have 2 tensors as weight has, got 1"):
        sgd_step([weight, weight], [gradient], [momentum, momentum], rate=0.1)
    with pytest.raises(TypeError, match="momentum must be a list of tensors as weight is, got Tensor"):
        sgd_step([weight], [gradient], momentum, rate=0.1)
    with pytest.raises(ValueError, match="momentum must be another tensor than weight"):
        sgd_step([weight], [gradient], [weight], rate=0.1)


@needs_cpp
def test_registration() -> None:
    """The operator refuses what it cannot update before it has written anything."""
    rows = [draw((5, 3)), draw((7,))]
    weights, gradients, momenta = (list(column) for column in zip(*rows, strict=True))
    operator = torch.ops.tfkd_fast.sgd_steps.default
    torch.library.opcheck(operator, (weights, gradients, momenta, 0.1, 5e-4, 0.9, False))
    before = [tensor.clone() for tensor in (*weights, *momenta)]
    for spoilt, message in (
        ([gradients[0], gradients[1].double()], "float32"),
        ([gradients[0], torch.randn(14)[::2]], "alike"),
        (gradients[:1], "as many"),
    ):
        with pytest.raises(RuntimeError, match=message):
            operator(weights, spoilt, momenta, 0.1, 5e-4, 0.9, False)
    assert all(map(torch.equal, (*weights, *momenta), before))

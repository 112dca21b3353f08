"""augment against numpy's padding, slicing and flipping of each image, for every backend here."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tfkd_fast.ops import augment, backends
from tfkd_fast.ops.augment import DTYPES
from tfkd_fast.randomness import Purpose, random_words

needs_cpp = pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
LAST = [2**63 - 1, 2**32 - 1, 2**32 - 1]  # the largest seed, epoch and stream


def batch_of(
    backend: Any, images: Tensor, indices: Tensor, draw: Tensor, mean: Tensor, std: Tensor, **settings: Any
) -> Tensor:
    """The batch by a backend, on the CPU."""
    of = (tensor.to(backend.device) for tensor in (images, indices, draw))
    scale = {"mean": mean.to(backend.device), "std": std.to(backend.device)}
    return augment(*of, **scale, **settings, backend=backend.name).cpu()


def by_numpy(
    images: Tensor, indices: Tensor, draw: Tensor, mean: Tensor, std: Tensor, *, pad: int, flip: bool
) -> np.ndarray:
    """(P,B,C,H,W) float32, an image at a time; tests/test_randomness.py has the words' known answers."""
    candidates = max(len(tensor) if tensor.dim() == 2 else 1 for tensor in (indices, draw))
    indices, draw = indices.expand(candidates, indices.shape[-1]), draw.expand(candidates, 3)
    _, height, width, channels = images.shape
    batch = np.empty((*indices.shape, channels, height, width), np.float32)
    for p, (seed, epoch, stream) in enumerate(draw.tolist()):
        words = random_words(indices[p], Purpose.AUGMENT, seed=seed, epoch=epoch, stream=stream)
        for b, (index, vertical, horizontal, mirror) in enumerate(
            zip(indices[p].tolist(), *(column.tolist() for column in words[:3]), strict=True)
        ):
            padded = np.pad(images[index].numpy(), ((pad, pad), (pad, pad), (0, 0)))
            top, left = (word * (2 * pad + 1) // 2**32 for word in (vertical, horizontal))
            window = padded[top : top + height, left : left + width]
            shown = window[:, ::-1] if flip and mirror >= 2**31 else window
            # numpy's float32 operations are rounded once each, as IEEE has it
            batch[p, b] = ((shown.astype(np.float32) - mean.numpy()) / std.numpy()).transpose(2, 0, 1)
    return batch


def random_images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.manual_seed(seed))


def scale_of(channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation, which differ between channels."""
    return torch.tensor([125.3, 123.0, 113.9, 7.7])[:channels], torch.tensor([63.0, 62.1, 66.7, 0.3])[:channels]


def example_of(candidates: int | None = None) -> tuple[Tensor, ...]:
    """Images, indices, draw, mean, std."""
    lead = () if candidates is None else (candidates,)
    indices = torch.randint(9, (*lead, 6), generator=torch.manual_seed(1))
    draw = torch.arange(3 if candidates is None else 3 * candidates).view(*lead, 3)
    return random_images(9, 6, 5, 3), indices, draw, *scale_of(3)


@st.composite
def problems(draw: st.DrawFn) -> tuple[tuple[Tensor, ...], dict[str, Any], torch.dtype]:
    count, channels = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    batch, candidates = draw(st.integers(0, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = torch.from_numpy(rng.integers(count, size=(candidates, batch) if draw(st.booleans()) else batch))
    name = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
    names = torch.tensor([draw(name) for _ in range(candidates)])
    arguments = random_images(count, height, width, channels), indices, names if draw(st.booleans()) else names[0]
    how = {"pad": draw(st.integers(0, 50)), "flip": draw(st.booleans())}
    return (*arguments, *scale_of(channels)), how, draw(st.sampled_from(DTYPES))


@given(problems())
@example(
    (
        (random_images(2, 3, 17, 3), torch.tensor([1, 0]), torch.tensor(LAST), *scale_of(3)),
        {"pad": 2, "flip": True},
        torch.float32,
    )
)
@settings(max_examples=60)
def test_matches_numpy_bit_for_bit(
    backend: Any, problem: tuple[tuple[Tensor, ...], dict[str, Any], torch.dtype]
) -> None:
    arguments, how, dtype = problem
    batch = batch_of(backend, *arguments, **how, dtype=dtype)
    expected = torch.from_numpy(by_numpy(*arguments, **how)).to(dtype)
    has_candidates = any(tensor.dim() == 2 for tensor in arguments[1:3])
    assert batch.dtype == dtype
    assert torch.equal(batch, expected if has_candidates else expected[0])
    assert batch.movedim(-3, -1).is_contiguous()


@pytest.mark.parametrize(
    ("size", "channels", "dtype"),  # each size with each number of channels, in one dtype and then in the next
    [(size, c, DTYPES[(k + c) % len(DTYPES)]) for k, size in enumerate((32, 64, 96)) for c in (1, 2, 3, 4)],
    ids=str,
)
def test_images_of_usual_sizes(backend: Any, size: int, channels: int, dtype: torch.dtype) -> None:
    images = random_images(4, size, size, channels)
    arguments = images, torch.tensor([3, 1, 0, 1, 2]), torch.tensor([5, 6, 7]), *scale_of(channels)
    batch = batch_of(backend, *arguments, pad=size // 8, flip=True, dtype=dtype)
    assert torch.equal(batch, torch.from_numpy(by_numpy(*arguments, pad=size // 8, flip=True))[0].to(dtype))


def test_every_pixel_value_is_rounded_once_and_only_then_to_the_dtype(backend: Any) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 4).contiguous()
    arguments = images, torch.tensor([0]), torch.zeros(3, dtype=torch.int64), *scale_of(4)
    expected = torch.from_numpy(by_numpy(*arguments, pad=0, flip=False))[0]
    assert expected.double().ne((images.double().movedim(-1, 1) - 125.3) / 63.0).any()  # there is something to round
    for dtype in DTYPES:
        assert torch.equal(batch_of(backend, *arguments, pad=0, flip=False, dtype=dtype), expected.to(dtype))


def test_real_images(backend: Any) -> None:
    """scikit-learn's digits, 8x8, which are bundled."""
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images * 15).to(torch.uint8)[..., None].contiguous()
    arguments = digits, torch.arange(0, len(digits), 7), torch.tensor([1, 2, 3]), *scale_of(1)
    batch = batch_of(backend, *arguments, pad=1, flip=True)
    assert torch.equal(batch, torch.from_numpy(by_numpy(*arguments, pad=1, flip=True))[0])


def test_without_padding_and_mirroring_the_draw_does_not_matter(backend: Any) -> None:
    images, indices, draw, mean, std = example_of()
    batch = batch_of(backend, images, indices, draw, mean, std, pad=0, flip=False)
    assert torch.equal(batch, ((images[indices].float() - mean) / std).movedim(-1, 1))
    assert torch.equal(batch, batch_of(backend, images, indices, draw + 9, mean, std, pad=0, flip=False))


def test_windows_and_mirroring_are_uniform(backend: Any) -> None:
    """A white pixel on black tells where the window was."""
    images = torch.zeros(800, 7, 7, 1, dtype=torch.uint8)
    images[:, 2, 2] = 255
    scale = torch.zeros(1), torch.full((1,), 255.0)
    batch = batch_of(backend, images, torch.arange(800), torch.tensor([3, 4, 5]), *scale, pad=1, flip=True)
    assert torch.equal(batch.sum((1, 2, 3)), torch.ones(800))
    seen = batch.sum((0, 1))
    # in rows 1 to 3, and in columns 1 to 3 or, mirrored, 5 to 3
    expected = torch.zeros(7, 7)
    expected[1:4] = 800 / 3 * torch.tensor([0, 1, 1, 2, 1, 1, 0]) / 6
    assert torch.equal(seen > 0, expected > 0)
    chi_square = ((seen - expected) ** 2 / expected).nansum()
    assert chi_square < 36.1  # 14 degrees of freedom are above it once in 1,000; the draw is fixed


def test_batch_and_strides_do_not_matter(backend: Any) -> None:
    images, indices, draw, mean, std = example_of(2)
    how = {"pad": 2, "flip": True}
    batch = batch_of(backend, images, indices, draw, mean, std, **how)
    for p in range(2):
        assert torch.equal(batch[p], batch_of(backend, images, indices[p], draw[p], mean, std, **how))
    one_by_one = [batch_of(backend, images, indices[:, b : b + 1], draw, mean, std, **how) for b in range(6)]
    assert torch.equal(batch, torch.cat(one_by_one, 1))
    with_gaps = (tensor.repeat_interleave(2, -1)[..., ::2] for tensor in (indices, draw, mean, std))
    assert torch.equal(batch, batch_of(backend, images, *with_gaps, **how))
    transposed = indices.T.contiguous().T, draw.T.contiguous().T
    assert torch.equal(batch, batch_of(backend, images, *transposed, mean, std, **how))


def test_a_candidate_axis_on_one_tensor_serves_all(backend: Any) -> None:
    images, indices, draw, mean, std = example_of(2)
    for of in ((indices, draw[0]), (indices[0], draw)):
        batch = batch_of(backend, images, *of, mean, std, pad=2, flip=True)
        same = (tensor.expand(2, tensor.shape[-1]) for tensor in of)
        assert torch.equal(batch, batch_of(backend, images, *same, mean, std, pad=2, flip=True))


@pytest.mark.parametrize(("candidates", "shape"), [(None, (0, 3, 6, 5)), (2, (2, 0, 3, 6, 5)), (0, (0, 6, 3, 6, 5))])
def test_empty_batches(backend: Any, candidates: int | None, shape: tuple[int, ...]) -> None:
    images, indices, draw, mean, std = example_of(candidates)
    indices = indices if candidates == 0 else indices[..., :0]  # or no candidates
    batch = batch_of(backend, images, indices, draw, mean, std, pad=2, flip=True, dtype=torch.bfloat16)
    assert (batch.shape, batch.dtype) == (shape, torch.bfloat16)
    no_images = batch_of(backend, images[:0], indices, draw, mean, std, pad=2, flip=True)
    assert no_images.shape == shape


@pytest.mark.parametrize("index", [-1, 9, -(2**40), 2**40])
def test_an_index_out_of_range(backend: Any, index: int) -> None:
    if backend.name == "cuda" and backend.device.type == "cuda":
        pytest.skip("a device-side assertion ends the process's use of the GPU")
    images, indices, draw, mean, std = example_of()
    wrong = indices.clone()
    wrong[2] = index
    if backend.name != "triton":
        with pytest.raises((IndexError, RuntimeError), match="index"):
            batch_of(backend, images, wrong, draw, mean, std, pad=2, flip=True)
        return
    batch = batch_of(backend, images, wrong, draw, mean, std, pad=2, flip=True)
    assert batch[2].isnan().all()
    others = torch.arange(6) != 2
    assert torch.equal(batch[others], batch_of(backend, images, indices, draw, mean, std, pad=2, flip=True)[others])


@needs_cpp
def test_the_cpp_operator_names_the_index() -> None:
    images, indices, draw, mean, std = example_of()
    with pytest.raises(IndexError, match="index 12 is not one of the N = 9 images"):
        augment(images, indices + 12 - indices[0], draw, pad=0, flip=False, mean=mean, std=std, backend="cpp")


def test_images_beyond_2_gib(backend: Any) -> None:
    """Memory that is only reserved: no more than the images that are shown is ever touched."""
    if backend.device.type != "cpu":
        pytest.skip("on a GPU memory is not only reserved")
    images = torch.empty(5 * 2**20, 8, 16, 4, dtype=torch.uint8)  # 2.5 GiB
    index = len(images) - 1
    images[index] = random_images(1, 8, 16, 4)
    arguments = images, torch.tensor([index]), torch.tensor([1, 2, 3]), *scale_of(4)
    batch = batch_of(backend, *arguments, pad=2, flip=True)
    assert torch.equal(batch, torch.from_numpy(by_numpy(*arguments, pad=2, flip=True))[0])


def test_no_gradient(backend: Any) -> None:
    images, indices, draw, mean, std = example_of()
    batch = batch_of(backend, images, indices, draw, mean.requires_grad_(), std.requires_grad_(), pad=2, flip=True)
    assert not batch.requires_grad


def test_compiles_into_one_graph(backend: Any) -> None:
    images, indices, draw, mean, std = (tensor.to(backend.device) for tensor in example_of(2))

    def function(indices: Tensor, draw: Tensor) -> Tensor:
        return augment(
            images, indices, draw, pad=2, flip=True, mean=mean, std=std, dtype=torch.float16, backend=backend.name
        )

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(indices, draw), function(indices, draw))
    assert compiled(indices, draw).stride() == function(indices, draw).stride()


@pytest.mark.parametrize("own", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (1, 1, None), (None, None, 0), (0, 0, 1)])
def test_vmap_is_a_loop(backend: Any, in_dims: tuple[int | None, ...], own: tuple[bool, bool]) -> None:
    """Over indices, draw and mean, the first two with and without a P axis of their own."""
    images, _, _, mean, std = example_of()

    def function(indices: Tensor, draw: Tensor, mean: Tensor) -> Tensor:
        on_device = images.to(backend.device), indices, draw
        return augment(*on_device, pad=2, flip=True, mean=mean, std=std.to(backend.device), backend=backend.name)

    generator = torch.manual_seed(6)
    arguments = []
    for shape, dim, has_axis in zip([(4,), (3,)], in_dims[:2], own, strict=True):
        tensor = torch.randint(9, (3,) * (dim is not None) + (2,) * has_axis + shape, generator=generator)
        arguments.append(tensor.to(backend.device) if dim is None else tensor.movedim(0, dim).to(backend.device))
    means = mean if in_dims[2] is None else torch.stack([mean, mean + 1, mean * 2]).movedim(0, in_dims[2])
    arguments.append(means.to(backend.device))
    together = torch.func.vmap(function, in_dims)(*arguments)
    for i in range(3):
        alone = function(*(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)))
        assert torch.equal(together[i], alone)


def test_vmap_over_images(backend: Any) -> None:
    images = torch.stack([random_images(9, 6, 5, 3, seed=i) for i in range(3)]).to(backend.device)
    _, indices, draw, mean, std = (tensor.to(backend.device) for tensor in example_of())

    def function(images: Tensor) -> Tensor:
        return augment(images, indices, draw, pad=2, flip=True, mean=mean, std=std, backend=backend.name)

    assert torch.equal(torch.func.vmap(function)(images), torch.stack([function(each) for each in images]))


@needs_cpp
def test_registration() -> None:
    images, indices, draw, mean, std = example_of(2)
    operator = torch.ops.tfkd_fast.augment.default
    for of, dtype in (
        ((indices, draw), torch.float32),
        ((indices[0], draw), torch.bfloat16),
        ((indices, draw[0]), torch.float16),
        ((indices.T.contiguous().T[0], draw[0]), torch.float64),
        ((indices[:, :0], draw), torch.float32),
    ):
        torch.library.opcheck(operator, (images, *of, 2, True, mean, std, dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_captured_graph_follows_indices_and_draw_and_no_call_waits(name: str) -> None:
    images, mean, std = random_images(100, 32, 32, 3).cuda(), *(value.cuda() for value in scale_of(3))
    indices, draw = torch.arange(64).cuda(), torch.tensor([1, 2, 3]).cuda()

    def call() -> Tensor:
        return augment(images, indices, draw, pad=4, flip=True, mean=mean, std=std, dtype=torch.bfloat16, backend=name)

    call()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            batch = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    indices.add_(30)
    draw.add_(5)
    graph.replay()
    assert torch.equal(batch, call())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(9, 6, 5, 3)}, TypeError, "images must be uint8"),
        ({"images": torch.zeros(9, 6, 5, dtype=torch.uint8)}, ValueError, r"images must be \(N,H,W,C\)"),
        ({"images": torch.zeros(9, 6, 5, 5, dtype=torch.uint8)}, ValueError, "C from 1 to 4"),
        ({"images": torch.zeros(9, 6, 0, 3, dtype=torch.uint8)}, ValueError, r"images must be \(N,H,W,C\)"),
        ({"images": torch.zeros(9, 3, 6, 5, dtype=torch.uint8).movedim(1, 3)}, ValueError, "images must be contiguous"),
        ({"indices": torch.zeros(4, dtype=torch.int32)}, TypeError, "indices must be int64"),
        ({"images": torch.zeros(1, 1, 1, 3).byte().expand(1, 2**15, 2**14, 3)}, ValueError, r"fewer than 2\*\*29 pix"),
        ({"indices": torch.tensor(4)}, ValueError, r"indices must be \(B,\) or \(P,B\)"),
        ({"draw": torch.zeros(3)}, TypeError, "draw must be int64"),
        ({"draw": torch.zeros(2, dtype=torch.int64)}, ValueError, r"draw must be \(3,\) or \(P,3\)"),
        ({"draw": torch.zeros(3, 3, dtype=torch.int64)}, ValueError, "the same P"),
        ({"pad": -1}, ValueError, "pad must be in 0"),
        ({"mean": torch.zeros(3).double()}, TypeError, "mean must be float32"),
        ({"std": torch.zeros(1)}, ValueError, r"std must be \(C,\) with C = 3"),
        ({"dtype": torch.int32}, TypeError, "dtype must be one of torch.float32"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Any], error: type[Exception], message: str) -> None:
    names = ("images", "indices", "draw", "mean", "std")
    with pytest.raises(error, match=message):
        augment(**{**dict(zip(names, example_of(2), strict=True)), "pad": 2, "flip": True, **change})

"""candidate_metrics against scikit-learn, scipy and plain float64 formulas, for every backend here."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax
from scipy.stats import entropy
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor

from tests.support.threads import using_threads
from tfkd_fast.ops import CandidateMetrics, backends, candidate_metrics

# How far from the float64 formula on the same logits.
#
# Direct metrics, relative to 1 + |value|. float32: a sample's value has a few dozen roundings of 6e-8, at random; half
# types compute in float32. float64: likewise, of 1e-16. The accuracies are counts, rounded once.
DIRECT = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
# log T: what the docstring promises, and what float32 makes of a sum of derivatives that cancel.
LOG_TEMPERATURE = {torch.float64: 2e-5, torch.float32: 3e-5, torch.bfloat16: 3e-5, torch.float16: 3e-5}
# Calibrated NLL, relative: the smallest that is looked at, exp(-50), changes by 50 times as much as log T.
CALIBRATED = 1e-3
NEGLIGIBLE = 1e-22

DTYPES = list(DIRECT)


def problem(num_candidates: int = 3, samples: int = 401, num_classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float64 logits of candidates that know something of the labels: over-confident, right and under-confident."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=samples)
    signal = 1.5 * np.eye(num_classes)[labels] + rng.normal(size=(num_candidates, samples, num_classes))
    scale = np.geomspace(3.0, 0.3, num_candidates)[:, None, None]
    return torch.from_numpy(scale * signal), torch.from_numpy(labels)


def interpreted(backend: Any) -> bool:
    """Triton's interpreter takes 0.2 s for a program, which serves one candidate and up to 32 samples."""
    return backend.name == "triton" and backend.slow


def several_programs(backend: Any, samples: int) -> int:
    """Interpreted no more samples than a program and part of another have; elsewhere as many as given."""
    return min(samples, 45) if interpreted(backend) else samples


def few(backend: Any, samples: int) -> int:
    """Interpreted no more than part of a program, where it is not their number that matters; elsewhere as given."""
    return min(samples, 21) if interpreted(backend) else samples


def measure(backend: Any, logits: Tensor, labels: Tensor) -> CandidateMetrics:
    """The metrics by a backend, on the CPU."""
    metrics = candidate_metrics(logits.to(backend.device), labels.to(backend.device), backend=backend.name)
    return CandidateMetrics(*(metric.cpu() for metric in metrics))


def double(logits: Tensor) -> np.ndarray:
    return logits.double().numpy()


def nll_at(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """log(1 + the odds of a mistake), which a log-softmax loses where they are small beside 1."""
    margins = logits - np.take_along_axis(logits, labels[:, None], -1)
    margins[np.arange(len(labels)), labels] = -np.inf
    return np.logaddexp(0, logsumexp(margins / temperature, axis=-1))


def slope(logits: np.ndarray, labels: np.ndarray, b: float) -> float:
    """The derivative of the summed NLL in b = 1/T."""
    expected = (softmax(b * logits, axis=-1) * logits).sum(-1)
    return float((expected - logits[np.arange(len(labels)), labels]).sum())


def prior(b: float) -> float:
    return b - 1 - math.log(b)


def fitted_temperature(logits: np.ndarray, labels: np.ndarray, *, with_prior: bool = True) -> float:
    """The T of 0.05..20 of least NLL and, unless told otherwise, prior."""
    logits = logits - logits.max(-1, keepdims=True)

    def derivative(log_b: float) -> float:
        b = math.exp(log_b)
        return slope(logits, labels, b) + (1 - 1 / b) * with_prior

    low, high = -math.log(20.0), math.log(20.0)
    if derivative(low) >= 0:
        return 20.0
    return 0.05 if derivative(high) <= 0 else math.exp(-brentq(derivative, low, high, xtol=1e-12, rtol=1e-14))


def assert_calibrated(metrics: CandidateMetrics, logits: Tensor, labels: Tensor) -> None:
    """The calibrated NLL is that of the fitted temperature, to what can be told apart in its numbers, and below NLL."""
    for k, candidate in enumerate(double(logits)):
        expected = nll_at(candidate, labels.numpy(), fitted_temperature(candidate, labels.numpy())).mean()
        found = metrics.calibrated_nll[k].item()
        assert found == pytest.approx(expected, rel=CALIBRATED, abs=NEGLIGIBLE)
        assert found <= metrics.nll[k].item()


def ece_by_loop(logits: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al., ICML 2017, eq. 3, a bin at a time."""
    probabilities = softmax(logits, axis=-1)
    confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
    total = 0.0
    for j in range(15):
        members = [i for i in range(len(labels)) if j / 15 < confidence[i] <= (j + 1) / 15]
        if members:
            total += len(members) / len(labels) * abs(correct[members].mean() - confidence[members].mean())
    return total


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """A stable sort puts the lower index first among equal logits."""
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(-1).mean())


def direct_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    probabilities = softmax(logits, axis=-1)
    one_hot = np.eye(logits.shape[-1])[labels]
    return {
        "top1": top_k_accuracy(logits, labels, 1),
        "top5": top_k_accuracy(logits, labels, 5),
        "nll": float(nll_at(logits, labels, 1.0).mean()),
        "brier": float(((probabilities - one_hot) ** 2).sum(-1).mean()),
        "ece": ece_by_loop(logits, labels),
        "entropy": float(entropy(probabilities, axis=-1).mean()),
        "confidence": float(probabilities.max(-1).mean()),
    }


def assert_direct(metrics: CandidateMetrics, logits: Tensor, labels: Tensor) -> None:
    for k, candidate in enumerate(double(logits)):
        for name, expected in direct_metrics(candidate, labels.numpy()).items():
            found = getattr(metrics, name)[k].item()
            assert found == pytest.approx(expected, abs=DIRECT[logits.dtype] * (1 + abs(expected))), name


def assert_same(ours: CandidateMetrics, theirs: CandidateMetrics) -> None:
    for name, ours_one, theirs_one in zip(CandidateMetrics._fields, ours, theirs, strict=True):
        assert torch.equal(ours_one.nan_to_num(nan=-1.0), theirs_one.nan_to_num(nan=-1.0)), name


def test_accuracy_and_likelihood_against_scikit_learn(backend: Any) -> None:
    logits, labels = problem(samples=several_programs(backend, 101))
    metrics = measure(backend, logits, labels)
    for k in range(len(logits)):
        truth, scores = labels.numpy(), logits[k].numpy()
        assert metrics.top1[k] == pytest.approx(top_k_accuracy_score(truth, scores, k=1))
        assert metrics.top5[k] == pytest.approx(top_k_accuracy_score(truth, scores, k=5))
        assert metrics.nll[k] == pytest.approx(log_loss(truth, softmax(scores, axis=-1)), rel=1e-10)
    assert 0.0 < metrics.top1[0] < metrics.top5[0] < 1.0  # otherwise the comparison would say little


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("samples", "num_classes"), [(1, 2), (301, 7), (64, 10), (33, 100), (9, 257), (5, 1500)])
def test_direct_metrics_against_formulas(backend: Any, samples: int, num_classes: int, dtype: torch.dtype) -> None:
    candidates = 1 if interpreted(backend) and num_classes >= 100 else 2
    logits, labels = problem(candidates, several_programs(backend, samples), num_classes)
    logits = logits.to(dtype)
    metrics = measure(backend, logits, labels)
    assert all(metric.shape == (candidates,) for metric in metrics)
    assert {metric.dtype for metric in metrics} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert_direct(metrics, logits, labels)
    assert_calibrated(metrics, logits, labels)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(2, 20)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(shape[2], size=shape[1])
    logits = rng.normal(scale=draw(st.sampled_from([0.0, 0.01, 1.0, 10.0])), size=shape)
    if draw(st.booleans()):
        logits = logits.round(1)  # ties
    # Samples that are right by margins of every size, and few or none that are wrong.
    margins = draw(st.lists(st.sampled_from([0.0, 0.05, 1.0, 6.0, 20.0, 100.0, 1000.0]), min_size=1, max_size=3))
    logits += rng.choice(margins, size=shape[:2])[..., None] * np.eye(shape[2])[labels]
    logits *= draw(st.sampled_from([1.0, 1.0, 1e-3, 20.0]))  # float16 ends at 65504
    wrong = slice(draw(st.integers(0, 2)))
    logits[:, wrong] = np.roll(logits[:, wrong], 1, axis=-1)
    return torch.from_numpy(logits).to(draw(st.sampled_from(DTYPES))), torch.from_numpy(labels)


def test_drawn_problems_against_formulas(backend: Any) -> None:
    @given(problems())
    @settings(max_examples=12 if interpreted(backend) else 25 if backend.slow else 120)
    def check(drawn: tuple[Tensor, Tensor]) -> None:
        check_drawn_problem(backend, *drawn)

    check()


def check_drawn_problem(backend: Any, logits: Tensor, labels: Tensor) -> None:
    confidence = softmax(double(logits), axis=-1).max(-1)
    from_edge = np.abs(confidence[..., None] - np.arange(1, 15) / 15).min()
    assume(from_edge > 1e-6)  # rounding may take a confidence over the edge of its bin
    metrics = measure(backend, logits, labels)
    assert all(metric.isfinite().all() for metric in metrics)
    assert_direct(metrics, logits, labels)
    assert_calibrated(metrics, logits, labels)

    assert ((metrics.temperature > 0.049999) & (metrics.temperature < 20.001)).all()


def test_a_confidence_on_a_bin_edge_belongs_to_the_bin_below(backend: Any) -> None:
    edge = 10 / 15  # between bins (9/15, 10/15], which also takes 0.65, and (10/15, 11/15], which takes 0.67
    margins = torch.tensor([edge, 0.65, 0.67, 0.67], dtype=torch.float64).logit()
    margins[0] = math.log(2.0)
    logits = torch.stack([torch.zeros_like(margins), -margins], dim=-1)
    assert logits.softmax(-1)[0, 0] == edge  # exactly
    labels = torch.tensor([1, 0, 0, 0])  # the sample on the edge is wrong
    below, above = abs((0 - edge) + (1 - 0.65)), abs(2 * (1 - 0.67))
    assert measure(backend, logits.unsqueeze(0), labels).ece.item() == pytest.approx((below + above) / 4, abs=1e-12)


@pytest.mark.parametrize(
    ("seed", "dtype", "samples", "num_classes"),
    [
        *((seed, dtype, 401, 7) for seed, dtype in enumerate(DTYPES)),
        (4, torch.float64, 401, 7),
        (5, torch.float32, 401, 7),
        (6, torch.float64, 120, 100),
    ],
)
def test_temperatures_against_scipy(
    backend: Any, seed: int, dtype: torch.dtype, samples: int, num_classes: int
) -> None:
    if backend.slow:
        samples //= 4
    logits, labels = problem(3, several_programs(backend, samples), num_classes, seed)
    logits = logits.to(dtype)
    metrics = measure(backend, logits, labels)
    expected = [fitted_temperature(candidate, labels.numpy()) for candidate in double(logits)]
    np.testing.assert_allclose(
        metrics.temperature.double().log(), np.log(expected), atol=LOG_TEMPERATURE[dtype], rtol=0
    )
    assert_calibrated(metrics, logits, labels)


@pytest.mark.parametrize("scale", [0.05, 0.2, 5.0, 15.0, 60.0])
def test_temperatures_far_from_one(backend: Any, scale: float) -> None:
    logits, labels = problem(1, several_programs(backend, 150 if backend.slow else 500), 10)
    metrics = measure(backend, scale * logits, labels)
    expected = fitted_temperature(scale * logits[0].numpy(), labels.numpy())
    assert metrics.temperature.log().item() == pytest.approx(math.log(expected), abs=LOG_TEMPERATURE[logits.dtype])


def test_calibrated_nll_sees_the_scale_of_the_logits_by_the_prior_alone(backend: Any) -> None:
    logits, labels = problem(num_candidates=1, samples=few(backend, 101))
    scales = (0.2, 1.0, 4.0)
    metrics = measure(backend, torch.cat([scale * logits for scale in scales]), labels)
    best = fitted_temperature(logits[0].numpy(), labels.numpy(), with_prior=False)
    least = nll_at(logits[0].numpy(), labels.numpy(), best).mean()
    for scale, found in zip(scales, metrics.calibrated_nll.tolist(), strict=True):
        assert least - 1e-12 <= found <= least + prior(1 / (scale * best)) / len(labels)
    assert metrics.nll[2] > metrics.calibrated_nll[2] + 0.5


def right_by(margins: list[float], samples: int) -> tuple[Tensor, Tensor]:
    """Candidates that classify every sample rightly, by a margin each."""
    labels = torch.arange(samples) % 10
    return torch.tensor(margins).view(-1, 1, 1) * torch.nn.functional.one_hot(labels, 10).float(), labels


def test_one_wrong_sample_among_right_ones(backend: Any) -> None:
    """No temperature may be fitted to some of the samples: without the wrong one the NLL has no minimum."""
    logits, labels = right_by([6.0, 10.0, 20.0, 1000.0], few(backend, 400))
    logits[:, 1] = logits[:, 1].roll(1, dims=-1)
    metrics = measure(backend, logits, labels)
    assert_calibrated(metrics, logits, labels)
    assert (metrics.calibrated_nll < 0.99 * metrics.nll).all()


def test_without_an_error_the_temperature_is_as_low_as_the_number_of_samples_supports(backend: Any) -> None:
    margins = [0.5, 6.0, 30.0]
    logits, labels = right_by(margins, few(backend, 400))
    metrics = measure(backend, logits, labels)
    assert_calibrated(metrics, logits, labels)
    for margin, nll, temperature in zip(margins, metrics.calibrated_nll, metrics.temperature, strict=True):
        # The derivative of the NLL in b is the margin times the probability of a mistake, and that is about the NLL.
        assert len(labels) * margin * nll.item() == pytest.approx(1 - temperature.item(), rel=0.5, abs=1e-4)


def test_the_order_of_the_samples_does_not_matter(backend: Any) -> None:
    logits, labels = problem(num_candidates=1, samples=few(backend, 101))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = measure(backend, logits[:, order], labels[order])
    for ours, theirs in zip(shuffled, measure(backend, logits, labels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_temperature_stays_in_its_bracket(backend: Any) -> None:
    right, labels = right_by([0.1, -1000.0, 0.0], 21)  # hardly right, far from right, and without an opinion
    metrics = measure(backend, right.double(), labels)
    np.testing.assert_allclose(
        metrics.temperature, [0.05, 20.0, 1.0], rtol=2e-5
    )  # without an opinion it is the prior's
    expected = [math.log1p(9 * math.exp(-2.0)), 50 + math.log(9), math.log(10)]
    np.testing.assert_allclose(metrics.calibrated_nll, expected, rtol=2e-5)


def test_of_equal_logits_the_lower_index_comes_first(backend: Any) -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [2.0, 1.0, 2.0]]])
    for label in range(3):
        labels = torch.full((3,), label)
        expected = (logits[0].argmax(-1) == labels).double().mean().item()
        assert measure(backend, logits, labels).top1.item() == pytest.approx(expected)
    constant = torch.zeros(1, 70, 7)  # a dead network is right by chance, not always
    metrics = measure(backend, constant, torch.arange(70) % 7)
    assert (metrics.top1.item(), metrics.top5.item()) == pytest.approx((1 / 7, 5 / 7))


def test_five_classes_or_fewer_are_always_in_the_top_five(backend: Any) -> None:
    logits = torch.randn(2, 30, 5, generator=torch.manual_seed(0))
    assert measure(backend, logits, torch.arange(30) % 5).top5.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broken_candidate_is_nan_and_harms_no_other(backend: Any, dtype: torch.dtype) -> None:
    logits, labels = problem(num_candidates=4, samples=few(backend, 41))
    logits = logits.to(dtype)
    alone = measure(backend, logits[:1], labels)
    for k, value in enumerate((math.nan, math.inf, -math.inf), start=1):
        logits[k, 5, 2] = value
    together = measure(backend, logits, labels)
    assert_same(CandidateMetrics(*(metric[:1] for metric in together)), alone)
    assert all(metric[1:].isnan().all() for metric in together)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_stay_finite(backend: Any, dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 2, 0])
    signs = torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]])
    logits = (2.0**13 * signs).to(dtype).unsqueeze(0)  # exact in every dtype
    metrics = measure(backend, logits, labels)
    assert all(metric.isfinite().all() for metric in metrics)
    assert metrics.nll.item() == pytest.approx(2**14 / 4)  # one sample of four is wrong, by a margin of 2^14
    assert metrics.calibrated_nll.item() == pytest.approx(2**14 / 4 / 20, rel=2e-5)
    assert metrics.top1.item() == 0.75
    assert metrics.brier.item() == pytest.approx(2 / 4)
    assert metrics.ece.item() == pytest.approx(0.25)
    assert metrics.entropy.item() == 0.0


def test_the_range_of_float32_is_no_limit(backend: Any) -> None:
    highest = torch.finfo(torch.float32).max
    logits = torch.tensor([[[highest, -highest], [highest, -highest]]])  # their distance is infinite
    metrics = measure(backend, logits, torch.tensor([0, 0]))
    assert (metrics.nll.item(), metrics.calibrated_nll.item(), metrics.confidence.item()) == (0.0, 0.0, 1.0)
    metrics = measure(backend, logits, torch.tensor([0, 1]))
    assert (metrics.nll.item(), metrics.top1.item(), metrics.brier.item()) == (math.inf, 0.5, 1.0)


def test_logits_at_the_end_of_the_range_of_float32(backend: Any) -> None:
    metrics = measure(backend, torch.full((1, 4, 3), torch.finfo(torch.float32).min), torch.tensor([0, 1, 2, 0]))
    assert metrics.nll.item() == pytest.approx(math.log(3), abs=1e-6)
    assert metrics.top1.item() == 0.5


def test_a_common_offset_of_the_logits_changes_nothing(backend: Any) -> None:
    logits, labels = problem(samples=few(backend, 101))
    coarse = (logits * 64).round().float() / 64  # exact after adding 4096, too
    assert_same(measure(backend, coarse + 4096, labels), measure(backend, coarse, labels))


def test_a_far_higher_logit_ties_no_others(backend: Any) -> None:
    row = torch.zeros(8)
    row[:6] = torch.tensor([1e8, 5.0, 4.0, 3.0, 2.0, 1.0])  # float32 cannot tell these apart next to 1e8
    logits = row.expand(1, 2, 8)
    assert measure(backend, logits, torch.tensor([4, 5])).top5.item() == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_compute_in_float32(backend: Any, dtype: torch.dtype) -> None:
    logits, labels = problem(samples=few(backend, 101))
    assert_same(measure(backend, logits.to(dtype), labels), measure(backend, logits.to(dtype).float(), labels))


def test_no_gradient_and_any_strides(backend: Any) -> None:
    logits, labels = problem(samples=few(backend, 101))
    expected = measure(backend, logits, labels)
    swapped = logits.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    every_other = labels.repeat_interleave(2)[::2]
    metrics = measure(backend, swapped, every_other)
    assert not any(metric.requires_grad for metric in metrics)
    for ours, theirs in zip(metrics, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_the_same_result_every_time(backend: Any) -> None:
    logits, labels = problem(samples=few(backend, 200))
    first, second = (measure(backend, logits.float(), labels) for _ in range(2))
    assert_same(first, second)


@pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
def test_threads_change_no_bit() -> None:
    logits, labels = problem(samples=5000)
    results = []
    for count in (1, 2, 3):
        with using_threads(count):
            results.append(candidate_metrics(logits.float(), labels, backend="cpp"))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_compiles_into_one_graph(backend: Any) -> None:
    logits, labels = problem(samples=20)
    logits, labels = logits.to(backend.device), labels.to(backend.device)
    compiled = torch.compile(
        lambda *args: candidate_metrics(*args, backend=backend.name), fullgraph=True, backend="aot_eager"
    )
    for ours, theirs in zip(compiled(logits, labels), measure(backend, logits, labels), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("in_dims", [(0, None), (2, None), (None, 0), (1, 1)])
def test_vmap_is_a_loop(backend: Any, in_dims: tuple[int | None, int | None]) -> None:
    def function(*arguments: Tensor) -> CandidateMetrics:
        return candidate_metrics(*arguments, backend=backend.name)

    problems = [problem(2, 20, 3, seed=seed) for seed in range(3)]
    arguments = []
    for position, dim in enumerate(in_dims):
        tensors = [each[position].to(backend.device) for each in problems]
        arguments.append(tensors[0] if dim is None else torch.stack(tensors, dim))
    together = torch.func.vmap(function, in_dims)(*arguments)
    for i in range(3):
        alone = function(*(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)))
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[i], theirs, rtol=1e-12, atol=0)


@pytest.mark.skipif(backends.native_library.missing is not None, reason=str(backends.native_library.missing))
def test_registration() -> None:
    logits, labels = problem(samples=20)
    for z in (logits, logits.float(), logits.bfloat16(), logits.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.library.opcheck(torch.ops.tfkd_fast.candidate_metrics.default, (z, labels))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_captured_graph_follows_its_inputs_and_no_call_waits(name: str) -> None:
    first, second = (problem(4, 1000, 10, seed=seed) for seed in range(2))
    logits, labels = first[0].float().cuda(), first[1].cuda()
    candidate_metrics(logits, labels, backend=name)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        candidate_metrics(logits, labels, backend=name)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            metrics = candidate_metrics(logits, labels, backend=name)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    logits.copy_(second[0])
    labels.copy_(second[1])
    graph.replay()
    assert_same(metrics, candidate_metrics(logits, labels, backend=name))


def test_refuses_a_label_out_of_range(backend: Any) -> None:
    if backend.name == "triton" or backend.device.type == "cuda":
        pytest.skip("the host does not look at labels on a device")
    for label in (-1, 5):
        with pytest.raises((IndexError, RuntimeError), match=r"label|out of bounds"):
            measure(backend, torch.zeros(2, 8, 5), torch.full((8,), label))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((20, 5), (20,), r"logits must be \(K,N,C\)"),
        ((2, 0, 5), (0,), "N >= 1"),
        ((0, 8, 5), (8,), "K >= 1"),
        ((2, 8, 1), (8,), "C >= 2"),
        ((2, 8, 5), (7,), "N = 8"),
        ((2, 8, 5), (2, 8), "N = 8"),
    ],
)
def test_refuses_shapes(logits: tuple[int, ...], labels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        candidate_metrics(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_refuses_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="cannot serve candidate_metrics"):
        candidate_metrics(*problem(), backend="abacus")


def test_refuses_dtypes() -> None:
    with pytest.raises(TypeError, match="logits"):
        candidate_metrics(torch.zeros(2, 8, 5, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(TypeError, match="labels"):
        candidate_metrics(torch.zeros(2, 8, 5), torch.zeros(8))

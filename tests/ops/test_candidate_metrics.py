"""candidate_metrics against scikit-learn, scipy and plain float64 formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor

from tfkd_fast.ops import candidate_metrics


def problem(num_candidates: int = 3, samples: int = 401, num_classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float64 logits of candidates that know something of the labels: over-confident, right and under-confident."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=samples)
    signal = 1.5 * np.eye(num_classes)[labels] + rng.normal(size=(num_candidates, samples, num_classes))
    scale = np.geomspace(3.0, 0.3, num_candidates)[:, None, None]
    return torch.from_numpy(scale * signal), torch.from_numpy(labels)


def nll_at(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    return -log_softmax(logits / temperature, axis=-1)[np.arange(len(labels)), labels]


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    bounds = (math.log(0.05), math.log(20.0))
    found = minimize_scalar(
        lambda log_t: nll_at(logits, labels, math.exp(log_t)).mean(),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(found.x)


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


def test_accuracy_and_likelihood_against_scikit_learn() -> None:
    logits, labels = problem()
    metrics = candidate_metrics(logits, labels)
    for k in range(len(logits)):
        truth, scores = labels.numpy(), logits[k].numpy()
        assert metrics.top1[k] == pytest.approx(top_k_accuracy_score(truth, scores, k=1))
        assert metrics.top5[k] == pytest.approx(top_k_accuracy_score(truth, scores, k=5))
        assert metrics.nll[k] == pytest.approx(log_loss(truth, softmax(scores, axis=-1)), rel=1e-10)
    assert 0.0 < metrics.top1[0] < metrics.top5[0] < 1.0  # otherwise the comparison would say little


def test_brier_entropy_and_confidence_against_formulas() -> None:
    logits, labels = problem()
    metrics = candidate_metrics(logits, labels)
    probabilities = softmax(logits.numpy(), axis=-1)
    one_hot = np.eye(7)[labels.numpy()]
    np.testing.assert_allclose(metrics.brier, ((probabilities - one_hot) ** 2).sum(-1).mean(-1), rtol=1e-12)
    np.testing.assert_allclose(metrics.entropy, entropy(probabilities, axis=-1).mean(-1), rtol=1e-12)
    np.testing.assert_allclose(metrics.confidence, probabilities.max(-1).mean(-1), rtol=1e-12)


def test_calibration_error_against_a_loop_over_bins() -> None:
    logits, labels = problem()
    expected = [ece_by_loop(logits[k].numpy(), labels.numpy()) for k in range(3)]
    np.testing.assert_allclose(candidate_metrics(logits, labels).ece, expected, rtol=1e-10)


def test_a_confidence_on_a_bin_edge_belongs_to_the_bin_below() -> None:
    edge = 2 / 3  # between bins (9/15, 10/15], which also takes 0.65, and (10/15, 11/15], which takes 0.67
    margins = torch.tensor([edge, 0.65, 0.67, 0.67], dtype=torch.float64).logit()
    margins[0] = math.log(2.0)
    logits = torch.stack([torch.zeros_like(margins), -margins], dim=-1)
    assert logits.softmax(-1)[0, 0] == torch.linspace(0, 1, 16, dtype=torch.float64)[10]  # exactly on the edge
    labels = torch.tensor([1, 0, 0, 0])  # the sample on the edge is wrong
    below, above = abs((0 - edge) + (1 - 0.65)), abs(2 * (1 - 0.67))
    assert candidate_metrics(logits.unsqueeze(0), labels).ece.item() == pytest.approx((below + above) / 4, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_temperature_against_scipy(seed: int) -> None:
    logits, labels = problem(seed=seed)
    found = candidate_metrics(logits, labels).temperature
    expected = [best_temperature(logits[k].numpy(), labels.numpy()) for k in range(3)]
    # 24 golden-section steps leave a bracket of 6e-5 in log T
    np.testing.assert_allclose(found.log(), np.log(expected), atol=6e-5)


def test_calibrated_nll_is_the_cross_fit() -> None:
    logits, labels = problem()
    expected = []
    for candidate in logits.numpy():
        even, odd = (candidate[::2], labels.numpy()[::2]), (candidate[1::2], labels.numpy()[1::2])
        scored = np.concatenate([nll_at(*odd, best_temperature(*even)), nll_at(*even, best_temperature(*odd))])
        expected.append(scored.mean())
    # an error of 6e-5 in log T moves the score of the other half by less than 1e-4 of a nat
    np.testing.assert_allclose(candidate_metrics(logits, labels).calibrated_nll, expected, atol=1e-4)


def test_calibrated_nll_does_not_see_the_scale_of_the_logits() -> None:
    logits, labels = problem(num_candidates=1)
    scaled = torch.cat([0.2 * logits, logits, 4.0 * logits])
    metrics = candidate_metrics(scaled, labels)
    np.testing.assert_allclose(metrics.calibrated_nll, metrics.calibrated_nll[0], atol=1e-4)
    np.testing.assert_allclose(metrics.temperature / metrics.temperature[0], [1.0, 5.0, 20.0], rtol=1.3e-4)
    assert metrics.nll[2] > metrics.calibrated_nll[2] + 0.5


def test_temperature_stays_in_its_bracket() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    right = torch.nn.functional.one_hot(labels, 2).double()
    metrics = candidate_metrics(torch.stack([right, -right]), labels)  # always right, always wrong
    np.testing.assert_allclose(metrics.temperature, [0.05, 20.0], rtol=6e-5)


def test_of_equal_logits_the_lower_index_comes_first() -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [2.0, 1.0, 2.0]]])
    for label in range(3):
        labels = torch.full((3,), label)
        expected = (logits[0].argmax(-1) == labels).double().mean().item()
        assert candidate_metrics(logits, labels).top1.item() == pytest.approx(expected)
    constant = torch.zeros(1, 70, 7)  # a dead network is right by chance, not always
    metrics = candidate_metrics(constant, torch.arange(70) % 7)
    assert (metrics.top1.item(), metrics.top5.item()) == pytest.approx((1 / 7, 5 / 7))


def test_five_classes_or_fewer_are_always_in_the_top_five() -> None:
    logits = torch.randn(2, 30, 5, generator=torch.manual_seed(0))
    assert candidate_metrics(logits, torch.arange(30) % 5).top5.tolist() == [1.0, 1.0]


def test_a_broken_candidate_is_nan_and_harms_no_other() -> None:
    logits, labels = problem(num_candidates=4)
    alone = candidate_metrics(logits[:1], labels)
    for k, value in enumerate((math.nan, math.inf, -math.inf), start=1):
        logits[k, 5, 2] = value
    for name, together in candidate_metrics(logits, labels)._asdict().items():
        assert together[0].item() == pytest.approx(getattr(alone, name).item(), rel=1e-12), name
        assert together[1:].isnan().all(), name


def test_extreme_logits_stay_finite() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    logits = 1e4 * torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]).unsqueeze(0)
    metrics = candidate_metrics(logits, labels)
    assert all(metric.isfinite().all() for metric in metrics)
    assert metrics.nll.item() == pytest.approx(2e4 / 4)  # one sample of four is wrong, by a margin of 2e4
    assert metrics.top1.item() == 0.75
    assert metrics.brier.item() == pytest.approx(2 / 4)
    assert metrics.ece.item() == pytest.approx(0.25)
    assert metrics.entropy.item() == 0.0


def test_a_common_offset_of_the_logits_changes_nothing() -> None:
    logits, labels = problem()
    coarse = (logits * 64).round().float() / 64  # exact after adding 4096, too
    for shifted, plain in zip(candidate_metrics(coarse + 4096, labels), candidate_metrics(coarse, labels), strict=True):
        assert torch.equal(shifted, plain)


def test_a_far_higher_logit_ties_no_others() -> None:
    row = torch.zeros(8)
    row[:6] = torch.tensor([1e8, 5.0, 4.0, 3.0, 2.0, 1.0])  # float32 cannot tell these apart next to 1e8
    logits = row.expand(1, 2, 8)
    assert candidate_metrics(logits, torch.tensor([4, 5])).top5.item() == 0.5


def test_single_precision_agrees_with_double() -> None:
    logits, labels = problem()
    double, single = candidate_metrics(logits, labels), candidate_metrics(logits.float(), labels)
    for name, value in single._asdict().items():
        assert value.dtype == torch.float32
        # Rounding of the NLL (1e-7) hides about sqrt(1e-7) of log T near the minimum, where the other half's NLL
        # changes by less than 0.05 nats a unit of log T; the other figures are direct.
        tolerance = {"temperature": 2e-3, "calibrated_nll": 1e-4}.get(name, 2e-6)
        np.testing.assert_allclose(value, getattr(double, name), rtol=tolerance, err_msg=name)
    half = logits.bfloat16()
    for ours, theirs in zip(candidate_metrics(half, labels), candidate_metrics(half.float(), labels), strict=True):
        assert torch.equal(ours, theirs)


def test_no_gradient_and_any_strides() -> None:
    logits, labels = problem()
    swapped = logits.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    for ours, theirs in zip(candidate_metrics(swapped, labels), candidate_metrics(logits, labels), strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_compiles_into_one_graph() -> None:
    logits, labels = problem(samples=20)
    compiled = torch.compile(candidate_metrics, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(logits, labels), candidate_metrics(logits, labels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((20, 5), (20,), r"logits must be \(K,N,C\)"),
        ((2, 1, 5), (1,), "N >= 2"),
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


def test_refuses_a_label_out_of_range() -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        candidate_metrics(torch.zeros(2, 8, 5), torch.full((8,), 5))


def test_refuses_dtypes() -> None:
    with pytest.raises(TypeError, match="logits"):
        candidate_metrics(torch.zeros(2, 8, 5, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
    with pytest.raises(TypeError, match="labels"):
        candidate_metrics(torch.zeros(2, 8, 5), torch.zeros(8))

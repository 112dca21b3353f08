"""Metrics of several candidate classifiers on the same samples."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, checks, fused, losses

ECE_BINS = 15
TEMPERATURE_BRACKET = (0.05, 20.0)
BISECTIONS = 18
"""Steps of the reference's search: they leave 2.3e-5 of log T."""


class CandidateMetrics(NamedTuple):
    """One value a candidate, each (K,): float32, or float64 for float64 logits. Accuracies are fractions."""

    top1: Tensor
    """Accuracy of the most likely class."""
    top5: Tensor
    """Share of samples whose label is among the five most likely classes."""
    nll: Tensor
    """Mean negative log-likelihood, nats."""
    calibrated_nll: Tensor
    """Mean negative log-likelihood of `logits / temperature`, nats: at most `nll`."""
    temperature: Tensor
    """The temperature that is fitted to the samples, with a weak prior about 1."""
    brier: Tensor
    """Squared error of the distribution, summed over classes (Brier, 1950): 0..2."""
    ece: Tensor
    """Expected calibration error of the top-1 confidence, 15 equal-width bins."""
    entropy: Tensor
    """Mean entropy of the predictions, nats."""
    confidence: Tensor
    """Mean probability of the predicted class."""


def candidate_metrics(logits: Tensor, labels: Tensor, *, backend: str | None = None) -> CandidateMetrics:
    """Accuracy, likelihood and calibration of K candidates that saw the same N samples. No gradient.

    * top1, top5: a sample counts when its label is among the 1 (5) classes of highest logit, of equal ones those of
      lower index, as `argmax` has it. With C <= 5 every sample counts for top5.
    * temperature: with b = 1/T, the b in 1/20..20 that minimises the sum of the samples' NLL at `b * logits` (Guo et
      al., ICML 2017) plus b - 1 - log b, to 2e-5 of log T. The added term is minus the logarithm of a prior (our
      choice), the gamma distribution of shape 2 and rate 1 over b, whose mode is 1. It weighs as much as one wrong
      sample whose logits differ by 1.
    * calibrated_nll: the mean NLL at that temperature. A candidate taught by softer targets is thus not punished for
      being under-confident.
    * ece: Guo et al., ICML 2017, eq. 3; bins are open on the left and closed on the right.

    Why the temperature is fitted like this (our choice). Without the prior, logits that classify every sample rightly
    have no best temperature: their NLL falls for ever as b grows. For the same reason no half of the samples may have
    a temperature of its own: a half without an error would make the one error of the other half cost 20 times its
    margin. With the prior the sum is strictly convex in b, because the NLL of a sample, log sum_c exp(b z_c) - b z_y,
    is convex. So there is one minimum. Where l(b) is the sum of the NLL and p(b) = b - 1 - log b, so that p(1) = 0 <=
    p(b), three things follow for the fitted b:

    * l(b) <= l(b) + p(b) <= l(1): calibrated_nll is never above nll.
    * l(b) <= l(b') + p(b') for every b' of 1/20..20: the prior costs at most p(b') / N nats more than the best
      temperature T' = 1/b', which is 0.3 / N for T' = 0.5 or 2, and 2.4 / N for T' = 0.2.
    * Logits whose scale differs have the same calibrated_nll up to that cost.

    Fitted to the samples that it is scored on, one number makes the NLL look better by about 1 / (2N) nats (Akaike,
    1974), alike for all candidates.

    A candidate with a logit that is not finite gets NaN for every metric; the others are not affected.

    Args:
        logits: (K,N,C) floating point, K >= 1, N >= 1, C >= 2. Computed in float32, float64 logits in float64.
        labels: (N,) int64, 0..C-1.
        backend: an operator backend; None picks the fastest that serves the tensors.

    Raises:
        ValueError: for shapes that do not fit; TypeError for dtypes and for arguments that are no tensors.
        IndexError, or torch's own RuntimeError from the reference: for a label out of range, on the CPU. A CUDA device
            reports it by an assertion.
    """
    _check(logits, labels)
    logits = logits.detach()  # from tangents of forward-mode differentiation, too
    metrics: CandidateMetrics = backends.select("candidate_metrics", backend, logits)(logits, labels)
    return metrics


def _check(logits: Tensor, labels: Tensor) -> None:
    checks.check_tensors(logits=logits, labels=labels)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if logits.dim() != 3 or logits.shape[0] < 1 or logits.shape[1] < 1 or logits.shape[2] < 2:
        raise ValueError(f"logits must be (K,N,C) with K >= 1, N >= 1 and C >= 2, got {tuple(logits.shape)}")
    checks.check_device("labels", labels, "the logits", logits)
    if labels.shape != logits.shape[1:2]:
        raise ValueError(f"labels must be (N,) with N = {logits.shape[1]}, got {tuple(labels.shape)}")


# The definition.


@torch.no_grad()
def _reference(logits: Tensor, labels: Tensor) -> CandidateMetrics:
    is_finite = logits.isfinite().all(dim=(1, 2))
    classes = torch.arange(logits.shape[-1], device=labels.device)
    own = _at_label(logits, labels).unsqueeze(-1)
    ahead = ((logits > own) | ((logits == own) & (classes < labels.unsqueeze(-1)))).sum(-1)
    if logits.dtype != torch.float64:
        logits = logits.float()
    logits = logits - logits.amax(-1, keepdim=True)  # a common offset would cost the NLL its last digits

    probabilities = logits.softmax(-1)
    confidence = probabilities.amax(-1)
    true_class = labels.unsqueeze(-1) == classes  # (N,C)
    correct = (ahead < 1).to(logits.dtype)

    interior_edges = torch.arange(1, ECE_BINS, dtype=logits.dtype, device=logits.device) / ECE_BINS
    bins = torch.bucketize(confidence, interior_edges)
    in_bin = bins.unsqueeze(-1) == torch.arange(ECE_BINS, device=logits.device)  # (K,N,bins)
    bin_gaps = ((correct - confidence).unsqueeze(-1) * in_bin).mean(1)  # each weighted by its share of the samples

    temperature = _fit_temperature(logits, labels)
    nll = _nll(logits, labels, torch.ones_like(temperature))
    metrics = CandidateMetrics(
        top1=correct.mean(-1),
        top5=(ahead < 5).to(logits.dtype).mean(-1),
        nll=nll,
        calibrated_nll=torch.minimum(nll, _nll(logits, labels, temperature)),  # they differ by rounding near T = 1
        temperature=temperature,
        brier=(probabilities - true_class.to(logits.dtype)).square().sum(-1).mean(-1),
        ece=bin_gaps.abs().sum(-1),
        entropy=torch.special.entr(probabilities).sum(-1).mean(-1),
        confidence=confidence.mean(-1),
    )
    return CandidateMetrics(*(torch.where(is_finite, metric, torch.nan) for metric in metrics))


def _at_label(values: Tensor, labels: Tensor) -> Tensor:
    """Return the entries (K,N) of `values` (K,N,C) at each sample's label."""
    return values.gather(-1, labels.expand(values.shape[0], -1).unsqueeze(-1)).squeeze(-1)


def _nll(logits: Tensor, labels: Tensor, temperature: Tensor) -> Tensor:
    """Return the mean NLL (K,) at one temperature for each candidate (K,).

    Summed without the label's own class, so that a small NLL keeps its digits beside 1.
    """
    scaled = logits / temperature.view(-1, 1, 1)
    others = scaled.scatter(-1, labels.expand(scaled.shape[0], -1).unsqueeze(-1), -torch.inf).logsumexp(-1)
    margin = others - _at_label(scaled, labels)
    return torch.logaddexp(margin, torch.zeros_like(margin)).mean(-1)


def _fit_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the temperature (K,) of least NLL and prior, from logits (K,N,C) whose highest of each sample is 0."""

    def slope(b: Tensor) -> Tensor:
        """Return the derivative (K,) in b = 1/T, which rises with b."""
        probabilities = (logits * b.view(-1, 1, 1)).softmax(-1)
        expected = torch.where(probabilities > 0, probabilities * logits, 0.0).sum(-1)
        return (expected - _at_label(logits, labels)).sum(-1) + 1.0 - 1.0 / b

    low, high = (logits.new_full(logits.shape[:1], -math.log(bound)) for bound in reversed(TEMPERATURE_BRACKET))
    for _ in range(BISECTIONS):  # of log b
        middle = 0.5 * (low + high)
        falls = slope(middle.exp()) < 0
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return (-0.5 * (low + high)).exp()


# The fused backends.


def _fused(operator: OpOverload, logits: Tensor, labels: Tensor) -> CandidateMetrics:
    return CandidateMetrics(*operator(logits, labels).unbind(0))


def _fake(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.new_empty(len(CandidateMetrics._fields), logits.shape[0], dtype=losses.loss_dtype(logits))


def _vmap(operator: OpOverload, info: Any, in_dims: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    of_logits, of_labels = in_dims
    if of_labels is None:  # the mapped axis joins K
        candidates = logits.movedim(of_logits, 0).flatten(0, 1)
        return operator(candidates, labels).unflatten(1, (info.batch_size, -1)), 1
    each_logits = [logits] * info.batch_size if of_logits is None else logits.unbind(of_logits)
    return torch.stack([operator(*each) for each in zip(each_logits, labels.unbind(of_labels), strict=True)]), 0


fused.define("candidate_metrics", "candidate_metrics", "(Tensor logits, Tensor labels) -> Tensor", _fake, _vmap)
backends.register("candidate_metrics", "reference", _reference)
fused.register("candidate_metrics", _fused)

"""Metrics of several candidate classifiers on the same samples."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from tfkd_fast.ops import backends, fused, losses

ECE_BINS = 15
TEMPERATURE_BRACKET = (0.05, 20.0)
# Each step keeps 0.618 of the bracket: 24 leave 6e-5 of log T, where the NLL is flat to float32 precision.
GOLDEN_SECTION_STEPS = 24
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


class CandidateMetrics(NamedTuple):
    """One value a candidate, each (K,): float32, or float64 for float64 logits. Accuracies are fractions."""

    top1: Tensor
    """Accuracy of the most likely class."""
    top5: Tensor
    """Share of samples whose label is among the five most likely classes."""
    nll: Tensor
    """Mean negative log-likelihood, nats."""
    calibrated_nll: Tensor
    """Mean negative log-likelihood after temperature scaling, cross-fitted over two halves of the samples, nats."""
    temperature: Tensor
    """The temperature of least NLL on all samples."""
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
    * temperature: minimises the mean NLL of `logits / T` (Guo et al., ICML 2017) over 0.05 <= T <= 20, to 6e-5 of
      log T: the reference by golden section, the others by the root of the derivative in 1/T, which is monotone.
      Where the NLL is flat, because all logits are equal, it is 20.
    * calibrated_nll: T is fitted on the even samples and scored on the odd ones, and the reverse; the mean is over all
      samples (our choice). A candidate taught by softer targets is thus not punished only for being under-confident.
    * ece: Guo et al., ICML 2017, eq. 3; bins are open on the left and closed on the right.

    A candidate with a logit that is not finite gets NaN for every metric; the others are not affected.

    Args:
        logits: (K,N,C) floating point, K >= 1, N >= 2, C >= 2. Computed in float32, float64 logits in float64.
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
    backends.check_tensors(logits=logits, labels=labels)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if logits.dim() != 3 or logits.shape[0] < 1 or logits.shape[1] < 2 or logits.shape[2] < 2:
        raise ValueError(f"logits must be (K,N,C) with K >= 1, N >= 2 and C >= 2, got {tuple(logits.shape)}")
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

    log_probabilities = logits.log_softmax(-1)
    probabilities = log_probabilities.exp()
    confidence = probabilities.amax(-1)
    true_class = labels.unsqueeze(-1) == classes  # (N,C)
    correct = (ahead < 1).to(logits.dtype)

    interior_edges = torch.arange(1, ECE_BINS, dtype=logits.dtype, device=logits.device) / ECE_BINS
    bins = torch.bucketize(confidence, interior_edges)
    in_bin = bins.unsqueeze(-1) == torch.arange(ECE_BINS, device=logits.device)  # (K,N,bins)
    bin_gaps = ((correct - confidence).unsqueeze(-1) * in_bin).mean(1)  # each weighted by its share of the samples

    even, odd = (logits[:, ::2], labels[::2]), (logits[:, 1::2], labels[1::2])
    calibrated = torch.cat([_nll(*odd, _fit_temperature(*even)), _nll(*even, _fit_temperature(*odd))], dim=-1)

    metrics = CandidateMetrics(
        top1=correct.mean(-1),
        top5=(ahead < 5).to(logits.dtype).mean(-1),
        nll=-_at_label(log_probabilities, labels).mean(-1),
        calibrated_nll=calibrated.mean(-1),
        temperature=_fit_temperature(logits, labels),
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
    """Return the NLL (K,N) of each sample at one temperature for each candidate (K,)."""
    scaled = logits / temperature.view(-1, 1, 1)
    return scaled.logsumexp(-1) - _at_label(scaled, labels)


def _fit_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the temperature (K,) of least mean NLL; the NLL is convex in 1/T, so it has one minimum over log T."""

    def objective(log_temperature: Tensor) -> Tensor:
        return _nll(logits, labels, log_temperature.exp()).mean(-1)

    low, high = (logits.new_full(logits.shape[:1], math.log(bound)) for bound in TEMPERATURE_BRACKET)
    left, right = high - GOLDEN_RATIO * (high - low), low + GOLDEN_RATIO * (high - low)
    at_left, at_right = objective(left), objective(right)
    for _ in range(GOLDEN_SECTION_STEPS):
        keep_left = at_left < at_right
        low, high = torch.where(keep_left, low, left), torch.where(keep_left, right, high)
        probe = torch.where(keep_left, high - GOLDEN_RATIO * (high - low), low + GOLDEN_RATIO * (high - low))
        at_probe = objective(probe)
        left, right = torch.where(keep_left, probe, right), torch.where(keep_left, left, probe)
        at_left, at_right = torch.where(keep_left, at_probe, at_right), torch.where(keep_left, at_left, at_probe)
    return (0.5 * (low + high)).exp()


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

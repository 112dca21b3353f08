"""Any call of any operator: the reference's result or its refusal, from every backend."""

import copy
import inspect
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.ops import backends

CASES = int(os.environ.get("TFKD_FAST_FUZZ", "0"))
"""Calls of each operator for each backend; by default as many as a short test has time for."""

Call = dict[str, Any]

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHERS = (torch.int64, torch.int32, torch.bool, torch.complex64, torch.uint8)
SIZES = (0, 1, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)
FEW = (0, 1, 1, 2, 3, 5)
ELEMENTS = 20_000


class Maker:
    """Draws tensors and settings."""

    def __init__(self, seed: int, slow: bool) -> None:
        self.random, self.slow = random.Random(seed), slow
        torch.manual_seed(seed)

    def size(self, smallest: int = 0, sizes: tuple[int, ...] = SIZES) -> int:
        return self.random.choice([size for size in sizes if size >= smallest and (size <= 17 or not self.slow)])

    def maybe(self, probability: float) -> bool:
        return self.random.random() < probability

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers of one of several kinds, in one of several memory layouts."""
        kind = self.random.choice(("normal", "normal", "normal", "equal", "coarse", "large", "special"))
        values = torch.randn(shape, dtype=torch.float64) * {"large": 3000.0}.get(kind, 2.0)
        if kind == "equal":
            values.fill_(self.random.choice((0.0, -0.0, 1.5)))
        if kind == "coarse":
            values = values.round()
        if kind == "special" and values.numel():
            for _ in range(self.random.choice((1, 1, 3))):
                place = self.random.randrange(values.numel())
                values.view(-1)[place] = self.random.choice((math.nan, math.inf, -math.inf))
        return self.laid_out(values.to(dtype))

    def laid_out(self, values: Tensor) -> Tensor:
        """The same numbers (but for an expanded axis, along which they repeat), laid out in memory in some way."""
        layout = self.random.choice(("plain", "plain", "odd", "gaps", "turned", "expanded", "far"))
        if layout == "odd":  # one element beyond an address that vectors can be loaded from
            return values.new_empty(values.numel() + 1)[1:].view(values.shape).copy_(values)
        if layout == "gaps" and values.dim():
            return values.new_empty(*values.shape[:-1], 2 * values.shape[-1])[..., ::2].copy_(values)
        if layout == "far" and values.dim():
            rows = values.new_empty(max(1, values.shape[0]), 3, *values.shape[1:])
            return rows[: values.shape[0], 1].copy_(values)
        if layout == "turned" and values.dim() > 1:
            return values.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "expanded" and values.dim() and 0 not in values.shape:
            axis = self.random.randrange(values.dim())
            return values.narrow(axis, 0, 1).expand(values.shape)
        return values

    def setting(self, numbers: tuple[float, ...], candidates: tuple[int, ...], dtype: torch.dtype) -> Any:
        """One value for all candidates, as a number or as a tensor, or one for each."""
        form = self.random.choice(("number", "tensor", "each"))
        if form == "number":
            return self.random.choice(numbers)
        shape = candidates if form == "each" else ()
        return torch.tensor([self.random.choice(numbers) for _ in range(math.prod(shape))], dtype=dtype).view(shape)

    def reduction(self) -> str:
        return self.random.choice(("mean", "sum", "none"))

    def labels(self, classes: int, *shape: int) -> Tensor:
        return self.laid_out(torch.randint(classes, shape))

    def distribution(self, *shape: int, dtype: torch.dtype) -> Tensor:
        values = torch.randn(shape).softmax(-1)
        if self.maybe(0.3) and values.numel():
            values = torch.nn.functional.one_hot(values.argmax(-1), shape[-1]).float()
        return self.laid_out(values.to(dtype))

    def problem(self, lead: tuple[int, ...]) -> tuple[Tensor, Tensor, torch.dtype]:
        """Logits, labels, and the dtype of the loss."""
        classes = self.size(1)
        batch = min(self.size(), max(1, ELEMENTS // classes // math.prod(lead or (1,)))) if self.maybe(0.95) else 0
        dtype = self.random.choice(FLOATS)
        labels = self.labels(classes, *(lead if self.maybe(0.4) else ()), batch)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return self.floats(*lead, batch, classes, dtype=dtype), labels, wide

    def lead(self) -> tuple[int, ...]:
        return () if self.maybe(0.5) else (self.size(1, FEW),)


def soft_target_loss(make: Maker) -> Call:
    lead = make.lead()
    logits, labels, dtype = make.problem(lead)
    batch, classes = logits.shape[-2:]
    rows = make.random.choice(("class", "sample"))
    shape = (*(lead if make.maybe(0.5) else ()), classes if rows == "class" else batch, classes)
    return {
        "logits": logits,
        "labels": labels,
        "targets": make.distribution(*shape, dtype=make.random.choice(FLOATS)),
        "temperature": make.setting((0.5, 1.0, 4.0), lead, dtype),
        "hard_weight": make.setting((0.0, 0.3, 1.0), lead, dtype),
        "rows": rows,
        "reduction": make.reduction(),
    }


def soft_target_loss_with_stats(make: Maker) -> Call:
    call = soft_target_loss(make)
    logits = call["logits"]
    classes = logits.shape[-1]
    zeros = torch.zeros(*logits.shape[:-2], classes, classes)
    return call | {"similarity": make.laid_out(zeros) if make.maybe(0.6) else None}


def distillation_loss(make: Maker) -> Call:
    lead = make.lead()
    logits, labels, dtype = make.problem(lead)
    batch, classes = logits.shape[-2:]
    count = make.size(1, FEW)
    shape = make.random.choice(((batch, classes), (count, batch, classes), (*lead, count, batch, classes)))
    teachers = make.floats(*shape, dtype=make.random.choice(FLOATS))
    count = 1 if len(shape) == 2 else count
    weights = None
    if make.maybe(0.6):
        of = make.random.choice(((count,), (batch, count), (*lead, batch, count)))
        weights = make.laid_out((torch.rand(of) * (torch.rand(of) < 0.8)).to(make.random.choice(FLOATS)))
    has_labels = make.maybe(0.8)
    return {
        "student_logits": logits,
        "teacher_logits": teachers,
        "labels": labels if has_labels else None,
        "temperature": make.setting((0.5, 1.0, 4.0), lead, dtype),
        "alpha": make.setting((0.0, 0.7, 1.0), lead, dtype) if has_labels else None,
        "teacher_weights": weights,
        "reduction": make.reduction(),
    }


def peer_loss(make: Maker) -> Call:
    candidates = make.size(1, FEW)
    logits, labels, dtype = make.problem((candidates,))
    return {
        "logits": logits,
        "labels": labels,
        "temperature": make.setting((0.5, 1.0, 4.0), (), dtype),
        "alpha": make.setting((0.0, 0.3, 1.0), (candidates,), dtype),
        "include_self": make.maybe(0.5) or candidates == 1,
        "reduction": make.reduction(),
    }


def candidate_metrics(make: Maker) -> Call:
    classes, candidates = make.size(2), make.size(1, FEW)
    samples = max(2, min(make.size(2), 5 if make.slow else ELEMENTS // classes // candidates))
    logits = make.floats(candidates, samples, classes, dtype=make.random.choice(FLOATS))
    return {"logits": logits, "labels": make.labels(classes, samples)}


def rank_candidates(make: Maker) -> Call:
    criteria = make.size(1, FEW)
    lead = () if make.maybe(0.6) else (make.size(0, FEW),)
    return {
        "criteria": make.floats(*lead, make.size(1), criteria, dtype=make.random.choice(FLOATS)),
        "higher_is_better": [make.maybe(0.5) for _ in range(criteria)],
        "weights": [make.random.choice((0.0, 0.1, 1.0, 3.0)) for _ in range(criteria)] if make.maybe(0.7) else None,
    }


def rank_binned_targets(make: Maker) -> Call:
    lead, classes = make.lead(), make.size(2)
    dtype = make.random.choice(FLOATS)
    starts = [1, *sorted(make.random.sample(range(2, classes), min(make.size(0, FEW), classes - 2)))]
    of = (lead if make.maybe(0.5) else ()) if lead else ()
    return {
        "similarity": make.floats(*(lead if make.maybe(0.7) else ()), classes, classes, dtype=dtype),
        "true_mass": make.laid_out(torch.rand(lead if make.maybe(0.5) else (), dtype=torch.float64).to(dtype)),
        "bin_masses": make.distribution(*of, len(starts), dtype=make.random.choice(FLOATS)),
        "bin_starts": starts,
    }


def augment(make: Maker) -> Call:
    count, channels = make.size(1, FEW), make.random.randint(1, 4)
    height, width = make.size(1, (1, 2, 7, 8, 17, 32)), make.size(1, (1, 3, 8, 9, 16, 33))
    lead = make.lead()
    images = torch.randint(256, (count, height, width, channels), dtype=torch.uint8)
    draw = torch.tensor([make.random.randrange(2**63), make.random.randrange(2**32), make.random.randrange(2**32)])
    return {
        "images": images,
        "indices": make.labels(count, *(lead if make.maybe(0.5) else ()), make.size(0, FEW)),
        "draw": make.laid_out(draw.expand(*(lead if make.maybe(0.5) else ()), 3).clone()),
        "pad": make.random.choice((0, 1, 4, 40)),
        "flip": make.maybe(0.5),
        "mean": make.laid_out(torch.rand(channels) * 255),
        "std": make.laid_out(torch.rand(channels) * 100 + 1),
        "dtype": make.random.choice(FLOATS),
    }


def sgd_step(make: Maker) -> Call:
    shape = [make.size() for _ in range(make.random.randint(0, 3))]
    while math.prod(shape) > ELEMENTS:
        shape.pop()
    dtype = make.random.choice(FLOATS)
    return {
        **{name: make.floats(*shape, dtype=dtype) for name in ("weight", "gradient", "momentum")},
        "rate": make.random.choice((0.0, 0.1, -1.0, 100.0)),
        "decay": make.random.choice((0.0, 0.01)),
        "factor": make.random.choice((0.0, 0.9)),
        "nesterov": make.maybe(0.5),
    }


def norm_relu_pool(make: Maker) -> Call:
    pool = make.maybe(0.6)
    smallest = 2 if pool else 1
    channels = make.size(1)
    shape = [make.size(2, FEW), channels, make.size(smallest, (1, 2, 3, 8)), make.size(smallest, (1, 2, 5, 9))]
    dtype = make.random.choice((torch.float32, torch.float64, torch.bfloat16))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = make.floats(*shape, dtype=dtype)
    if make.maybe(0.6):
        x = x.contiguous(memory_format=torch.channels_last)
    return {
        "x": x,
        "weight": make.laid_out(torch.randn(channels, dtype=wide)),
        "bias": make.laid_out(torch.randn(channels, dtype=wide)),
        "running_mean": make.laid_out(torch.randn(channels, dtype=wide)),
        "running_var": make.laid_out(torch.rand(channels, dtype=wide)),
        "momentum": make.random.choice((0.0, 0.1, 1.0)),
        "eps": make.random.choice((0.0, 1e-5)),
        "pool": pool,
        "residual": make.floats(*shape, dtype=dtype) if not pool and make.maybe(0.5) else None,
    }


def conv3x3(make: Maker) -> Call:
    channels, filters = make.size(1, (1, 3, 16, 33)), make.size(1, (1, 2, 17, 32))
    dtype = make.random.choice((torch.bfloat16, torch.bfloat16, torch.float32))
    own = make.random.choice((torch.float32, dtype))
    shape = [make.size(0, FEW), channels, make.size(1, (1, 2, 3, 8)), make.size(1, (1, 2, 5, 9))]
    return {
        "x": make.floats(*shape, dtype=dtype),
        "weight": make.floats(filters, channels, 3, 3, dtype=own),
        "bias": make.floats(filters, dtype=own) if make.maybe(0.6) else None,
    }


OPERATORS: dict[str, Callable[[Maker], Call]] = {
    make.__name__: make
    for make in (
        soft_target_loss,
        soft_target_loss_with_stats,
        distillation_loss,
        peer_loss,
        candidate_metrics,
        rank_candidates,
        rank_binned_targets,
        augment,
        sgd_step,
        norm_relu_pool,
        conv3x3,
    )
}


def spoil(make: Maker, call: Call) -> None:
    """Replace one argument by what hardly anybody would pass."""
    name = make.random.choice(list(call))
    value = call[name]
    if not isinstance(value, Tensor):
        strange: tuple[Any, ...] = (None, math.nan, -1, 0, "mean", "nonsense", math.inf, [1], torch.tensor(2.0))
        call[name] = make.random.choice((-1, 2**30, 2**31, 2**63, 0.5) if name == "pad" else strange)
        return
    kind = make.random.choice(("dtype", "dtype", "shape", "longer", "no tensor", "device", "range", "range", "another"))
    if kind == "dtype":
        call[name] = value.to(make.random.choice([*FLOATS, *OTHERS]))
    if kind == "shape":
        call[name] = make.random.choice((value.unsqueeze(0), value.flatten(), value[..., None], value.sum()))
    if kind == "longer" and value.dim():
        axis = make.random.randrange(value.dim())
        call[name] = torch.cat([value, value.narrow(axis, 0, min(1, value.shape[axis]))], axis)
    if kind == "no tensor":
        call[name] = make.random.choice((None, 1.0, 2, "text", [1.0], True))
    if kind == "device":
        call[name] = value.to("meta")
    if kind == "range" and value.dtype == torch.int64 and value.numel():
        call[name] = value.clone(memory_format=torch.contiguous_format)
        place = make.random.randrange(value.numel())
        call[name].view(-1)[place] = make.random.choice((-1, 2**40, -(2**63), 2**63 - 1, 130))
    if kind == "another":
        alike = [one for one in call.values() if isinstance(one, Tensor) and one.shape == value.shape]
        call[name] = make.random.choice(alike)


WRITTEN = {
    "soft_target_loss_with_stats": ("similarity",),
    "sgd_step": ("weight", "momentum"),
    "norm_relu_pool": ("running_mean", "running_var"),
}
REGIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "none": nullcontext,
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def outcome(
    operator: str, call: Call, backend: str | None, region: str, learned: list[str]
) -> list[Tensor] | Exception:
    """Results, what the operator wrote to, and gradients; or what it raised."""
    call = copy.deepcopy(call)
    for name in learned:
        call[name].requires_grad_()
    try:
        with REGIONS[region]():
            results = list(tensors_of(getattr(ops, operator)(**call, backend=backend)))
        written = [call[name] for name in WRITTEN.get(operator, ()) if call[name] is not None]
        differentiable = [result for result in results if result.requires_grad]
        weights = [torch.linspace(0.5, 1.5, one.numel()).to(one.dtype).view(one.shape) for one in differentiable]
        gradients = torch.autograd.grad(
            differentiable, [call[name] for name in learned], weights, allow_unused=True, materialize_grads=True
        ) if differentiable else ()  # fmt: skip
        return [*(result.detach() for result in results), *written, *gradients]
    except Exception as error:
        return error


def tensors_of(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif result is not None:
        for one in result:
            yield from tensors_of(one)


def difference(operator: str, call: Call, wanted: Any, got: Any) -> str | None:
    """What is wrong with the outcome `got` where the reference's is `wanted`; None if nothing is."""
    if isinstance(wanted, Exception):
        if isinstance(wanted, TypeError | ValueError):
            return None if (type(got), str(got)) == (type(wanted), str(wanted)) else f"{wanted!r}, but {got!r}"
        of_label = re.search("out of (bounds|range)", str(wanted))  # torch's own words
        return None if of_label and isinstance(got, IndexError) else f"{wanted!r}, but {got!r}"
    if isinstance(got, ValueError) and str(got).startswith("backend"):
        return None  # it does not serve these tensors
    if isinstance(got, Exception):
        return f"raised {got!r}"
    if len(got) != len(wanted):
        return f"{len(got)} tensors, not {len(wanted)}"
    for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            return f"result {place} is {a.shape} {a.dtype} {a.device}, not {b.shape} {b.dtype} {b.device}"
        if not (operator == "candidate_metrics" and place in UNSTABLE) and not near(a, b):
            return f"result {place} is {a}, not {b}"
    return None


UNSTABLE = (3, 4, 6)
"""Metrics that a rounding of the logits changes a lot: what is fitted, and a confidence at the edge of a bin."""


def near(a: Tensor, b: Tensor) -> bool:
    """Whether the same places are NaN and infinite, and the others within the rounding of the lower precision.

    Logits of up to 10,000 in float32 lose 1e-3 of an exponent, the logarithm of a probability as much; a gradient is
    rounded to the dtype of the logits.
    """
    if a.is_meta:
        return True
    a, b, rounding = a.double(), b.double(), torch.finfo(b.dtype).eps if b.dtype.is_floating_point else 0.0
    finite = a.isfinite() & b.isfinite()
    same = torch.equal(torch.where(finite, 0.0, a).nan_to_num(7.0), torch.where(finite, 0.0, b).nan_to_num(7.0))
    scale = b[finite].abs().max() if finite.any() else 0.0
    return same and bool(((a - b)[finite].abs() <= 1e-2 * scale * (rounding > 0) + 4 * rounding + 1e-3).all())


@pytest.mark.parametrize("operator", OPERATORS)
def test_any_call_has_one_outcome(operator: str, backend: Any) -> None:
    if backend.name not in backends.operators[operator]:
        pytest.skip(f"{operator} has no backend {backend.name}")
    count = CASES or (3 if backend.slow else 60)
    tried = None if backend.name == "reference" else backend.name  # instead of itself, what serves if none is named
    wrong = {}
    for seed in range(count):
        make = Maker(seed, backend.slow)
        call = OPERATORS[operator](make)
        if make.maybe(0.4):
            spoil(make, call)
        if operator == "conv3x3" and not all(one.isfinite().all() for one in call.values() if is_filled(one)):
            continue  # a border of zeros times infinity is NaN in the reference, and left out by cpp
        region = make.random.choice(("none", *REGIONS))
        learned = [name for name, one in call.items() if is_filled(one) and one.is_floating_point() and make.maybe(0.5)]
        learned = learned if region == "none" and not {*WRITTEN.get(operator, ())} & {*learned} else []
        wanted = outcome(operator, call, "reference", region, learned)
        if fault := difference(operator, call, wanted, outcome(operator, call, tried, region, learned)):
            wrong[seed] = fault
    assert not wrong


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_tensor_of_another_device_is_refused(operator: str) -> None:
    """Each tensor in turn is on the meta device, whatever backend would serve the others."""
    annotations = inspect.signature(getattr(ops, operator)).parameters.values()
    names = {one.name for one in annotations if "Tensor" in str(one.annotation)}
    met: set[str] = set()
    for seed in range(40):
        call = OPERATORS[operator](Maker(seed, True))
        tensors = [name for name, value in call.items() if isinstance(value, Tensor)]
        if len(tensors) == 1 or isinstance(outcome(operator, call, None, "none", []), Exception):
            continue  # nothing to differ from, or refused as it is
        for name in tensors:
            with pytest.raises(ValueError, match="must be on the device of"):
                getattr(ops, operator)(**call | {name: call[name].to("meta")})
            met.add(name)
        if met == names:
            return
    assert names == {"criteria"}, f"no call had {names - met}"


def is_filled(argument: Any) -> bool:
    return isinstance(argument, Tensor) and not argument.is_meta

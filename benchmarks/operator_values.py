"""The results of every operator on a device beside those of float64 on the processor, case by case.

    python -m benchmarks.operator_values --device cuda --out build/gpu-check

Its cases are those of tests/cuda_on_host: every kernel, odd addresses, tails, several blocks. On CUDA the special
functions are approximations (2 units of the last place of exp2 and log2, times T^2 in a loss): a case has its largest
error and what is allowed. The exit code is 1 where one is beyond that.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from tests.cuda_on_host import calls
from tfkd_fast.ops import fused
from tfkd_fast.strict_json import to_json

TEMPERATURE = 2.0
"""The highest of these cases."""
ALLOWED = {
    torch.float64: 1e-10,
    torch.float32: 2e-6 + TEMPERATURE**2 * 2.0**-22,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-10,
}
"""Error by dtype, as a share of the largest value of a result, and of 0.01 for smaller ones."""
LEFT_OUT = {"candidate_metrics": (3, 4, 6), "norm_relu_pool": (1,)}
"""Results that are not compared: metrics that a rounding of the logits changes a lot, what is fitted and a confidence
at the edge of a bin; and places of maxima, which each backend stores in a way of its own."""
BETWEEN_PASSES = {"norm_relu_pool_backward"}
"""Operators that read what one backend has stored; tests/ops compare them."""


class Case(NamedTuple):
    """One call of an operator."""

    operator: str
    namespace: str
    shape: list[int]
    """Of the first argument."""
    dtype: str
    error: float
    """Of all results, the largest, as a share of the largest value."""
    allowed: float

    @property
    def wrong(self) -> bool:
        """Whether the error is more than what is allowed, or not a number."""
        return not self.error <= self.allowed


def cases(namespace: str, device: torch.device) -> Iterator[Case]:
    """Call every operator of a namespace on a device."""
    for operator, calls_of in calls.OPERATORS.items():
        if operator in BETWEEN_PASSES:
            continue
        function = fused.overload(namespace, operator)
        for arguments in calls_of():
            exact, ours = list(in_float64(function, arguments)), copies(arguments, device)
            dtype = arguments[-1] if operator == "augment" else arguments[0].dtype
            expected = results(operator, fused.overload("tfkd_fast", operator)(*exact), arguments)
            got = results(operator, function(*ours), arguments)
            for one, truth, described in zip(ours, exact, function._schema.arguments, strict=True):
                if (
                    described.alias_info is not None and one is not None and one.itemsize >= dtype.itemsize
                ):  # written to
                    got, expected = [*got, one.cpu().double()], [*expected, truth.double()]
            error = max(map(error_of, got, expected))
            yield Case(operator, namespace, list(arguments[0].shape), str(dtype), error, ALLOWED[dtype])


def copies(arguments: calls.Call, device: torch.device) -> list[Any]:
    """The arguments of a call on a device, where what the call writes to is nothing that another one reads."""
    return [one.to(device, copy=True) if isinstance(one, Tensor) else one for one in arguments]


def in_float64(operator: OpOverload, arguments: calls.Call) -> Iterator[Any]:
    """The arguments of a call in float64; similarities that are added to are float32 with any logits, as are means and
    deviations of images, whose results alone have the dtype that is asked for."""
    asked = any(isinstance(argument, torch.dtype) for argument in arguments)
    for argument, described in zip(arguments, operator._schema.arguments, strict=True):
        stays = asked or (described.name == "similarity" and described.alias_info is not None)
        if isinstance(argument, torch.dtype):
            yield torch.float64
        elif isinstance(argument, Tensor) and argument.is_floating_point() and not stays:
            yield argument.double()
        else:
            yield argument.clone() if isinstance(argument, Tensor) else argument


def results(operator: str, returned: Any, arguments: calls.Call) -> list[Tensor]:
    """The results of an operator that are compared; sums over samples as means."""
    tensors = [returned] if isinstance(returned, Tensor) else list(returned or ())
    tensors = [tensor for at, tensor in enumerate(tensors) if at not in LEFT_OUT.get(operator, ())]
    if operator == "soft_target_loss_with_stats":
        tensors[2:] = [total / max(1, arguments[0].shape[-2]) for total in tensors[2:]]
    return [tensor.detach().cpu().double() for tensor in tensors]


def error_of(got: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value, see `ALLOWED`; NaN where one of them alone is NaN."""
    if got.numel() == 0:
        return 0.0
    differences = torch.where(got.isnan() & expected.isnan(), 0.0, (got - expected).abs())
    return float(differences.max() / max(0.01, float(expected.nan_to_num().abs().max())))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    options = parser.parse_args()
    device = torch.device(options.device)
    namespaces = ["tfkd_fast"] if options.device == "cpu" else ["tfkd_fast", "tfkd_fast_triton"]
    options.out.mkdir(parents=True, exist_ok=True)
    met: list[Case] = []
    for namespace in namespaces:
        for case in cases(namespace, device):
            met.append(case)
            (options.out / "operator-values.json").write_text(to_json([one._asdict() for one in met], indent=1) + "\n")
    wrong = [case for case in met if case.wrong]
    for case in wrong:
        what = f"{case.namespace}::{case.operator} {case.shape} {case.dtype}"
        print(f"{what}: {case.error:.2g}, allowed {case.allowed:.2g}")
    print(f"{len(met)} cases, {len(wrong)} beyond what is allowed")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

"""Which tensors of many are finite."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tfkd_fast.finiteness import named_tensors, nonfinite_names


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


def test_every_tensor_in_a_tree_is_named_by_its_path() -> None:
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    tree = {"weights": {"conv.bias": a}, "pairs": [Pair(b, None)], "text": "abc", 3: (1.5, [c]), "none": None}
    named = list(named_tensors(tree))
    assert [name for name, _ in named] == ["weights.conv.bias", "pairs.0.0", "3.1.0"]
    assert all(found is expected for (_, found), expected in zip(named, (a, b, c), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_anywhere_makes_a_tensor_not_finite(dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max
    tensors = [
        ("large", torch.tensor([largest, -largest] * 40, dtype=dtype)),
        ("bad", torch.zeros(3, 5, 7, dtype=dtype)),
        ("a single one", torch.tensor(bad, dtype=dtype, requires_grad=True)),
        ("whole numbers", torch.tensor([2**62])),
        ("nothing", torch.zeros(0, dtype=dtype)),
        ("turned", torch.zeros(4, 6, dtype=dtype).t()),
    ]
    tensors[1][1][2, 4, 6] = bad
    assert nonfinite_names(tensors) == ["bad", "a single one"]
    assert nonfinite_names([]) == []

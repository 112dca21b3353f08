"""Devices and precisions that are not served are refused with the reason, by command, recipes and Python alike."""

import re
from typing import Any

import pytest
import torch

from tests.support.command import refusal
from tfkd_fast.device import resolve_compute
from tfkd_fast.errors import UserError
from tfkd_fast.runs.recipe import make_recipe
from tfkd_fast.served import DEVICES, PRECISIONS


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("device", "mps", "there are no kernels for mps here"),
        ("device", "cuda:1", "set CUDA_VISIBLE_DEVICES=1, and device to cuda"),
        ("device", "gpu", "no device 'gpu': choose from auto, cpu, cuda"),
        ("precision", "fp16", "gradients in fp16 want a loss that is scaled"),
        ("precision", "bfloat16", "did you mean 'bf16'?"),
    ],
)
def test_what_is_not_served_is_refused_with_the_reason(key: str, value: str, sentence: str) -> None:
    assert sentence in refusal("train", "digits", f"--{key}", value)
    assert sentence in refusal("eval", "nowhere", f"--{key}", value)
    with pytest.raises(UserError, match=f"recipe key '{key}'"):
        make_recipe({key: value})
    with pytest.raises(UserError, match=re.escape(sentence)):
        resolve_compute(**{"device": "cpu", "precision": "fp32", key: value})


@pytest.mark.parametrize(("key", "value"), [("device", torch.device("cuda:1")), ("precision", torch.float16)])
def test_objects_of_torch_are_no_silent_choice(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=1|no precision 'torch\.float16'"):
        resolve_compute(**{"device": "cpu", "precision": "fp32", key: value})


def test_what_is_served_is_a_recipe() -> None:
    assert [make_recipe({"device": device}).device for device in DEVICES] == list(DEVICES)
    assert [make_recipe({"precision": precision}).precision for precision in PRECISIONS] == list(PRECISIONS)

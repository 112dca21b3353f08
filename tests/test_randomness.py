"""Counter-based randomness: known answers, and what the library asks of it."""

import random
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tfkd_fast.randomness import (
    Purpose,
    all_seeded,
    bounded_integers,
    next_numbers,
    normal,
    permutation,
    philox,
    random_keys,
    random_words,
    seeded,
)

# Random123 (Salmon et al.), file kat_vectors, lines "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
CPU = torch.device("cpu")
HEADER = Path(__file__).parents[1] / "csrc" / "common" / "random.h"


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, result: str) -> None:
    output = philox(tuple(torch.tensor(word) for word in words(counter)), tuple(words(key)))
    assert [int(word) for word in output] == words(result)


def test_philox_of_many_counters_is_philox_of_each() -> None:
    counters, _, results = zip(*KNOWN_ANSWERS[:2], strict=True)
    many = tuple(torch.tensor(column) for column in zip(*map(words, counters), strict=True))
    output = torch.stack(philox(many, (0, 0)))
    assert output[:, 0].tolist() == words(results[0])
    assert output[:, 1].tolist() == [int(w) for w in philox(tuple(torch.tensor(2**32 - 1) for _ in range(4)), (0, 0))]


def test_the_name_of_a_word_is_counter_and_key() -> None:
    seed = 0x299F31D0_A4093822
    output = random_words(torch.tensor([7]), Purpose.AUGMENT, seed=seed, epoch=5, stream=3)
    counter = tuple(torch.tensor(word) for word in (7, 5, Purpose.AUGMENT, 3))
    expected = philox(counter, (0xA4093822, 0x299F31D0))
    assert torch.equal(torch.cat(output), torch.stack(expected))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"epoch": -1}, "epoch"), ({"stream": 2**32}, "stream")],
)
def test_numbers_that_do_not_fit_are_refused(change: dict[str, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be in 0 .."):
        random_words(torch.arange(3), Purpose.ORDER, **({"seed": 0} | change))


@given(
    count=st.integers(0, 300), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**32 - 1), stream=st.integers(0, 9)
)
def test_permutation_is_a_permutation_and_a_function_of_its_name(
    count: int, seed: int, epoch: int, stream: int
) -> None:
    order = permutation(count, seed=seed, epoch=epoch, stream=stream)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, permutation(count, seed=seed, epoch=epoch, stream=stream))


def test_seed_epoch_stream_and_purpose_each_change_the_numbers() -> None:
    base = {"seed": 1, "epoch": 2, "stream": 3}
    names = [base, *({**base, key: base[key] + 1} for key in base), {**base, "seed": base["seed"] + 2**32}]
    orders = {tuple(permutation(50, **name).tolist()) for name in names}
    assert len(orders) == len(names)
    purposes = {tuple(random_keys(50, purpose, **base, device=CPU).tolist()) for purpose in Purpose}
    assert len(purposes) == len(Purpose)


def test_keys_are_uniform_63_bit_numbers() -> None:
    keys = random_keys(20_000, Purpose.ORDER, seed=0, epoch=0, stream=0, device=CPU)
    assert keys.min() >= 0
    # a fixed sample: either it looks uniform or the generator is broken
    assert stats.kstest(keys.double().numpy() / 2**63, "uniform").pvalue > 0.01
    bits = torch.stack([(keys >> bit) & 1 for bit in range(63)]).double().mean(1)
    assert (bits - 0.5).abs().max() < 5 * 0.5 / np.sqrt(20_000)  # five standard deviations


def test_orders_of_consecutive_epochs_are_unrelated() -> None:
    orders = [permutation(2000, seed=0, epoch=epoch).numpy() for epoch in range(4)]
    for first, second in pairwise(orders):
        assert abs(stats.spearmanr(first, second).statistic) < 4 / np.sqrt(2000)


@given(bound=st.integers(1, 2**31), word=st.integers(0, 2**32 - 1))
def test_below_scales_a_word_to_the_bound(bound: int, word: int) -> None:
    assert int(bounded_integers(torch.tensor([word]), bound)) == word * bound // 2**32


def test_below_is_uniform() -> None:
    values = bounded_integers(random_words(torch.arange(90_000), Purpose.AUGMENT, seed=0)[0], 9)
    assert stats.chisquare(torch.bincount(values, minlength=9).numpy()).pvalue > 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_change_the_numbers() -> None:
    device = torch.device("cuda")
    assert torch.equal(permutation(5000, seed=3, device=device).cpu(), permutation(5000, seed=3))


def test_normal_numbers_by_hand() -> None:
    quarter = 2**30  # of a turn
    radii = torch.tensor([0, 2**31, 2**31, 2**31, 2**32 - 1])
    angles = torch.tensor([0, 0, quarter, 2 * quarter, 0])
    middle = np.sqrt(-2 * np.log(0.5 + 2**-33))
    expected = [np.sqrt(66 * np.log(2)), middle, 0.0, -middle, np.sqrt(2**-32)]  # log(1 - x) is -x
    np.testing.assert_allclose(normal(radii, angles), expected, rtol=1e-6, atol=1e-15)


def test_normal_numbers_are_normal() -> None:
    radii, angles, *_ = random_words(torch.arange(20_000), Purpose.LEARNING_RATE, seed=1)
    assert stats.kstest(normal(radii, angles).numpy(), "norm").pvalue > 0.01


def test_seeded_layers_are_those_of_torch_and_leave_no_trace() -> None:
    torch.manual_seed(7)
    expected = torch.nn.Linear(3, 4).weight
    following = torch.rand(2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with seeded(7):
        assert torch.equal(torch.nn.Linear(3, 4).weight, expected)
        assert torch.equal(torch.rand(2), following)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError), seeded(7):
        torch.rand(1) / (1 // 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_generators_are_seeded_and_leave_no_trace() -> None:
    seed = 2**40 + 7
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with all_seeded(seed):
        torch_own, own, numpy_own = next_numbers()
        assert next_numbers() != (torch_own, own, numpy_own)
    assert torch_own == torch.rand((), generator=torch.Generator().manual_seed(seed)).item()
    assert own == random.Random(seed).random()
    assert numpy_own == np.random.RandomState([7, 2**8]).random()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_operators_draw_for_purposes_of_the_list() -> None:
    """The C++ header names those that an operator draws for: their numbers are the list's."""
    (purposes,) = re.findall(r"enum class Purpose : uint32_t \{(.*?)\}", HEADER.read_text(), re.DOTALL)
    named = {name.upper(): int(number) for name, number in re.findall(r"k(\w+) = (\d+)", purposes)}
    assert named
    assert named == {name: Purpose[name] for name in named}
    sources = " ".join(file.read_text() for file in HEADER.parents[1].glob("*/*") if file.is_file())
    assert {name.upper() for name in re.findall(r"Purpose::k(\w+)", sources)} == set(named)

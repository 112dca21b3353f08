"""The mixture of a class target with other sources: shares, temperatures, and what reaches the class target."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError

from tests.support.tables import make_table
from tfkd_fast.errors import UserError
from tfkd_fast.steering.targets import TargetMixture, TargetSettings, build_mixture

SOURCES = ("memory", "peers", "slow-self")
NUMBERS = st.floats(-4, 4)


def build(sources: tuple[str, ...] = SOURCES, family: str = "rank-binned", **values: object) -> TargetMixture:
    return build_mixture(make_table(TargetSettings, {"family": family, "sources": sources, **values}), 10)


@pytest.mark.parametrize("family", ["one-hot", "label-smoothing", "scalar", "rank-binned", "full-matrix"])
@pytest.mark.parametrize("sources", [(), ("memory",)])
def test_the_settings_know_whether_there_is_something_to_steer(family: str, sources: tuple[str, ...]) -> None:
    mixture = build(sources, family)
    chosen = make_table(TargetSettings, {"family": family, "sources": sources})
    assert chosen.takes_action == (mixture.action_size > 0)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_neutral_action_gives_each_source_its_share_and_temperature(count: int) -> None:
    values = {"source_share": 0.25, "source_temperature": 3.0} if count else {}
    mixture = build(SOURCES[:count], **values)
    neutral = torch.zeros(2, mixture.action_size, dtype=torch.float64)
    shares = torch.tensor([1 - 0.25 * count, *[0.25] * count], dtype=torch.float64)
    torch.testing.assert_close(mixture.shares(neutral), shares.expand(2, -1))
    torch.testing.assert_close(mixture.temperatures(neutral), torch.full((2, count), 3.0, dtype=torch.float64))


@settings(max_examples=60)
@given(data=st.data(), count=st.integers(1, 3), share=st.floats(0.01, 0.33), temperature=st.floats(0.5, 8))
def test_shares_and_temperatures_are_what_the_formulas_say(
    data: st.DataObject, count: int, share: float, temperature: float
) -> None:
    mixture = build(SOURCES[:count], source_share=share, source_temperature=temperature)
    size = mixture.action_size
    action = data.draw(st.lists(NUMBERS, min_size=size, max_size=size))
    actions = torch.tensor([action], dtype=torch.float64)
    of_sources = action[mixture.target.action_size :]
    bias = math.log(share / (1 - count * share))
    weights = [1.0, *(math.exp(u + bias) for u in of_sources[::2])]
    shares = mixture.shares(actions)[0]
    assert shares.tolist() == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-12)
    assert shares.sum().item() == pytest.approx(1, abs=1e-12)
    assert (shares > 0).all()
    expected = [temperature * 2 ** (u / 2) for u in of_sources[1::2]]
    assert mixture.temperatures(actions)[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert mixture.class_actions(actions)[0].tolist() == action[: mixture.target.action_size]


@pytest.mark.parametrize(("number", "factor"), [(4.0, 4.0), (-4.0, 0.25)])
def test_the_limits_of_an_action_span_a_quarter_to_four_times_the_temperature(number: float, factor: float) -> None:
    mixture = build(source_temperature=2.0)
    actions = torch.full((1, mixture.action_size), number)
    assert mixture.temperatures(actions).tolist() == [[2.0 * factor] * 3]


def test_each_number_of_the_action_is_named_and_moves_what_its_name_says() -> None:
    mixture = build(("peers", "memory"))
    assert mixture.action_names == (
        *mixture.target.action_names, "peers share", "peers temperature", "memory share", "memory temperature",
    )  # fmt: skip
    assert mixture.action_size == len(mixture.action_names)
    neutral = torch.zeros(1, mixture.action_size)
    for number, name in enumerate(mixture.action_names):
        moved = neutral.clone()
        moved[0, number] = 1.0
        shares = (mixture.shares(moved) / mixture.shares(neutral) > 1).tolist()[0]
        temperatures = (mixture.temperatures(moved) != mixture.temperatures(neutral)).tolist()[0]
        assert shares == [False, name == "peers share", name == "memory share"]
        assert temperatures == [name == "peers temperature", name == "memory temperature"]
        assert torch.equal(mixture.class_actions(moved), mixture.class_actions(neutral)) == (name not in TABLE)


TABLE = build(()).action_names


@pytest.mark.parametrize("family", ["scalar", "rank-binned", "full-matrix"])
def test_a_true_mass_is_set_in_the_class_target_and_the_sources_stay_neutral(family: str) -> None:
    mixture = build(family=family)
    action = mixture.action_for_true_mass(0.7)
    assert action.shape == (mixture.action_size,)
    assert torch.equal(mixture.class_actions(action[None])[0], mixture.target.action_for_true_mass(0.7))
    assert torch.equal(mixture.shares(action[None]), mixture.shares(torch.zeros(1, mixture.action_size)))


def test_beside_a_constant_target_the_sources_alone_are_steered() -> None:
    mixture = build(("slow-self",), "one-hot")
    assert mixture.action_names == ("slow-self share", "slow-self temperature")
    assert mixture.family == "one-hot"
    with pytest.raises(UserError, match="the one-hot target has a fixed true-class mass"):
        mixture.action_for_true_mass(0.9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": ("memory", "memory"), "source_share": 0.1}, "'memory' is named twice"),
        ({"sources": ("memory", "peers"), "source_share": 0.5}, "2 sources must leave the class target a share"),
        ({"sources": SOURCES, "source_share": 0.4}, "3 sources must leave the class target a share"),
        ({"source_share": 0.2}, "source_share is read only where sources is not empty"),
        ({"sources": ("memory",), "peers": 3}, "peers is read only where sources has peers"),
        ({"sources": ("teacher",)}, "Input should be 'memory', 'peers' or 'slow-self'"),
        ({"sources": ("slow-self",), "slow_self_decay": 1.0}, "Input should be less than 1"),
    ],
)
def test_sources_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_table(TargetSettings, values)

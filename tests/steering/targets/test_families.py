"""Target families against hand calculation, float64 formulas and their defining properties."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from pydantic import ValidationError

from tests.support.tables import make_table
from tfkd_fast.errors import UserError
from tfkd_fast.steering.targets import Target, TargetSettings, build_mixture, build_target, one_hot_table
from tfkd_fast.steering.targets.full_matrix import logit_directions
from tfkd_fast.steering.targets.rank_binned import bin_starts

CONTROLLED = ("scalar", "rank-binned", "full-matrix", "superclass")
FAMILIES = ("one-hot", "label-smoothing", *CONTROLLED)


def build(family: str, num_classes: int, **values: object) -> Target:
    """Of the values, those that the family reads."""
    read = {key: value for key, value in values.items() if key != "bins" or family == "rank-binned"}
    settings = make_table(TargetSettings, {"family": family, **read})
    return build_target(settings, num_classes, superclasses(num_classes))


def superclasses(num_classes: int) -> dict[str, tuple[int, ...]]:
    """Every third class together, in up to three superclasses."""
    return {f"group {first}": tuple(range(first, num_classes, 3)) for first in range(min(3, num_classes))}


def similarities(candidates: int, num_classes: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(candidates, num_classes, num_classes, generator=generator, dtype=torch.float64).to(dtype)


def smoothed(true_mass: float, num_classes: int) -> torch.Tensor:
    table = torch.full((num_classes, num_classes), (1 - true_mass) / (num_classes - 1), dtype=torch.float64)
    return table.fill_diagonal_(true_mass)


def sizes(starts: list[int], num_classes: int) -> list[int]:
    return np.diff([*starts, num_classes]).tolist()


def test_fine_bins_double_in_width() -> None:
    starts = bin_starts("fine", 100)
    assert starts == [1, 2, 3, 5, 9, 17, 33, 65]
    assert sizes(starts, 100) == [1, 1, 2, 4, 8, 16, 32, 35]  # 65-99 is cut short
    assert bin_starts("fine", 10) == [1, 2, 3, 5, 9]
    assert bin_starts("fine", 2) == [1]


def test_coarse_bins() -> None:
    assert bin_starts("coarse", 100) == [1, 2, 5, 17]
    assert bin_starts("coarse", 10) == [1, 2, 5]
    assert bin_starts("coarse", 2) == [1]


@pytest.mark.parametrize("bins", ["coarse", "fine"])
@pytest.mark.parametrize("num_classes", [2, 3, 5, 6, 17, 18, 65, 66, 1000])
def test_bins_tile_the_ranks(bins: str, num_classes: int) -> None:
    widths = sizes(bin_starts(bins, num_classes), num_classes)
    assert min(widths) >= 1
    assert sum(widths) == num_classes - 1


def test_one_hot_is_the_identity() -> None:
    target = build("one-hot", 5)
    tables = target.tables(torch.zeros(2, 0), similarities(2, 5))
    assert torch.equal(tables, torch.eye(5, dtype=torch.float64).expand(2, 5, 5))
    assert torch.equal(one_hot_table(5), torch.eye(5))


def test_label_smoothing_leaves_the_true_class_one_minus_epsilon() -> None:
    tables = build("label-smoothing", 11, smoothing=0.2).tables(torch.zeros(1, 0), similarities(1, 11))
    torch.testing.assert_close(tables[0], smoothed(0.8, 11))


@pytest.mark.parametrize("family", CONTROLLED)
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_neutral_action_is_label_smoothing(family: str, num_classes: int) -> None:
    target = build(family, num_classes, true_mass_min=0.4, true_mass_max=0.97, bins="fine")
    similarity = similarities(3, num_classes)
    tables = target.tables(torch.zeros(3, target.action_size), similarity)
    label_smoothing = build("label-smoothing", num_classes).tables(torch.zeros(3, 0), similarity)
    torch.testing.assert_close(tables, label_smoothing, rtol=0, atol=1e-14)  # a few roundings in float64


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_are_float32_and_one_a_candidate(family: str) -> None:
    target = build(family, 10)
    generator = torch.Generator().manual_seed(1)
    actions = torch.randn(3, target.action_size, generator=generator)
    similarity = similarities(3, 10, torch.float32)
    tables = target.tables(actions, similarity)
    assert tables.dtype == torch.float32
    assert tables.shape == (3, 10, 10)
    for slot in range(3):
        alone = target.tables(actions[slot : slot + 1], similarity[slot : slot + 1])
        torch.testing.assert_close(tables[slot], alone[0])


@settings(max_examples=60)
@given(data=st.data(), family=st.sampled_from(CONTROLLED), num_classes=st.sampled_from([2, 3, 10, 30]))
def test_rows_are_distributions_with_the_true_class_on_top(data: st.DataObject, family: str, num_classes: int) -> None:
    target = build(family, num_classes, bins=data.draw(st.sampled_from(["coarse", "fine"])))
    numbers = st.floats(-4, 4)
    action = data.draw(st.lists(numbers, min_size=target.action_size, max_size=target.action_size))
    table = target.tables(torch.tensor([action], dtype=torch.float64), similarities(1, num_classes))[0]
    assert (table >= 0).all()
    torch.testing.assert_close(table.sum(-1), torch.ones(num_classes, dtype=torch.float64), rtol=0, atol=1e-9)
    true_mass = table.diagonal()
    assert (true_mass > 0.5).all()
    assert (true_mass < 0.999).all()
    assert torch.equal(table.argmax(-1), torch.arange(num_classes))


def test_worst_case_of_the_rank_binned_target() -> None:
    """Least true mass, everything else on the nearest class: 0.5 + 0.499 sigmoid(-4 + logit(0.4/0.499)) and what the
    first of four bins keeps of the rest, e^4 / (e^4 + 98 e^-4)."""
    target = build("rank-binned", 100)
    action = torch.full((1, target.action_size), -4.0, dtype=torch.float64)
    action[0, 1] = 4.0
    row = target.tables(action, similarities(1, 100))[0, 7].sort(descending=True).values
    true_mass = 0.5 + 0.499 / (1 + math.exp(4 - math.log(0.4 / 0.099)))
    nearest = (1 - true_mass) * math.exp(4) / (math.exp(4) + 98 * math.exp(-4))
    assert row[0].item() == pytest.approx(true_mass, abs=1e-12)
    assert row[1].item() == pytest.approx(nearest, abs=1e-12)
    assert (true_mass, nearest) == pytest.approx((0.534, 0.451), abs=5e-4)


def test_rank_binned_by_hand() -> None:
    """C = 10, coarse: the rest goes to rank 1, ranks 2-4 and ranks 5-9 by softmax(u_j + log n_j)."""
    num_classes, label = 10, 3
    action = np.array([0.7, 1.0, -0.5, 0.2])
    similarity = similarities(1, num_classes)
    row = build("rank-binned", num_classes).tables(torch.from_numpy(action)[None], similarity)[0, label].numpy()

    true_mass = 0.5 + 0.499 / (1 + math.exp(-0.7 - math.log(0.4 / 0.099)))
    widths = np.array([1, 3, 5])
    share = np.exp(action[1:]) * widths / (np.exp(action[1:]) * widths).sum()
    others = [c for c in np.argsort(-similarity[0, label].numpy()) if c != label]
    expected = np.zeros(num_classes)
    expected[label] = true_mass
    expected[others] = np.repeat((1 - true_mass) * share / widths, widths)
    np.testing.assert_allclose(row, expected, rtol=1e-12)


def test_shape_need_not_fall_with_the_rank() -> None:
    """Free-form: with u rising over the bins, the least similar class gets more than the most similar one."""
    similarity = similarities(1, 10)
    row = build("rank-binned", 10).tables(torch.tensor([[0.0, -3.0, 0.0, 3.0]]), similarity)[0, 0]
    others = similarity[0, 0, 1:]
    assert row[1 + others.argmin()] > row[1 + others.argmax()]


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_directions_are_orthonormal_and_row_mean_free(num_classes: int) -> None:
    directions = logit_directions(num_classes)
    count = min(16, num_classes * (num_classes - 1))
    assert directions.shape == (count, num_classes, num_classes)
    gram = directions.flatten(1) @ directions.flatten(1).T
    torch.testing.assert_close(gram, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)
    row_means = directions.mean(-1)
    torch.testing.assert_close(row_means, torch.zeros_like(row_means), rtol=0, atol=1e-12)
    assert torch.equal(directions, logit_directions(num_classes))


def test_full_matrix_directions_move_logits_by_one() -> None:
    """The logits of a table, up to a constant a row, are linear in the action with the promised scales."""
    num_classes = 10
    target = build("full-matrix", num_classes)
    tables = target.tables(torch.eye(target.action_size, dtype=torch.float64), similarities(16, num_classes))
    true_mass = tables.diagonal(dim1=-2, dim2=-1)
    logit = torch.logit((true_mass - 0.5) / 0.499) - math.log(0.4 / 0.099)
    torch.testing.assert_close(logit[0], torch.ones(num_classes, dtype=torch.float64))  # one unit moves every diagonal
    off = ~torch.eye(num_classes, dtype=torch.bool)
    torch.testing.assert_close(tables[0][off], smoothed(true_mass[0, 0].item(), num_classes)[off])
    moved = tables[1:].log()[:, off].reshape(15, num_classes, num_classes - 1)
    moved = moved - moved.mean(-1, keepdim=True)
    spread = moved.square().mean((-1, -2)).sqrt()  # root mean square over entries, less the diagonal and row means
    assert ((spread > 0.8) & (spread < 1.1)).all()


def test_superclass_by_hand() -> None:
    """Classes 1, 3 and 4 are one superclass, 0 and 5 another, and 2 is alone."""
    target = build_target(make_table(TargetSettings, family="superclass"), 6, {"a": (1, 4, 3), "b": (5, 0), "c": (2,)})
    assert target.action_names == ("true mass of a", "true mass of b", "true mass of c", "siblings")
    action = np.array([0.7, -1.0, 2.0, 1.5])
    table = target.tables(torch.from_numpy(action)[None], similarities(1, 6))[0].numpy()

    a, b, c = 0.5 + 0.499 / (1 + np.exp(-action[:3] - math.log(0.4 / 0.099)))
    weight = math.exp(1.5)  # of a sibling, where a class of another superclass has 1
    two, one = (1 - a) / (2 * weight + 3), (1 - b) / (weight + 4)
    alone = (1 - c) / 5
    expected = [
        [b, one, one, one, one, weight * one],
        [two, a, two, weight * two, weight * two, two],
        [alone, alone, c, alone, alone, alone],
        [two, weight * two, two, a, weight * two, two],
        [two, weight * two, two, weight * two, a, two],
        [weight * one, one, one, one, one, b],
    ]
    np.testing.assert_allclose(table, expected, rtol=1e-12)


def test_siblings_of_the_one_superclass_are_all_there_is() -> None:
    target = build_target(make_table(TargetSettings, family="superclass"), 4, {"all": range(4)})
    table = target.tables(torch.tensor([[0.0, 3.0]], dtype=torch.float64), similarities(1, 4))[0]
    torch.testing.assert_close(table, smoothed(0.9, 4))


def test_superclasses_are_asked_for() -> None:
    settings = make_table(TargetSettings, family="superclass")
    with pytest.raises(
        UserError, match=r"needs superclasses, and this data set has none: choose data\.dataset cifar100"
    ):
        build_target(settings, 10)
    with pytest.raises(UserError, match="needs superclasses"):
        build_mixture(settings, 10)
    assert build_mixture(settings, 10, superclasses(10)).action_names == build("superclass", 10).action_names


@pytest.mark.parametrize("groups", [{"a": (0, 1)}, {"a": (0, 1), "b": (1, 2)}, {"a": (0, 1), "b": (2, 3)}])
def test_every_class_is_in_one_superclass(groups: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="each of the 3 classes once"):
        build_target(make_table(TargetSettings, family="superclass"), 3, groups)


@pytest.mark.parametrize("family", CONTROLLED)
def test_action_for_true_mass_is_the_inverse(family: str) -> None:
    target = build(family, 10)
    for mass in (0.51, 0.6, 0.9, 0.95, 0.998):
        action = target.action_for_true_mass(mass)
        assert action.shape == (target.action_size,)
        table = target.tables(action[None], similarities(1, 10))[0]
        # the action is float32: its rounding, about 1e-7 of up to 7, times the sigmoid's slope of at most 0.125
        torch.testing.assert_close(table, smoothed(mass, 10), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mass", [0.5, 0.999])
def test_the_ends_of_the_range_are_met_nearly(mass: float) -> None:
    target = build("scalar", 10)
    action = target.action_for_true_mass(mass)
    assert torch.isfinite(action).all()
    table = target.tables(action[None], similarities(1, 10))[0]
    assert table.diagonal().mean().item() == pytest.approx(mass, abs=1e-6)


def test_a_mass_outside_the_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"true-class mass 0\.3 lies outside target\.true_mass_min = 0\.5"):
        build("rank-binned", 10).action_for_true_mass(0.3)


@pytest.mark.parametrize("family", ["one-hot", "label-smoothing"])
def test_constant_targets_take_no_schedule(family: str) -> None:
    target = build(family, 10)
    assert target.action_size == 0
    with pytest.raises(UserError, match=f"the {family} target has a fixed true-class mass"):
        target.action_for_true_mass(0.9)


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_are_computed_where_the_similarities_are(family: str) -> None:
    """The meta device stands for any other than the CPU: mixing devices would raise."""
    target = build(family, 10)
    tables = target.tables(torch.zeros(2, target.action_size, device="meta"), torch.empty(2, 10, 10, device="meta"))
    assert tables.device.type == "meta"
    assert tables.shape == (2, 10, 10)


def test_only_the_rank_binned_target_reads_the_similarities() -> None:
    for family in FAMILIES:
        target = build(family, 6)
        action = torch.ones(1, target.action_size, dtype=torch.float64)
        moved = not torch.equal(
            target.tables(action, similarities(1, 6, seed=0)), target.tables(action, similarities(1, 6, seed=1))
        )
        assert moved == target.uses_similarity


@pytest.mark.parametrize("values", [{"true_mass_max": 0.85}, {"true_mass_min": 0.95}, {"bin": "fine"}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make_table(TargetSettings, values)

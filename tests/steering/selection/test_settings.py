"""The [selection] table: bounds, and messages that name the remedy."""

import pytest
from pydantic import ValidationError

from tests.support.tables import make_table
from tfkd_fast.steering.selection import CRITERIA, SelectionSettings


def test_defaults_are_one_student_and_three_rankings() -> None:
    assert make_table(SelectionSettings).budget == "none"
    settings = make_table(SelectionSettings, budget="probe")
    assert settings.criteria == ("holdout-nll", "holdout-top1", "averaged-top1")
    assert [round(240 * event) for event in settings.events] == [30, 60, 90, 120, 145, 165, 195, 225]


def test_every_criterion_can_be_named() -> None:
    assert make_table(SelectionSettings, budget="full", criteria=tuple(CRITERIA)).criteria == tuple(CRITERIA)


@pytest.mark.parametrize(
    ("budget", "criteria", "expected"),
    [
        ("full", ("holdout-nll", "averaged-top1"), True),
        ("probe", ("averaged-top1",), True),
        ("full", ("holdout-nll", "holdout-top1"), False),
    ],
)
def test_averages_are_asked_for_only_where_a_criterion_reads_them(
    budget: str, criteria: tuple[str, ...], expected: bool
) -> None:
    assert make_table(SelectionSettings, budget=budget, criteria=criteria).needs_average is expected
    assert not make_table(SelectionSettings, budget="none").needs_average


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"budget": "full", "candidates": 1}, "greater than or equal to 2"),
        ({"budget": "halving", "candidates": 1}, "greater than or equal to 2"),
        ({"budget": "halving", "candidates": 6}, "budget 'halving' needs a power of two: choose 4 or 8"),
        ({"budget": "halving", "halving_epochs": 0}, "greater than or equal to 1"),
        ({"candidates": 0}, "greater than or equal to 2"),
        ({"interval": -1}, "greater than or equal to 0"),
        ({"criteria": ["holdout_nll"]}, "unknown criterion 'holdout_nll': did you mean 'holdout-nll'?"),
        ({"criteria": ["zebra"]}, "unknown criterion 'zebra': choose from averaged-top1, "),
        ({"criteria": []}, "at least 1 item"),
        ({"criteria": ["holdout-nll", "holdout-nll"]}, "'holdout-nll' is named twice"),
        ({"aggregate": "zsum"}, "'borda', 'z-sum', 'accuracy' or 'pareto'"),
        (
            {"criteria": ["holdout-nll"], "aggregate": "accuracy"},
            "aggregate 'accuracy' needs holdout-top1 among the criteria",
        ),
        ({"weights": [1.0, 2.0]}, "3 criteria need 3 weights, got 2"),
        ({"criteria": ["holdout-nll"], "weights": [1.0, 2.0]}, "1 criteria need 1 weights, got 2"),
        ({"weights": [1.0, -1.0, 1.0]}, "greater than or equal to 0"),
        ({"weights": [1.0, float("nan"), 1.0]}, "finite number"),
        ({"weights": [0.0, 0.0, 0.0]}, "above 0"),
        ({"budget": "probe", "events": [0.5, 0.25]}, "events must ascend"),
        ({"budget": "probe", "events": [0.5, 1.0]}, "less than 1"),
        ({"budget": "probe", "events": []}, "at least 1 item"),
        ({"data_order": "same"}, "'own' or 'shared'"),
        ({"target": "same"}, "'own' or 'shared'"),
        ({"learning_rate_spread": -0.1}, "greater than or equal to 0"),
        ({"learning_rate_spread": 1.5}, "less than or equal to 1"),
        ({"budget": "full", "target": "shared", "data_order": "shared"}, "candidates that share target, data order"),
        ({"criterion": ["holdout-nll"]}, "Extra inputs"),
        ({"halving_epochs": 2}, "Extra inputs"),
        ({"budget": "halving", "interval": 2}, "Extra inputs"),
        ({"budget": "none", "candidates": 2}, "Extra inputs"),
    ],
)
def test_bad_values_are_refused_with_a_reason(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make_table(SelectionSettings, {"budget": "full", **table})
    faults = caught.value.errors()
    assert len(faults) == 1
    assert message in faults[0]["msg"]
    assert faults[0]["loc"][1] in table  # the fault points at the key that was wrong, after the form


def test_an_unknown_budget_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'none', 'full', 'probe', 'halving'"):
        make_table(SelectionSettings, budget="half")


@pytest.mark.parametrize(
    "table",
    [
        {"budget": "full", "target": "own", "data_order": "shared"},
        {"budget": "full", "target": "shared", "data_order": "own"},
        {"budget": "full", "target": "shared", "data_order": "shared", "learning_rate_spread": 0.1},
        {"budget": "full", "candidates": 6},  # only halving asks for a power of two
    ],
)
def test_candidates_may_share_all_but_one_thing(table: dict[str, object]) -> None:
    settings = make_table(SelectionSettings, table)
    assert {key: getattr(settings, key) for key in table} == table

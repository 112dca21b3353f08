"""Criteria of other distributions: real ones, installed into a folder of the import path."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.tables import make_table
from tfkd_fast.steering.selection import CRITERIA, CandidateScore, SelectionSettings, find_criterion, select

SPEED = """
from tfkd_fast.steering.selection import RankingCriterion

smallest = RankingCriterion(higher_is_better=False, value=lambda score: score.train_top1)
previewed = RankingCriterion(higher_is_better=True, value=lambda score: score.averaged_top1, needs_average=True)
number = 3
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution of one module, which is as unknown after the test as before it."""
    modules = []

    def write(distribution: str, module: str, code: str, entry_points: list[str]) -> None:
        site = tmp_path / distribution
        information = site / f"{distribution}-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text("\n".join(["[tfkd_fast.criteria]", *entry_points, ""]))
        (site / f"{module}.py").write_text(code)
        modules.append(module)
        monkeypatch.syspath_prepend(site)

    yield write
    for module in modules:
        sys.modules.pop(module, None)


def test_an_installed_criterion_ranks_candidates(install: Install) -> None:
    install("fastest", "speed", SPEED, ["least = speed:smallest"])
    settings = make_table(SelectionSettings, budget="full", criteria=("least", "holdout-nll"))
    selection = select([CandidateScore(0.5, 1.0, None, train, ()) for train in (0.8, 0.6, 0.7)], settings)
    assert selection.criteria == ("least", "holdout-nll")
    assert selection.higher_is_better == (False, False)
    assert selection.values == ((0.8, 1.0), (0.6, 1.0), (0.7, 1.0))
    assert selection.order == (1, 2, 0)


def test_an_installed_criterion_may_need_averaged_weights(install: Install) -> None:
    install("fastest", "speed", SPEED, ["least = speed:smallest", "preview = speed:previewed"])
    assert make_table(SelectionSettings, budget="full", criteria=("preview",)).needs_average
    assert not make_table(SelectionSettings, budget="full", criteria=("least",)).needs_average


def test_nothing_is_imported_that_is_not_named(install: Install) -> None:
    install("fastest", "speed", SPEED, ["least = speed:smallest"])
    install("broken", "broken_criterion", "raise OSError('no licence')", ["other = broken_criterion:other"])
    make_table(SelectionSettings, budget="full", criteria=("holdout-top1", "nll-slope"))
    assert "speed" not in sys.modules
    find_criterion("least")
    assert "broken_criterion" not in sys.modules


def test_a_criterion_with_the_name_of_one_of_this_package_is_refused(install: Install) -> None:
    install("fastest", "speed", SPEED, ["holdout-nll = speed:smallest"])
    sentence = r"criterion 'holdout-nll' of fastest \(entry point .*\) has the name of one of tfkd_fast: uninstall it"
    with pytest.raises(ValueError, match=sentence):
        find_criterion("holdout-nll")
    assert find_criterion("nll-slope") is CRITERIA["nll-slope"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("leest", "unknown criterion 'leest': did you mean 'least'?; one of another distribution has to be installed"),
        (
            "holdout_nll",
            "unknown criterion 'holdout_nll': did you mean 'holdout-nll'?; one of another distribution has to be "
            "installed",
        ),
        (
            "zebra",
            "unknown criterion 'zebra': choose from absent, averaged-top1, double, generalisation-gap, gone, "
            "holdout-nll, holdout-top1, least, nll-slope, number, other; one of another distribution has to be "
            "installed",
        ),
        (
            "number",
            "criterion 'number' of fastest (entry point number = speed:number) must be a "
            "tfkd_fast.steering.selection.RankingCriterion, is of type int",
        ),
        (
            "absent",
            "criterion 'absent' of fastest (entry point absent = speed:absent) cannot be imported "
            "(AttributeError: module 'speed' has no attribute 'absent')",
        ),
        (
            "gone",
            "criterion 'gone' of fastest (entry point gone = speedy:gone) cannot be imported "
            "(ModuleNotFoundError: No module named 'speedy')",
        ),
        (
            "other",
            "criterion 'other' of broken (entry point other = broken_criterion:other) cannot be imported "
            "(OSError: no licence; buy one at {broken}/broken_criterion.py:1)",
        ),
        (
            "double",
            "criterion 'double' is offered by broken (entry point double = broken_criterion:double) and "
            "fastest (entry point double = speed:smallest): uninstall all but one",
        ),
    ],
)
def test_a_fault_is_one_sentence(install: Install, tmp_path: Path, name: str, sentence: str) -> None:
    offers = [f"{name} = speed:{name}" for name in ("number", "absent")]
    install(
        "fastest", "speed", SPEED, [*offers, "gone = speedy:gone", "least = speed:smallest", "double = speed:smallest"]
    )
    offers = [f"{name} = broken_criterion:{name}" for name in ("other", "double")]
    install("broken", "broken_criterion", "raise OSError('no licence;\\nbuy one')", offers)
    with pytest.raises(ValidationError) as caught:
        make_table(SelectionSettings, budget="full", criteria=(name,))
    (fault,) = caught.value.errors()
    assert fault["msg"].removeprefix("Value error, ") == sentence.replace("{broken}", str(tmp_path / "broken"))

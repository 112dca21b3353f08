"""`tfkd-fast methods`: one line a method, and of one method what it reads."""

import re

import pytest

from tests.support.command import refusal, run
from tfkd_fast.cli.methods import method_tables, optional_tables
from tfkd_fast.methods import METHODS
from tfkd_fast.runs.recipe import make_recipe


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_every_method_has_one_line_of_80_columns() -> None:
    heading, *lines, hint = run("methods").stdout.splitlines()
    assert heading.split() == ["method", "teachers", "teaches", "with"]
    assert len(lines) == len(METHODS)
    for line, (name, entry) in zip(lines, METHODS.items(), strict=True):
        assert len(line) <= 80
        assert re.fullmatch(rf"{name} +(\d|1 to \d|\d\+) +{re.escape(entry.summary)}", line)
    assert re.search(r"^kd-average +2\+ ", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^ce +0 ", "\n".join(lines), re.MULTILINE)
    assert hint.startswith("tfkd-fast methods NAME: ")


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_shown_with_what_it_reads_and_nothing_else(name: str) -> None:
    entry = METHODS[name]
    lines = run("methods", name).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"{name}: {entry.summary}"
    assert " ".join(entry.source.split()) in " ".join(lines)
    tables = [line[1:-1] for line in lines if re.fullmatch(r"\[\w+\]", line)]
    own = make_recipe({"method": name}).options
    assert tables == [key for key in type(own).model_fields if getattr(own, key) is not None]
    shown = {re.split(" = ", line.strip())[0] for line in lines if re.match(r"  [a-z_]\S* = ", line)}
    assert shown >= {key for table in own.model_dump(exclude_none=True).values() for key in table}


def test_presets_stand_for_the_defaults_and_a_name_fixes_its_form() -> None:
    printed = run("methods", "ce").stdout
    assert "  family = one-hot  (one-hot)\n" in printed
    assert "true_mass_min" not in printed
    assert "  name = fixed  (fixed, schedule, progressive, " in printed
    assert "tfkd-fast options controller lists the keys that are read under another name." in printed
    assert "Where name is" not in printed  # keys that this run would refuse
    assert "exploration = " not in printed
    assert len(printed.splitlines()) < 80
    assert "  source_share = 0.1  (" in run("methods", "tfkd-extended").stdout
    assert "  budget = full  (none, full, probe, halving)\n" in run("methods", "tfkd-mrs").stdout
    assert "  alpha = 0.7  (" in run("methods", "kd-specialists").stdout


def test_a_table_that_may_be_left_out_is_opened_where_a_method_presets_it() -> None:
    assert [table.name for table in optional_tables(METHODS["kd"])] == ["professor"]
    assert "[professor] may be left out: tfkd-fast options professor lists its keys" in run("methods", "kd").stdout
    assert optional_tables(METHODS["professor"]) == []
    assert "professor" in [table.name for table in method_tables(METHODS["professor"])]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    assert refusal("methods", "kd-avarage") == "error: unknown method 'kd-avarage': did you mean 'kd-average'?"

"""Sentences: one line of text that can be printed and read, whatever they quote."""

import pytest

from tfkd_fast.errors import UserError, nearest, shorten


@pytest.mark.parametrize("quoted", ["two\nlines", "\x1b[2J", "\udcff", "\u202eabc", "\u2028"])
def test_a_sentence_is_one_line_that_can_be_printed(quoted: str) -> None:
    sentence = str(UserError(f"there is no file {quoted}: name another"))
    assert len(sentence.splitlines()) == 1
    assert "\x1b" not in sentence
    sentence.encode()
    assert sentence.startswith("there is no file ")
    assert sentence.endswith(": name another")


def test_names_of_any_language_stay_as_they_are() -> None:
    for name in ("größe", "猫\u3000犬", "👩\u200d🔬"):
        assert name in str(UserError(f"no class {name}"))


def test_what_is_long_is_cut() -> None:
    assert len(str(UserError("x" * 10_000))) < 1100
    assert len(shorten("x" * 10_000)) < 200
    assert shorten([1.5, "a"]) == "[1.5, 'a']"


def test_the_nearest_name_is_given_or_all_of_them() -> None:
    assert nearest("digit", ["digits", "npz"]) == "did you mean 'digits'?"
    assert nearest("x" * 5000, ["digits", "npz"]) == "choose from digits, npz"

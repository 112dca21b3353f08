"""Sentences: one line of text that can be printed and read, whatever they quote."""

from typing import Any

import numpy as np
import pytest
import torch

from tfkd_fast.errors import UserError, check_whole_number, nearest, refuse_other_kind, shorten


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


def test_a_whole_number_is_that_of_any_library() -> None:
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        found = check_whole_number("epochs", value, 1)
        assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [0, 9, 2.0, np.float32(2), "2", True, None, torch.ones(2), 2**64])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="epochs must be a whole number from 1 to 8: got"):
        check_whole_number("epochs", value, 1, 8)


def test_a_value_of_another_kind_is_refused_in_the_words_of_the_argument() -> None:
    refuse_other_kind("a", (int, str), "a name is text")
    with pytest.raises(UserError, match="a name is text: got 5"):
        refuse_other_kind(5, str, "a name is text")

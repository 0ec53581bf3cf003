"""Normal forms of texts, and vocabularies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_ssl.text import BLANK, Vocabulary, normalize


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Hello, World!", "hello world"),
        ("It\u2019s 5 o\u2018clock \u2013 'quoted'", "it's 5 o'clock quoted"),
        ("Ge\u00f6ffnet f\u00fcr Stra\u00dfe", "ge\u00f6ffnet f\u00fcr stra\u00dfe"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),  # composed
        ("\ufb01ve\u00a0times", "five times"),  # a ligature, a hard space
        ("\u0414\u0430, \u043d\u0435\u0442", "\u0434\u0430 \u043d\u0435\u0442"),
        ("tabs\tand\nlines", "tabs and lines"),
        ("'' ... --", ""),
        ("", ""),
    ],
)
def test_normal_forms(text: str, normal: str) -> None:
    assert normalize(text) == normal


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert once == once.strip() and "  " not in once


@given(st.lists(st.text(min_size=1), min_size=1))
def test_what_is_encoded_comes_back(texts: list[str]) -> None:
    vocabulary = Vocabulary.of(texts)
    assert vocabulary == Vocabulary.of(reversed(texts))
    assert vocabulary.symbols[0] == BLANK
    for text in texts:
        units = vocabulary.encode(text)
        assert 0 not in units and vocabulary.decode(units) == text
        spread = [unit for one in units for unit in (one, one, 0)]
        assert vocabulary.collapse(spread) == text


def test_repeats_collapse_unless_a_blank_is_between() -> None:
    vocabulary = Vocabulary((BLANK, "a", "b"))
    assert vocabulary.collapse([0, 1, 1, 0, 1, 2, 2, 0]) == "aab"
    assert vocabulary.collapse([]) == ""


def test_unknown_characters_are_named() -> None:
    with pytest.raises(ValueError, match="the vocabulary has no 'x', 'y', as in 'yax'"):
        Vocabulary((BLANK, "a")).encode("yax")


@pytest.mark.parametrize("symbols", [(), (BLANK,), ("a", "b"), (BLANK, "a", "a"), (BLANK, "")])
def test_what_is_no_vocabulary(symbols: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        Vocabulary(symbols)


def test_units_of_several_characters_go_before_shorter_ones() -> None:
    vocabulary = Vocabulary((BLANK, "a", "b", "ab", "abc", "c"))
    assert vocabulary.encode("ababcb") == [3, 4, 2]
    assert vocabulary.decode([3, 4, 2]) == "ababcb"


def test_special_units_are_never_said_nor_meant() -> None:
    vocabulary = Vocabulary((BLANK, "<s>", "a", "[UNK]", "<", ">", "s", "[]"))
    assert vocabulary.silent == {0, 1, 3}
    assert vocabulary.decode([1, 2, 3, 4]) == "a<"
    assert vocabulary.encode("<s>") == [4, 6, 5]


def test_capital_letters_stand_in_for_small_ones() -> None:
    assert Vocabulary((BLANK, "A", "B", "b", "\u00c9")).encode("abB\u00e9") == [1, 3, 2, 4]


def test_texts_without_characters_make_none() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        Vocabulary.of([""])


def test_phones_have_a_space_between():
    vocabulary = Vocabulary(("<blank>", "a", "tʃ", " ", "<unk>", "aʊ"), spaced=True)
    assert vocabulary.collapse([1, 1, 0, 1, 3, 2, 4, 5]) == "a a tʃ aʊ"
    assert vocabulary.encode(" a  a tʃ aʊ ") == [1, 1, 2, 5]
    with pytest.raises(ValueError, match="the vocabulary has no '<unk>', 'A', as in"):
        vocabulary.encode("A a <unk>")

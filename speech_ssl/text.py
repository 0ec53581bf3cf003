"""Texts as sequences of units, and back: what data, decoding and evaluation must agree on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

BLANK, SPACE = "<blank>", " "
_SPECIAL = re.compile(r"<.+>|\[.+\]")
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u00b4`"), "'")


def normalize(text: str) -> str:
    """Lower case, letters, digits and apostrophes within words; every run of all else is one space.

    By Unicode: compatibility forms are composed (NFKC), letters of any script with their marks kept,
    typographic apostrophes made plain. Numbers stay digits. Normalising twice changes nothing.
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(word for part in kept.split() if (word := part.strip("'")))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """symbols: one a unit; the first is the blank, the others mostly single characters. Those such as `<unk>`
    or `[UNK]`, which models of other libraries have, are never said. spaced: units are phones. A text is all
    of them with a space between; a unit that is a space parts words, and is not seen in the text."""

    symbols: tuple[str, ...]
    spaced: bool = False

    def __post_init__(self) -> None:
        characters = self.symbols[1:]
        if self.symbols[:1] != (BLANK,) or not characters:
            raise ValueError(f"a vocabulary is {BLANK!r} first, then at least one character")
        if not all(characters) or len(set(characters)) < len(characters):
            raise ValueError("the units after the blank must be texts, each once")

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """All characters of the texts, in the order of their code points, so that the same texts in
        another order give the same units. Raises ValueError if there are none."""
        return cls((BLANK, *sorted(set().union(*texts))))

    @property
    def silent(self) -> frozenset[int]:
        """Units that stand for no text: the blank, and special ones."""
        special = {unit for unit, symbol in enumerate(self.symbols) if _SPECIAL.fullmatch(symbol)}
        return frozenset({0} | special)

    def encode(self, text: str) -> list[int]:
        """Units of a text, at each place the longest that fits; capital letters where the vocabulary has only
        those. Of phones, those between the spaces. Raises ValueError that names what it does not have."""
        silent = self.silent
        units = {symbol: unit for unit, symbol in enumerate(self.symbols) if unit not in silent}
        if self.spaced:
            parts = text.split()
        else:
            units = {symbol.lower(): unit for symbol, unit in units.items()} | units
            parts = _longest(text, units)
        if unknown := set(parts) - units.keys():
            named = ", ".join(map(repr, sorted(unknown)))
            raise ValueError(f"the vocabulary has no {named}, as in {text[:60]!r}")
        return [units[part] for part in parts]

    def decode(self, units: Iterable[int]) -> str:
        """The text of units; those that are never said are passed over."""
        silent = self.silent
        said = (self.symbols[unit] for unit in units if unit not in silent)
        return SPACE.join(phone for phone in said if phone != SPACE) if self.spaced else "".join(said)

    def collapse(self, path: Sequence[int]) -> str:
        """The text of a CTC path, one unit a frame: repeats are one, then blanks go (Graves et al. 2006)."""
        return self.decode(unit for unit, _ in groupby(path))


def _longest(text: str, symbols: Collection[str]) -> list[str]:
    """A text in parts: at each place the longest one that is a symbol, else a character."""
    longest, parts, place = max(map(len, symbols), default=1), [], 0
    while place < len(text):
        fitting = (text[place : place + size] for size in range(longest, 0, -1))
        parts.append(next((part for part in fitting if part in symbols), text[place]))
        place += len(parts[-1])
    return parts

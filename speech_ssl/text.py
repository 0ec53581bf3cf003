"""Texts as sequences of units, and back: what data, decoding and evaluation must agree on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
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
    or `[UNK]`, which models of other libraries have, are never said."""

    symbols: tuple[str, ...]

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
        those. Raises ValueError that names the characters it does not have."""
        silent = self.silent
        units = {symbol: unit for unit, symbol in enumerate(self.symbols) if unit not in silent}
        upper = {symbol.lower(): unit for symbol, unit in units.items()}
        units = upper | units
        longest = max(map(len, units), default=0)
        encoded, unknown, place = [], set(), 0
        while place < len(text):
            for size in range(longest, 0, -1):
                if (unit := units.get(text[place : place + size])) is not None:
                    encoded.append(unit)
                    place += size
                    break
            else:
                unknown.add(text[place])
                place += 1
        if unknown:
            named = ", ".join(map(repr, sorted(unknown)))
            raise ValueError(f"the vocabulary has no {named}, as in {text[:60]!r}")
        return encoded

    def decode(self, units: Iterable[int]) -> str:
        """The text of units; those that are never said are passed over."""
        silent = self.silent
        return "".join(self.symbols[unit] for unit in units if unit not in silent)

    def collapse(self, path: Sequence[int]) -> str:
        """The text of a CTC path, one unit a frame: repeats are one, then blanks go (Graves et al. 2006)."""
        return self.decode(unit for unit, _ in groupby(path))

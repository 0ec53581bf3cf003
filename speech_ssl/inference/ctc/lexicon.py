"""Words that texts may hold, in the letters that a vocabulary has."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from speech_ssl.text import Vocabulary


class Lexicon:
    """The words that texts may hold: given, or of a file with one a line. Empty lines are passed over.

    words: with their characters composed as the vocabulary has them. skipped: how many have others; they are
    left out. Raises ValueError if no word is left, or more would be in capitals or small letters, for words
    with spaces in them, and for a file that cannot be read.
    """

    def __init__(self, source: str | Path | Iterable[str], vocabulary: Vocabulary) -> None:
        given = set(lines_of(Path(source)) if isinstance(source, str | Path) else source) - {""}
        if torn := [word for word in given if word.split() != [word]]:
            raise ValueError(f"the lexicon has {min(torn)!r}: give one word a line, with no spaces in it")
        characters = set(vocabulary.symbols[1:])
        spelled = {word: fitting(word, characters) for word in given}
        self.words = sorted({word for word in spelled.values() if word is not None})
        left_out = sorted(word for word, form in spelled.items() if form is None)
        self.skipped, self.example = len(left_out), next(iter(left_out), "")
        if not given:
            raise ValueError("the lexicon has no words: give one a line")
        if not self.words:
            raise ValueError(
                f"the vocabulary can spell none of the lexicon's {len(given)} words, as {min(given)!r}; its "
                f"characters are {''.join(vocabulary.symbols[1:41])!r}"
            )
        check_letters(given, lambda word: fitting(word, characters) is not None, "the lexicon")


def forms(word: str) -> Iterator[str]:
    """The same word: as it is, its characters composed (NFC), and decomposed (NFD)."""
    yield word
    yield unicodedata.normalize("NFC", word)
    yield unicodedata.normalize("NFD", word)


def fitting(word: str, characters: Collection[str]) -> str | None:
    """The form of a word that has these characters alone."""
    return next((form for form in forms(word) if all(each in characters for each in form)), None)


def check_letters(words: Collection[str], fits: Callable[[str], bool], whose: str) -> None:
    """Raises ValueError where more than twice as many words as now would fit in capitals or small letters. Of
    English "I" and "A" fit a vocabulary of capitals, and make no language of it."""
    now = sum(map(fits, words))
    for letters, change in (("capitals", str.upper), ("small letters", str.lower)):
        then = sum(fits(change(word)) for word in words)
        if then > 2 * now:
            raise ValueError(
                f"{whose}: {now} of {len(words)} words fit, {then} would in {letters}: give it in {letters}"
            )


def lines_of(path: Path) -> Iterator[str]:
    """Words of a file. Raises ValueError if it cannot be read."""
    try:
        yield from (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the lexicon cannot be read ({error}); it is one word a line") from error

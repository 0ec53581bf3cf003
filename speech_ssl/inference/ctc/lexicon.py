"""The words that texts may contain, spelled in the vocabulary's characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from speech_ssl.text import Vocabulary


class Lexicon:
    """The words that texts may contain, given or from a file with one word per line. Empty lines are skipped.

    words: in the Unicode composition of the vocabulary's characters. skipped: the number of words that it
    cannot spell; they are left out. Raises ValueError if no word is left, if more words would fit in capitals
    or in small letters, for words that contain spaces, and for a file that cannot be read.
    """

    def __init__(self, source: str | Path | Iterable[str], vocabulary: Vocabulary) -> None:
        given = set(lines_of(Path(source)) if isinstance(source, str | Path) else source) - {""}
        if torn := [word for word in given if word.split() != [word]]:
            raise ValueError(f"the lexicon has {min(torn)!r}: give one word per line, without spaces")
        characters = set(vocabulary.symbols[1:])
        spelled = {word: fitting(word, characters) for word in given}
        self.words = sorted({word for word in spelled.values() if word is not None})
        left_out = sorted(word for word, form in spelled.items() if form is None)
        self.skipped, self.example = len(left_out), next(iter(left_out), "")
        if not given:
            raise ValueError("the lexicon has no words: give one per line")
        if not self.words:
            raise ValueError(
                f"the vocabulary can spell none of the lexicon's {len(given)} words, such as {min(given)!r}; "
                f"its characters are {''.join(vocabulary.symbols[1:41])!r}"
            )
        check_letters(given, lambda word: fitting(word, characters) is not None, "the lexicon")


def forms(word: str) -> Iterator[str]:
    """The same word as it is, composed (NFC), and decomposed (NFD)."""
    yield word
    yield unicodedata.normalize("NFC", word)
    yield unicodedata.normalize("NFD", word)


def fitting(word: str, characters: Collection[str]) -> str | None:
    """The form of a word that uses only these characters, or None."""
    return next((form for form in forms(word) if all(each in characters for each in form)), None)


def check_letters(words: Collection[str], fits: Callable[[str], bool], whose: str) -> None:
    """Raises ValueError if more than twice as many words would fit in capitals or in small letters. The
    English "I" and "A" fit a vocabulary of capitals, but a few such words do not make the letters right."""
    now = sum(map(fits, words))
    for letters, change in (("capitals", str.upper), ("small letters", str.lower)):
        then = sum(fits(change(word)) for word in words)
        if then > 2 * now:
            raise ValueError(
                f"{whose}: {now} of {len(words)} words fit, {then} would in {letters}: give it in {letters}"
            )


def lines_of(path: Path) -> Iterator[str]:
    """The words of a file. Raises ValueError if it cannot be read."""
    try:
        yield from (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: the lexicon cannot be read ({error}); it must have one word per line"
        ) from error

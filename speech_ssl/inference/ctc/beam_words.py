"""Words in a beam search: a lexicon that restricts them, a word n-gram that scores them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import dropwhile, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech_ssl.checkpoints.ngram import NGram
from speech_ssl.inference.ctc.lexicon import Lexicon, check_letters, fitting, forms, lines_of
from speech_ssl.inference.units import WHOLE
from speech_ssl.text import SPACE, Vocabulary

UNKNOWN = "<unk>"
MARKS = ("<s>", "</s>", UNKNOWN)
CHARACTER_SCORE = -1.5
"""Added to the log-probability of `<unk>`, which stands for all unknown words together, for each character of
an unknown word: about the information in a character, given the language, in natural logarithms."""
GZIP = b"\x1f\x8b"
REMEMBERED = 100_000  # prefixes
REMEMBERED_WORDS = 10  # longer than the context of any n-gram
LAST = "\U0010ffff"  # sorts after every character


@dataclass(frozen=True, slots=True)
class Context:
    """Where a prefix stands: its unfinished word, and the state after its finished words.

    score: the words' contribution so far, including `ahead` for the unfinished word. The contribution of the
    next unit, -inf if it may not follow: for characters in `known`, which lead to words, the value there
    minus `ahead`; for other characters `other`; for the end of the word `space`. next_V: the contributions of
    all units, if there are few.
    """

    word: str
    state: Any
    score: float
    ahead: float
    known: Mapping[str, float]
    other: float
    space: float
    next_V: NDArray[np.float64] | None


class LanguageModel:
    """A word n-gram by KenLM (Heafield 2011), with its weights in a search."""

    def __init__(self, ngram: NGram) -> None:
        self.path, self.weight, self.word_score = ngram.path, ngram.weight, ngram.word_score
        self._ngram, path = ngram, ngram.path
        self.known: Container[str] | None = None
        """The only known words; None: all words of the n-gram."""
        try:
            kenlm: Any = import_module("kenlm")
        except ImportError as error:
            raise ValueError("a language model needs KenLM: pip install 'speech-ssl[lm]'") from error
        try:
            with self.path.open("rb") as file:
                self._head = file.read(1000)
        except OSError as error:
            raise ValueError(f"{path}: the language model cannot be read ({error.strerror})") from error
        if self._head.startswith(GZIP):
            raise ValueError(f"{path} is compressed: unpack it with gunzip first")
        config = kenlm.Config()
        config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
        try:
            self._model = kenlm.Model(str(path), config)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rsplit(" threw ", 1)[-1].rstrip(")")
            raise ValueError(
                f"{path}: neither an ARPA file nor KenLM's binary form of one ({reason})"
            ) from error
        self._new_state = kenlm.State
        self._nowhere = kenlm.State()
        self._model.NullContextWrite(self._nowhere)
        self._as_written: dict[str, str] = {}

    @property
    def listed(self) -> bool:
        return self._ngram.words is not None

    def __contains__(self, word: str) -> bool:
        known = self.known is None or word in self.known
        return known and self._as_written.get(word, word) in self._model

    def meet(self, word: str) -> bool:
        """Whether it knows a word, in any Unicode composition. If so, it recognises the word as given."""
        for form in forms(word):
            if form in self._model:
                if form != word:
                    self._as_written[word] = form
                return True
        return False

    def begin(self, before: Sequence[str] = ()) -> Any:
        """The state at the beginning of a sentence, or after some of its words."""
        state = self._new_state()
        (self._model.BeginSentenceWrite if self._ngram.boundary else self._model.NullContextWrite)(state)
        for word in before:
            _, state = self.add(state, word)
        return state

    def add(self, state: Any, word: str) -> tuple[float, Any]:
        """A further word's contribution to the score, and the state after it."""
        after = self._new_state()
        return self.weight * self._log_prob(word, state, after) + self.word_score, after

    def end(self, state: Any) -> float:
        if not self._ngram.boundary:
            return 0.0
        return self.weight * float(self._model.BaseScore(state, "</s>", self._new_state())) * math.log(10)

    def alone(self, word: str) -> float:
        """A word's contribution without any context."""
        return self.weight * self._log_prob(word, self._nowhere, self._new_state()) + self.word_score

    def unknown(self, characters: int) -> float:
        """The contribution of an unknown word of this length, without any context."""
        log_prob = float(self._model.BaseScore(self._nowhere, UNKNOWN, self._new_state())) * math.log(10)
        return self.weight * (log_prob + self._unknown(characters)) + self.word_score

    def words(self) -> Iterator[str]:
        """The words of its list, else of an ARPA file. Raises ValueError for the binary form without one."""
        if self._ngram.words is not None:
            yield from filter(None, lines_of(self._ngram.words))
            return
        if b"\\data\\" not in self._head:
            raise ValueError(
                f"{self.path}: KenLM's binary form does not list its words: give a lexicon with it"
            )
        with self.path.open(encoding="utf-8", errors="replace") as lines:
            for line in islice(dropwhile(lambda line: line.strip() != "\\1-grams:", lines), 1, None):
                if line.startswith("\\"):
                    return
                yield from line.split()[1:2]

    def _log_prob(self, word: str, state: Any, after: Any) -> float:
        written = self._as_written.get(word, word)
        log_prob = float(self._model.BaseScore(state, written, after)) * math.log(10)
        return log_prob + (0.0 if word in self else self._unknown(len(word)))

    def _unknown(self, characters: int) -> float:
        score = self._ngram.unknown_score
        return CHARACTER_SCORE * characters if score is None else score


class Tree:
    """A prefix tree of words. worth: a word's contribution without context."""

    def __init__(self, words: Iterable[str], worth: Callable[[str], float]) -> None:
        self._words = sorted(words)
        self._worth_N = np.array([worth(word) for word in self._words])
        self._found: dict[str, tuple[bool, dict[str, float]]] = {}

    def follow(self, prefix: str) -> tuple[bool, dict[str, float]]:
        """Whether a prefix is a word, and the characters that lead to words, each with the highest worth of
        those words."""
        found = self._found.get(prefix)
        if found is None:
            if len(self._found) >= REMEMBERED:  # a decoder may run for weeks
                self._found = {}  # a new dict, since several threads may search
            found = self._found[prefix] = self._follow(prefix)
        return found

    def _follow(self, prefix: str) -> tuple[bool, dict[str, float]]:
        at = bisect_left(self._words, prefix)
        end = bisect_left(self._words, prefix + LAST, at)
        whole = at < end and self._words[at] == prefix
        at += whole
        found = {}
        while at < end:
            character = self._words[at][len(prefix)]
            stop = bisect_left(self._words, prefix + character + LAST, at, end)
            found[character] = float(self._worth_N[at:stop].max())
            at = stop
        return whole, found


class Words:
    """The contexts of a search: how prefixes may continue, and how that is scored.

    An unfinished word scores as the best word that it can become, without context; if no known word begins
    so, it scores as unknown. Otherwise unfinished words would cost nothing, and the beam would fill with
    texts that never reach a space. At its space, or at the end, a word gets its own score. Without a lexicon
    and a language model, words add nothing.
    """

    def __init__(self, vocabulary: Vocabulary, lexicon: Lexicon | None, lm: LanguageModel | None) -> None:
        self._symbols, self._lm, self._closed = vocabulary.symbols, lm, lexicon is not None
        self._units = {symbol: unit for unit, symbol in enumerate(vocabulary.symbols) if unit}
        self.space = self._units.get(SPACE)
        self._tree: Tree | None = None
        if lexicon is not None and lm is None:
            self._tree = Tree(lexicon.words, lambda word: 0.0)
        elif lm is not None:
            known = self._known(lm, None if lexicon is None else lexicon.words)
            if not known and (lexicon is not None or any(lm.words())):  # an empty list is meant to know none
                raise ValueError(
                    f"{lm.path}: the language model knows no word that this vocabulary can spell; is it for "
                    "another language, or in capitals?"
                )
            self._tree = Tree(known if lexicon is None else lexicon.words, lm.alone)

    def _known(self, lm: LanguageModel, words: Sequence[str] | None) -> set[str]:
        """The lexicon's words that the language model knows; without a lexicon, its own words that the
        vocabulary can spell, in that spelling."""
        if words is not None:
            known = {word for word in words if lm.meet(word)}
            fits = lm.meet
        else:
            words = [word for word in lm.words() if word not in MARKS]
            said = [form for word in words if (form := fitting(word, self._units)) is not None]
            known = {form for form in said if lm.meet(form)}
            if known and lm.listed:
                lm.known = known
            fits = self._can_be_said
        if known:
            check_letters(words, fits, str(lm.path))
        return known

    def _can_be_said(self, word: str) -> bool:
        return fitting(word, self._units) is not None

    def begin(self, before: str = "") -> Context:
        """before: the text so far."""
        state = None if self._lm is None else self._lm.begin(before.split()[-REMEMBERED_WORDS:])
        return self._context("", state, 0.0, 0.0)

    def next(self, contexts: Sequence[Context], units_U: NDArray[np.intp]) -> NDArray[np.float64]:
        """The contributions of each of these units as the next one (K, U); -inf if it may not follow. With a
        small vocabulary, all units are requested in their order."""
        if len(self._symbols) <= WHOLE:
            return np.array([context.next_V for context in contexts])
        units = units_U.tolist()
        return np.array([[self._adds(context, unit) for unit in units] for context in contexts])

    def _adds(self, context: Context, unit: int) -> float:
        if unit == 0:
            return -math.inf  # a blank does not extend a prefix
        if unit == self.space:
            return context.space
        worth = context.known.get(self._symbols[unit])
        return context.other if worth is None else worth - context.ahead

    def extend(self, context: Context, unit: int) -> Context:
        """The context after one more unit, which must be allowed to follow."""
        adds = self._adds(context, unit)
        score = context.score + adds
        if unit != self.space:
            return self._context(
                context.word + self._symbols[unit], context.state, score, context.ahead + adds
            )
        state = None if self._lm is None else self._lm.add(context.state, context.word)[1]
        return self._context("", state, score, 0.0)

    def end(self, context: Context, *, last: bool = True) -> float:
        """The contribution of the words of a text that ends here; -inf if its last word is incomplete. last:
        add that of the end of the sentence."""
        if context.word and self.space is not None:
            context = self.extend(context, self.space)
        return context.score + (self._lm.end(context.state) if self._lm is not None and last else 0.0)

    def _context(self, word: str, state: Any, score: float, ahead: float) -> Context:
        known: Mapping[str, float] = {}
        whole, other = True, 0.0
        if self._tree is not None:
            whole, known = self._tree.follow(word)
            unknown = -np.inf if self._closed or self._lm is None else self._lm.unknown(len(word) + 1)
            other = unknown - ahead
        may_end = word and (whole or not self._closed)
        space = self._finished(word, state) - ahead if may_end else -np.inf
        return Context(
            word, state, score, ahead, known, other, space, self._next_of_all(known, other, space, ahead)
        )

    def _next_of_all(
        self, known: Mapping[str, float], other: float, space: float, ahead: float
    ) -> NDArray[np.float64] | None:
        if len(self._symbols) > WHOLE:
            return None
        next_V = np.full(len(self._symbols), other)
        for character, worth in known.items():
            next_V[self._units[character]] = worth - ahead
        next_V[0] = -np.inf
        if self.space is not None:
            next_V[self.space] = space
        return next_V

    def _finished(self, word: str, state: Any) -> float:
        return 0.0 if self._lm is None else self._lm.add(state, word)[0]

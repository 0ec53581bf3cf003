"""CTC prefix beam search, with an optional word n-gram and lexicon.

Graves and Jaitly (2014), algorithm 1; Hannun et al. (2014), "First-pass large vocabulary continuous speech
recognition using bi-directional recurrent DNNs", algorithm 1. A hypothesis is a text, and its probability is
the sum over all paths that spell it, not that of the best path. Texts are words with one space between: paths
that differ in spaces at the ends, or in the length of runs of spaces, spell the same text. A beam that holds
all prefixes finds the most probable text. A smaller one loses some paths, so its scores are lower bounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from speech_ssl.checkpoints.ngram import NGram
from speech_ssl.inference.ctc.beam_words import Context, LanguageModel, Words
from speech_ssl.inference.ctc.best_path import LEAST_LOG_PROB, check_log_probs
from speech_ssl.inference.ctc.lexicon import Lexicon
from speech_ssl.inference.units import KEPT, WHOLE
from speech_ssl.text import SPACE, Vocabulary

BEAM, LM_WEIGHT, WORD_SCORE = 32, 0.5, 1.5
AT_ONCE = 64
"""Every this many frames, prefixes that have left the beam are freed."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text and its score: ln of its probability, plus the language model's contribution."""

    text: str
    score: float


@dataclass(eq=False, slots=True)
class _Prefix:
    """A node in the tree of prefixes. Equal prefixes share a node while it or a descendant is in the beam."""

    parent: _Prefix | None
    unit: int
    context: Context


Grown: TypeAlias = dict[tuple[int, int], _Prefix]
"""Children, by the parent's `id` and the child's unit. The parent lives as long as the child."""


@dataclass(slots=True)
class _Kept:
    """The prefixes in the beam (K), with the log-probabilities of all their paths that end in a blank
    (`blank_K`) and in their last unit (`unit_K`). The empty prefix counts as ending in a space, if there is
    one."""

    prefixes: list[_Prefix]
    grown: Grown
    blank_K: NDArray[np.float64]
    unit_K: NDArray[np.float64]
    last_K: NDArray[np.intp]
    score_K: NDArray[np.float64]  # the words' contribution

    def forget(self) -> None:
        """Free the prefixes that have left the beam and have no descendant in it."""
        living: set[_Prefix] = set()
        for prefix in self.prefixes:
            node: _Prefix | None = prefix
            while node is not None and node not in living:
                living.add(node)
                node = node.parent
        self.grown = {key: node for key, node in self.grown.items() if node in living}


class BeamSearch:
    """From log-probabilities (T, V), natural logarithms, to the best text.

    beam: prefixes kept after each frame. With more than 256 units in the vocabulary, they are extended only
    by a frame's 64 most probable units.
    lexicon: words, or a file with one word per line; texts contain no others. `skipped` counts those that the
    vocabulary cannot spell, such as `example`.
    lm: a word n-gram: an ARPA file, or KenLM's binary form together with a lexicon; or the one of a model,
    which includes the weights. Needs the extra `lm`. Without a lexicon, words may be unknown to it: these
    score as `<unk>` times a spelling, or as that model says.
    A text's score is log P(text | audio) + lm_weight * ln P(words and end) + word_score * words. The last two
    apply only with a language model; word_score compensates for its preference for few words.

    Raises ValueError for files that cannot be read, for a lexicon without any word that can be spelled, for a
    language model spelled differently from the vocabulary, and without the extra.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        beam: int = BEAM,
        lexicon: Path | Iterable[str] | None = None,
        lm: Path | NGram | None = None,
        lm_weight: float = LM_WEIGHT,
        word_score: float = WORD_SCORE,
    ) -> None:
        if beam < 1:
            raise ValueError(f"beam must be at least 1, not {beam}")
        if (lexicon is not None or lm is not None) and SPACE not in vocabulary.symbols:
            raise ValueError("the vocabulary has no space to tell words apart: no lexicon or lm can be used")
        if (lexicon is not None or lm is not None) and vocabulary.spaced:
            raise ValueError("the vocabulary consists of phones: no lexicon or lm of words can be used")
        self.vocabulary, self.beam = vocabulary, beam
        words = None if lexicon is None else Lexicon(lexicon, vocabulary)
        self.skipped = 0 if words is None else words.skipped
        self.example = "" if words is None else words.example
        if lm is not None and not isinstance(lm, NGram):
            lm = NGram(path=Path(lm), weight=lm_weight, word_score=word_score)
        model = None if lm is None else LanguageModel(lm)
        self._words = Words(vocabulary, words, model)
        self._space = -1 if self._words.space is None else self._words.space
        self._all = np.arange(len(vocabulary.symbols))

    def __call__(self, log_probs_TV: NDArray[np.float32]) -> Hypothesis:
        """The best text. Raises ValueError for log-probabilities of the wrong shape, or with NaN."""
        return self.n_best(log_probs_TV, 1)[0]

    def part(self, log_probs_TV: NDArray[np.float32], *, before: str, last: bool) -> Hypothesis:
        """The best text of a part of a recording. before: the text of the earlier parts, which the language
        model continues. last: this is the last part; only then the end of the text is scored."""
        return self.n_best(log_probs_TV, 1, before=before, last=last)[0]

    def n_best(
        self, log_probs_TV: NDArray[np.float32], n: int, *, before: str = "", last: bool = True
    ) -> list[Hypothesis]:
        """Up to n texts from the beam, the best first; at least one. before, last: as in `part`."""
        check_log_probs(log_probs_TV, self.vocabulary)
        kept = self._begin(before)
        silent = [unit for unit in self.vocabulary.silent if unit]
        for start in range(0, len(log_probs_TV), AT_ONCE):
            block_TV = np.maximum(log_probs_TV[start : start + AT_ONCE].astype(np.float64), LEAST_LOG_PROB)
            block_TV[:, silent] = LEAST_LOG_PROB
            for row_V in block_TV:
                kept = self._step(kept, row_V, self._likeliest(row_V))
            kept.forget()
        return self._texts(kept, last)[:n]

    def _begin(self, before: str = "") -> _Kept:
        root = _Prefix(None, self._words.space or 0, self._words.begin(before))
        none, one = np.array([-np.inf]), np.array([0.0])
        return _Kept([root], {}, one, none, np.array([root.unit]), one)

    def _step(self, kept: _Kept, row_V: NDArray[np.float64], units_U: NDArray[np.intp]) -> _Kept:
        """One frame: prefixes stay as they are or are extended by one of these units; the best are kept."""
        total_K = np.logaddexp(kept.blank_K, kept.unit_K)
        more_KU = total_K[:, None] + row_V[units_U]
        rows, places = self._among(kept.last_K, units_U)
        repeated_K = kept.blank_K + row_V[kept.last_K]  # a repeat needs a blank in between
        more_KU[rows, places] = repeated_K[rows]
        blank_K = total_K + row_V[0]
        # A run of spaces is one space.
        spaced_K = np.where(kept.last_K == self._space, total_K, kept.unit_K)
        unit_K = spaced_K + row_V[kept.last_K]
        self._join(kept, unit_K, more_KU, units_U)
        stay_K = np.logaddexp(blank_K, unit_K) + kept.score_K
        next_KU = self._words.next([prefix.context for prefix in kept.prefixes], units_U)
        grow_KU = more_KU + kept.score_K[:, None] + next_KU
        best = _best(np.concatenate([stay_K, grow_KU.ravel()]), self.beam)
        return self._keep(kept, best, blank_K, unit_K, more_KU, units_U)

    def _keep(
        self,
        kept: _Kept,
        best: NDArray[np.intp],
        blank_K: NDArray[np.float64],
        unit_K: NDArray[np.float64],
        more_KU: NDArray[np.float64],
        units_U: NDArray[np.intp],
    ) -> _Kept:
        """The remaining prefixes: indices below K stay, the others are extended."""
        stays = best < len(blank_K)
        grown, places = np.divmod(best - len(blank_K), len(units_U))
        rows = np.where(stays, best, grown)
        last = np.where(stays, kept.last_K[rows], units_U[places])
        prefixes = [kept.prefixes[row] for row in rows.tolist()]
        score = kept.score_K[rows]
        for i in np.flatnonzero(~stays).tolist():
            prefixes[i] = self._child(kept.grown, prefixes[i], int(last[i]))
            score[i] = prefixes[i].context.score
        return _Kept(
            prefixes,
            kept.grown,
            np.where(stays, blank_K[rows], -np.inf),
            np.where(stays, unit_K[rows], more_KU[rows, places]),
            last,
            score,
        )

    def _child(self, grown: Grown, prefix: _Prefix, unit: int) -> _Prefix:
        child = grown.get((id(prefix), unit))
        if child is None:
            child = _Prefix(prefix, unit, self._words.extend(prefix.context, unit))
            grown[id(prefix), unit] = child
        return child

    def _likeliest(self, row_V: NDArray[np.float64]) -> NDArray[np.intp]:
        """Units that may extend a prefix: all, or the most probable ones of a large vocabulary."""
        if len(row_V) <= WHOLE:
            return self._all
        return np.argpartition(row_V, -KEPT)[-KEPT:]

    def _among(
        self, last_N: NDArray[np.intp], units_U: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The indices of those that are among the units, and their places there."""
        if units_U is self._all:
            return np.arange(len(last_N)), last_N
        found, places = np.nonzero(last_N[:, None] == units_U)
        return found, places

    def _join(
        self,
        kept: _Kept,
        unit_K: NDArray[np.float64],
        more_KU: NDArray[np.float64],
        units_U: NDArray[np.intp],
    ) -> None:
        """If an extended prefix is itself in the beam, move its probability there."""
        place = {prefix: row for row, prefix in enumerate(kept.prefixes)}
        pairs = [(place[p.parent], row) for p, row in place.items() if p.parent in place]
        if pairs:
            parents, children = np.array(pairs).T
            found, places = self._among(kept.last_K[children], units_U)
            parents, children = parents[found], children[found]
            unit_K[children] = np.logaddexp(unit_K[children], more_KU[parents, places])
            more_KU[parents, places] = -np.inf

    def _texts(self, kept: _Kept, last: bool) -> list[Hypothesis]:
        """The texts of the kept prefixes, each once. If none ends with a whole word, as with a small beam or
        where the audio breaks off: the best text so far, without its last word."""
        total_K = np.logaddexp(kept.blank_K, kept.unit_K)
        scores: dict[str, float] = {}
        for prefix, total in zip(kept.prefixes, total_K.tolist(), strict=True):
            text, score = self._text(prefix), total + self._words.end(prefix.context, last=last)
            scores[text] = float(np.logaddexp(scores.get(text, -np.inf), score))
        found = [Hypothesis(text, score) for text, score in scores.items() if score > -np.inf]
        if not found:
            best = int((total_K + kept.score_K).argmax())
            whole = self._text(kept.prefixes[best]).split()[:-1]
            return [Hypothesis(SPACE.join(whole), float(total_K[best] + kept.score_K[best]))]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)

    def _text(self, prefix: _Prefix) -> str:
        units = []
        while prefix.parent is not None:
            units.append(prefix.unit)
            prefix = prefix.parent
        return self.vocabulary.decode(reversed(units)).strip(SPACE)


def _best(scores: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Indices of the highest scores, unordered, without those of -inf."""
    best = np.argpartition(-scores, most)[:most] if len(scores) > most else np.arange(len(scores))
    return best[scores[best] > -np.inf]

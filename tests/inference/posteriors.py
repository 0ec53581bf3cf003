"""Log-probabilities made by hand, and what they mean by the definition of CTC."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from speech_ssl.text import BLANK, Vocabulary

HOP_S = 0.02
LETTERS = Vocabulary((BLANK, *" abcdefghijklmnopqrstuvwxyz"))

LogProbs = NDArray[np.float32]


def log_softmax(logits_TV: NDArray[np.float64]) -> LogProbs:
    return np.asarray(logits_TV - np.logaddexp.reduce(logits_TV, axis=-1, keepdims=True), dtype=np.float32)


def random_log_probs(frames: int, units: int, seed: int, sharpness: float = 1.5) -> LogProbs:
    return log_softmax(np.random.default_rng(seed).normal(size=(frames, units)) * sharpness)


def on_path(path: Sequence[int], units: int, probability: float = 0.9) -> LogProbs:
    """The path's units have this probability, the others share the rest."""
    rows_TV = np.full((len(path), units), (1 - probability) / (units - 1), np.float32)
    rows_TV[np.arange(len(path)), list(path)] = probability
    return np.log(rows_TV)


def path_of(letters: str, vocabulary: Vocabulary) -> list[int]:
    """A path as text: "-" is a blank."""
    return [0 if letter == "-" else vocabulary.symbols.index(letter) for letter in letters]


def text_of(path: Sequence[int], vocabulary: Vocabulary) -> str:
    """What a path reads, by the definition: repeats are one, blanks go; spaces stand between words alone."""
    units = [unit for unit, _ in itertools.groupby(path) if unit]
    return " ".join("".join(vocabulary.symbols[unit] for unit in units).split())


def all_texts(log_probs_TV: LogProbs, vocabulary: Vocabulary) -> dict[str, float]:
    """Every text, and the logarithm of the sum of its paths' probabilities."""
    sums: dict[str, float] = {}
    for path in itertools.product(range(log_probs_TV.shape[1]), repeat=len(log_probs_TV)):
        text = text_of(path, vocabulary)
        sums[text] = float(np.logaddexp(sums.get(text, -np.inf), path_log_prob(log_probs_TV, path)))
    return sums


def path_log_prob(log_probs_TV: LogProbs, path: Sequence[int]) -> float:
    return sum(float(row[unit]) for row, unit in zip(log_probs_TV, path, strict=True))


class Planted:
    """Words said at known times: a spike of one frame for each character, at its middle; one for each space.

    Characters last 60 to 100 ms. Words follow each other at once (up to 60 ms), or there is a pause of 250 to
    600 ms. What lies between cannot be told apart: the space is in its middle, up to 100 ms from both.
    """

    def __init__(self, words: Sequence[str], seed: int, longest_gap_s: float = 0.6) -> None:
        rng = np.random.default_rng(seed)
        self.times: list[tuple[float, float]] = []
        spikes: list[tuple[float, int]] = []
        now = rng.uniform(0.1, 0.3)
        for number, word in enumerate(words):
            start = now
            for unit in LETTERS.encode(word):
                lasts = rng.uniform(0.06, 0.1)
                spikes.append((now + lasts / 2, unit))
                now += lasts
            self.times.append((start, now))
            gap = rng.choice([rng.uniform(0.0, 0.06), rng.uniform(0.25, longest_gap_s)])
            if number + 1 < len(words):
                spikes.append((now + gap / 2, LETTERS.symbols.index(" ")))
            now += gap
        path = [0] * (int(now / HOP_S) + 1)
        for time_s, unit in spikes:
            path[int(time_s / HOP_S)] = unit
        self.text, self.log_probs_TV = " ".join(words), on_path(path, len(LETTERS.symbols), 0.95)


WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=1, max_size=6).map(
    lambda words: ["".join(letter for letter, _ in itertools.groupby(word)) for word in words]
)
"""Without a letter twice in a row: between such two, a path needs a blank."""

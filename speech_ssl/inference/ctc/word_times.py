"""Times of words, from the spikes of a CTC model and the loudness of the recording.

A CTC model emits a unit in one or two frames, somewhere within its sound or a little later, with blanks
around it. So the spikes give the order of the words and their rough times. The loudness gives the rest:

- A pause is at least 50 ms that are 30 dB below the loudest moment nearby, or as quiet as it gets there. It
  may lie between two words, before the first or after the last. A word ends where the first pause after its
  last spike begins, and begins where the last pause before its first spike ends, if that is within 0.5 s of
  the spike.
- Without a pause between them, neighbours whose spikes are at most 0.3 s apart meet at the quietest place.
- If that gives nothing, or without the loudness, a spike is taken as the middle of its unit. A word extends
  beyond its first and last spike by half of the usual distance between spikes (the median over the text, at
  most 0.2 s; 0.08 s if no word has two units). Neighbours at most 0.2 s apart meet in the middle of the
  space. Units that last longer are covered entirely.

Words never overlap, are in order, and lie within the recording. benchmarks/word_times.py measures their
errors.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from speech_ssl.text import SPACE, Vocabulary
from speech_ssl.types import Waveform

USUAL_STEP_S, LONGEST_STEP_S = 0.08, 0.2
NEAR_S, HEARD_NEAR_S = 0.2, 0.3
QUIET_S = 0.05
AROUND_S = 0.5
SILENT, AS_QUIET, UNTOLD = 1e-3, 4.0, 0.1
"""Relative to the loudest: below it is certainly a pause. Relative to the quietest: below it is as quiet.
Relative to the loudest: if quiet is above it, pauses cannot be told."""

PARTS = 4
"""Parts of a frame whose loudness is measured; fewer only if a hop has fewer samples."""

Loudness: TypeAlias = NDArray[np.float32]
"""Mean squares, by parts of a frame: (T, E)."""


def loudness_of(wave: Waveform, frames: int, hop: int, receptive_field: int) -> Loudness:
    """Loudness of one hop of samples around the middle of each frame. If a hop does not divide evenly, its
    parts differ by a sample. Beyond the wave, where a field shorter than a hop reaches, it is silent."""
    parts = min(PARTS, hop)
    first = (receptive_field - hop) // 2
    begin, stop = max(first, 0), first + frames * hop
    squares_N = np.zeros(frames * hop, dtype=np.float32)
    heard_N = wave[begin:stop]
    squares_N[begin - first : begin - first + len(heard_N)] = np.square(heard_N)
    edges_N = np.arange(frames * parts + 1) * hop // parts
    sums_N = np.add.reduceat(squares_N, edges_N[:-1], dtype=np.float32) if frames else squares_N
    return np.asarray(sums_N / np.diff(edges_N), dtype=np.float32).reshape(frames, parts)


def of_every(stride: int, loudness_TE: Loudness) -> Loudness:
    """The loudness for every `stride`-th frame, each standing for `stride` hops around its middle: (ceil(T /
    stride), stride * E). Beyond the recording it is as loud as at its end."""
    frames, parts = loudness_TE.shape
    if not loudness_TE.size:
        return loudness_TE
    before = (stride - 1) * parts // 2
    length = -(-frames // stride) * stride * parts
    after = max(length - before - frames * parts, 0)
    padded = np.pad(loudness_TE.ravel(), (before, after), mode="edge")
    return padded[:length].reshape(-1, stride * parts)


@dataclass(frozen=True, slots=True)
class Word:
    """A word and when it is spoken. start, end: seconds.

    score: the geometric mean of its units' posteriors, in [0, 1]; a unit's posterior is that over its frames.
    """

    word: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True)
class Span:
    """The frames of one unit on a path, from `start` to before `stop`, and their mean log-probability."""

    unit: int
    start: int
    stop: int
    log_prob: float

    @property
    def middle(self) -> float:
        return (self.start + self.stop) / 2


def words_of(
    spans: Sequence[Span],
    frames: int,
    vocabulary: Vocabulary,
    hop_s: float,
    loudness_TE: Loudness | None = None,
) -> list[Word]:
    """The words that the spikes of a path spell, with times by the rules above."""
    said, spaces = _parted(spans, vocabulary)
    half = _step(said, hop_s) / 2
    starts = [max(min(first.start, first.middle - half), 0) for first, *_ in said]
    ends = [min(max(last.stop, last.middle + half), frames) for *_, last in said]
    heard = None if loudness_TE is None or not loudness_TE.size else Quiet(loudness_TE, hop_s)
    if heard is not None and said:
        starts[0] = heard.start(0, said[0][0], starts[0])
        ends[-1] = heard.end(said[-1][-1], frames, ends[-1])
    for i, (space_start, space_stop) in enumerate(spaces):
        last, first = said[i][-1], said[i + 1][0]
        if heard is not None and heard.pauses(last.middle, first.start):
            ends[i] = heard.end(last, first.start, ends[i])
            starts[i + 1] = heard.start(last.middle, first, starts[i + 1])
            continue
        ends[i], starts[i + 1] = min(ends[i], space_stop), max(starts[i + 1], space_start)
        near = (NEAR_S if heard is None else HEARD_NEAR_S) / hop_s
        if first.start - last.stop <= near or ends[i] > starts[i + 1]:
            middle = (space_start + space_stop) / 2
            ends[i] = starts[i + 1] = middle if heard is None else heard.quietest(last, first, middle)
    words = []
    for units, start, end in zip(said, starts, ends, strict=True):
        score = math.exp(statistics.fmean(span.log_prob for span in units))
        text = vocabulary.decode([span.unit for span in units])
        words.append(Word(text, start * hop_s, end * hop_s, min(score, 1.0)))
    return words


def _parted(spans: Sequence[Span], vocabulary: Vocabulary) -> tuple[list[list[Span]], list[tuple[int, int]]]:
    """The units of each word, and the frames between words, which belong to a space. A phone is a word."""
    space = vocabulary.symbols.index(SPACE) if SPACE in vocabulary.symbols else None
    groups = [list(group) for _, group in groupby(spans, key=lambda span: span.unit == space)]
    words = [group for group in groups if group[0].unit != space]
    if vocabulary.spaced:
        words = [[span] for group in words for span in group]
        return words, [(last[0].stop, first[0].start) for last, first in pairwise(words)]
    between = groups[groups[0][0].unit == space :][1::2] if groups else []
    return words, [(group[0].start, group[-1].stop) for group in between[: len(words) - 1]]


def _step(words: Sequence[Sequence[Span]], hop_s: float) -> float:
    """The usual distance in frames from one spike of a word to the next: the median over these words."""
    steps = [later.middle - earlier.middle for word in words for earlier, later in pairwise(word)]
    return min(statistics.median(steps), LONGEST_STEP_S / hop_s) if steps else USUAL_STEP_S / hop_s


class Quiet:
    """Where a recording is quiet. Places are in frames, as in spans."""

    def __init__(self, loudness_TE: Loudness, hop_s: float) -> None:
        self.parts = loudness_TE.shape[1]
        self.squares_N = loudness_TE.ravel().astype(np.float64)
        self.smooth_N = np.convolve(self.squares_N, np.ones(self.parts) / self.parts, "same")
        self.least = QUIET_S / hop_s * self.parts
        self.around = round(AROUND_S / hop_s * self.parts)

    def pauses(self, begin: float, stop: float) -> list[tuple[float, float]]:
        """The pauses within a part of the recording; at the recording's ends they may be short."""
        low, high = math.ceil(begin * self.parts), int(stop * self.parts)
        near_N = self.smooth_N[max(low - self.around, 0) : high + self.around]
        if high <= low or not near_N.size:
            return []
        loudest = float(near_N.max())
        limit = max(SILENT * loudest, AS_QUIET * float(near_N.min()))
        if limit > UNTOLD * loudest:
            return []
        quiet_N = np.concatenate([[False], self.squares_N[low:high] < limit, [False]])
        edges = low + np.flatnonzero(quiet_N[1:] != quiet_N[:-1])
        return [
            (first / self.parts, last / self.parts)
            for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
            if last - first >= self.least or first == 0 or last == len(self.squares_N)
        ]

    def end(self, last: Span, stop: float, otherwise: float) -> float:
        """The end of a word, after its last spike and before `stop`."""
        pauses = self.pauses(last.middle, stop)
        near = pauses and pauses[0][0] - last.middle <= self.around / self.parts
        return pauses[0][0] if near else otherwise

    def start(self, begin: float, first: Span, otherwise: float) -> float:
        """The start of a word, after `begin` and before its first spike."""
        pauses = self.pauses(begin, first.start)
        near = pauses and first.start - pauses[-1][1] <= self.around / self.parts
        return pauses[-1][1] if near else otherwise

    def quietest(self, last: Span, first: Span, middle: float) -> float:
        """The quietest place between two spikes, averaged over about the length of a frame; of equal ones the
        nearest to `middle`."""
        squares_N = self.squares_N[last.start * self.parts : first.stop * self.parts]
        quiet_N = np.convolve(squares_N, np.ones(self.parts) / self.parts, "valid")
        places_N = last.start + (np.arange(len(quiet_N)) + self.parts / 2) / self.parts
        between_N = (places_N > last.middle) & (places_N < first.middle)
        if not between_N.any():
            return middle
        least = quiet_N[between_N].min() * 1.000001
        return float(min(places_N[between_N & (quiet_N <= least)], key=lambda place: abs(place - middle)))

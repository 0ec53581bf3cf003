"""CTC without search: the best path, forced alignment, times of words, and cuts of long recordings.

Log-probabilities are (T, V) float32, natural logarithms, one row a frame; unit 0 is the blank (Graves et al.
2006). Frame t stands for the seconds from t * hop_s to (t + 1) * hop_s.

The times of words. A CTC model emits a unit in one frame or two, somewhere within its sound, and blanks
around it, so the first and the last spike of a word lie inside the word. A spike is taken for the middle of
its unit: a word reaches half of the usual distance between the spikes of a word beyond its first and its
last one (the median over the text, at most 0.2 s; 0.08 s where no word has two units). Units that hold on
for longer are covered whole. Words at most 0.3 s apart, from spike to spike, meet where it is quietest
between the middles of these spikes, if the loudness is given (mean squares by parts of a frame, as (T, E));
without it those at most 0.2 s apart meet in the middle of the space. Where the gap is longer there is a
pause in it: a word ends at the latest where the frames of the space end, and begins at the earliest where
they begin. So words never overlap, are in order, and lie within the recording. At joins of real clips a
boundary so found was 3 ms off in the median, in the middle of the space 22 ms (benchmarks/word_times.py).
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

from speech_ssl.text import Vocabulary

SPACE = " "
USUAL_STEP_S, LONGEST_STEP_S = 0.08, 0.2
PAUSE_S, HEARD_PAUSE_S = 0.2, 0.3
LEAST_LOG_PROB = -200.0  # as good as never, and float32 sums stay exact enough

MOST_CELLS = 1_000_000_000
SURE = math.log(0.9)  # of a blank
PAUSE, SHORT_PAUSE = 15, 3  # frames of sure blanks on both sides of a cut: as good as any; just a pause


Loudness: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it is said. start, end: seconds.

    score: the geometric mean of its units' posteriors, in [0, 1]; a unit's is that over its frames.
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


def greedy(
    log_probs_TV: NDArray[np.float32],
    vocabulary: Vocabulary,
    hop_s: float,
    loudness_TE: Loudness | None = None,
) -> tuple[str, list[Word]]:
    """The text of the best path, with one space between words, and its words.

    Times come from the path, which is the forced alignment of its own text. Raises ValueError for
    log-probabilities of another form.
    """
    check_log_probs(log_probs_TV, vocabulary)
    path_T = log_probs_TV.argmax(axis=1)
    best_T = np.maximum(log_probs_TV[np.arange(len(path_T)), path_T], LEAST_LOG_PROB)
    ends = [0, *(np.flatnonzero(np.diff(path_T)) + 1).tolist(), len(path_T)] if len(path_T) else []
    spans = [
        Span(int(path_T[start]), start, stop, float(best_T[start:stop].mean()))
        for start, stop in pairwise(ends)
        if path_T[start]
    ]
    words = _words(spans, len(path_T), vocabulary, hop_s, loudness_TE)
    return SPACE.join(word.word for word in words), words


def align(
    log_probs_TV: NDArray[np.float32],
    text: str,
    vocabulary: Vocabulary,
    hop_s: float,
    loudness_TE: Loudness | None = None,
) -> list[Word]:
    """The words of a text on the most probable path that spells it, with one space between words.

    It takes memory of T times the length of the text: align long recordings in parts, see
    `split_at_blanks`. Raises ValueError where the vocabulary lacks characters of the text, where there are
    too few frames for it, or so much of both that it would take more than a gigabyte, and for
    log-probabilities of another form.
    """
    check_log_probs(log_probs_TV, vocabulary)
    units = vocabulary.encode(SPACE.join(text.split()))
    if not units:
        return []
    repeats = sum(one == other for one, other in pairwise(units))
    if len(units) + repeats > len(log_probs_TV):
        raise ValueError(
            f"{len(units)} characters need at least {len(units) + repeats} frames, and there are "
            f"{len(log_probs_TV)}: the text does not belong to this audio, {text[:60]!r}"
        )
    if len(log_probs_TV) * (2 * len(units) + 1) > MOST_CELLS:
        raise ValueError(
            f"{len(log_probs_TV)} frames and {len(units)} characters are too much to align at once: do it in "
            "parts of some minutes"
        )
    spans = _forced(log_probs_TV, units)
    return _words(spans, len(log_probs_TV), vocabulary, hop_s, loudness_TE)


def split_at_blanks(log_probs_TV: NDArray[np.float32], most_frames: int) -> list[slice]:
    """Parts of at most `most_frames` frames, one after the other, that cover all; cut in pauses.

    A pause is a run of nearly certain blanks. Each cut is in the longest pause within reach, in its middle;
    more than 15 frames of silence on both sides of a cut count no more than 15, and of equals the last is
    taken, so that parts are long. Where nothing pauses, the cut is in the later half of the reach, at the
    frame that is most probably blank. Raises ValueError for fewer than 1 frame.
    """
    if most_frames < 1:
        raise ValueError(f"most_frames must be at least 1, not {most_frames}")
    blank_T = log_probs_TV[:, 0]
    depth_T = _depths(np.flatnonzero(blank_T < SURE), len(blank_T))
    cuts = [0]
    while len(blank_T) - cuts[-1] > most_frames:
        cuts.append(_best_cut(blank_T, depth_T, cuts[-1], cuts[-1] + most_frames))
    return [slice(start, stop) for start, stop in pairwise([*cuts, len(blank_T)]) if stop > start]


def check_log_probs(log_probs_TV: NDArray[np.float32], vocabulary: Vocabulary) -> None:
    """Raises ValueError for an array that is not (T, V), or that holds NaN."""
    units = len(vocabulary.symbols)
    if log_probs_TV.ndim != 2 or log_probs_TV.shape[1] != units:
        raise ValueError(
            f"log-probabilities must have the shape (frames, {units}), not {log_probs_TV.shape}: they must "
            "come from a head with this vocabulary"
        )
    if np.isnan(log_probs_TV).any():
        raise ValueError("log-probabilities hold NaN: the audio or the model is broken")


def _forced(log_probs_TV: NDArray[np.float32], units: Sequence[int]) -> list[Span]:
    import torch
    from torchaudio.functional import forced_align, merge_tokens

    log_probs_1TV = torch.from_numpy(np.maximum(log_probs_TV, np.float32(LEAST_LOG_PROB)))[None]
    path_1T, scores_1T = forced_align(log_probs_1TV, torch.tensor([units], dtype=torch.int32), blank=0)
    return [Span(s.token, s.start, s.end, s.score) for s in merge_tokens(path_1T[0], scores_1T[0])]


def _words(
    spans: Sequence[Span], frames: int, vocabulary: Vocabulary, hop_s: float, loudness_TE: Loudness | None
) -> list[Word]:
    """By the rule of the module."""
    space = vocabulary.symbols.index(SPACE) if SPACE in vocabulary.symbols else None
    groups = [list(group) for _, group in groupby(spans, key=lambda span: span.unit == space)]
    said = [number for number, group in enumerate(groups) if group[0].unit != space]
    pause = (PAUSE_S if loudness_TE is None or not loudness_TE.size else HEARD_PAUSE_S) / hop_s
    half = _step([groups[number] for number in said], hop_s) / 2
    starts = [max(min(first.start, first.middle - half), 0) for first, *_ in map(groups.__getitem__, said)]
    ends = [min(max(last.stop, last.middle + half), frames) for *_, last in map(groups.__getitem__, said)]
    for i, number in enumerate(said[:-1]):
        last, first = groups[number][-1], groups[number + 2][0]
        space_start, space_stop = groups[number + 1][0].start, groups[number + 1][-1].stop
        ends[i], starts[i + 1] = min(ends[i], space_stop), max(starts[i + 1], space_start)
        if first.start - last.stop <= pause or ends[i] > starts[i + 1]:
            middle = (space_start + space_stop) / 2
            ends[i] = starts[i + 1] = _quietest(loudness_TE, last, first, middle)
    words = []
    for number, start, end in zip(said, starts, ends, strict=True):
        score = math.exp(statistics.fmean(span.log_prob for span in groups[number]))
        text = vocabulary.decode(span.unit for span in groups[number])
        words.append(Word(text, start * hop_s, end * hop_s, min(score, 1.0)))
    return words


def _quietest(loudness_TE: Loudness | None, last: Span, first: Span, middle: float) -> float:
    """Where between two spikes it is quietest over about the length of a frame; of equals the place nearest
    to `middle`, which it is too where nothing is known."""
    if loudness_TE is None or not loudness_TE.size:
        return middle
    parts = loudness_TE.shape[1]
    squares_N = loudness_TE[last.start : first.stop].ravel().astype(np.float64)
    quiet_N = np.convolve(squares_N, np.ones(parts) / parts, "valid")
    places_N = last.start + (np.arange(len(quiet_N)) + parts / 2) / parts
    between_N = (places_N > last.middle) & (places_N < first.middle)
    if not between_N.any():
        return middle
    least = quiet_N[between_N].min() * 1.000001
    return float(min(places_N[between_N & (quiet_N <= least)], key=lambda place: abs(place - middle)))


def _step(words: Sequence[Sequence[Span]], hop_s: float) -> float:
    """Frames from one spike of a word to the next, as usual in these words."""
    steps = [later.middle - earlier.middle for word in words for earlier, later in pairwise(word)]
    return min(statistics.median(steps), LONGEST_STEP_S / hop_s) if steps else USUAL_STEP_S / hop_s


def _depths(speech: NDArray[np.intp], frames: int) -> NDArray[np.intp]:
    """For a cut before each frame: blank frames on the side of it that has fewer, at most PAUSE."""
    cuts = np.arange(frames)
    after = np.searchsorted(speech, cuts)
    edges = np.concatenate([[-PAUSE - 1], speech, [frames + PAUSE]])  # beyond the recording is silence
    depth_T: NDArray[np.intp] = np.minimum(cuts - edges[after] - 1, edges[after + 1] - cuts)
    return np.minimum(depth_T, PAUSE)


def _best_cut(blank_T: NDArray[np.float32], depth_T: NDArray[np.intp], begin: int, end: int) -> int:
    """The best cut after `begin`, where the part begins, and up to `end`."""
    cuts = np.arange(begin + 1, end + 1)
    depths = np.minimum(depth_T[cuts], cuts - begin)
    speech = np.flatnonzero(blank_T[begin:end] < SURE)
    silence = int(speech[0]) if len(speech) else end - begin
    # The rest of the pause of the cut before is not worth a part, unless it is long by itself.
    depths[:silence][depths[:silence] < PAUSE] = 0
    if depths.max() >= SHORT_PAUSE:
        return end - int(depths[::-1].argmax())
    half = begin + (end - begin + 1) // 2
    return half + int(blank_T[half : end + 1].argmax())

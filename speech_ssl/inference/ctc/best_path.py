"""CTC without search: the best path, forced alignment, and cuts of long recordings.

Log-probabilities are (T, V) float32, natural logarithms, one row per frame; unit 0 is the blank (Graves et
al. 2006). Frame t stands for the seconds from t * hop_s to (t + 1) * hop_s. Times of words are computed as in
`inference.ctc.word_times`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from speech_ssl.inference.ctc.word_times import Loudness, Span, Word, words_of
from speech_ssl.inference.units import Outputs, best_path, blanks, numbers
from speech_ssl.text import SPACE, Vocabulary
from speech_ssl.types import least_frames

LEAST_LOG_PROB = -200.0  # effectively impossible, and float32 sums stay exact enough

MOST_CELLS = 1_000_000_000
SURE = math.log(0.9)  # of a blank
PAUSE, SHORT_PAUSE = 15, 3  # sure blanks on both sides of a cut: the most that count; the fewest of a pause


def greedy(
    log_probs_TV: Outputs,
    vocabulary: Vocabulary,
    hop_s: float,
    loudness_TE: Loudness | None = None,
) -> tuple[str, list[Word]]:
    """The text of the best path, with one space between words, and its words.

    Times come from the path, which is the forced alignment of its own text. Raises ValueError for
    log-probabilities of the wrong shape, or with NaN.
    """
    check_log_probs(log_probs_TV, vocabulary)
    silent = vocabulary.silent
    path_T, best_T = best_path(log_probs_TV)
    best_T = np.maximum(best_T, LEAST_LOG_PROB)
    ends = [0, *(np.flatnonzero(np.diff(path_T)) + 1).tolist(), len(path_T)] if len(path_T) else []
    spans = [
        Span(int(path_T[start]), start, stop, float(best_T[start:stop].mean()))
        for start, stop in pairwise(ends)
        if int(path_T[start]) not in silent
    ]
    words = words_of(spans, len(path_T), vocabulary, hop_s, loudness_TE)
    return SPACE.join(word.word for word in words), words


def align(
    log_probs_TV: NDArray[np.float32],
    text: str,
    vocabulary: Vocabulary,
    hop_s: float,
    loudness_TE: Loudness | None = None,
) -> list[Word]:
    """The words of a text on the most probable path that spells it, with one space between words.

    Memory is proportional to T times the length of the text: align long recordings in parts, see
    `split_at_blanks`. Raises ValueError if the vocabulary lacks characters of the text, if there are too few
    frames for it, if the two are so long that it would take more than a gigabyte, and for log-probabilities
    of the wrong shape, or with NaN.
    """
    check_log_probs(log_probs_TV, vocabulary)
    units = vocabulary.encode(SPACE.join(text.split()))
    if not units:
        return []
    least = int(least_frames(np.array(units)))
    if least > len(log_probs_TV):
        raise ValueError(
            f"{len(units)} characters need at least {least} frames, and there are "
            f"{len(log_probs_TV)}: the text does not belong to this audio, {text[:60]!r}"
        )
    if len(log_probs_TV) * (2 * len(units) + 1) > MOST_CELLS:
        raise ValueError(
            f"{len(log_probs_TV)} frames and {len(units)} characters are too many to align at once: align "
            "parts of a few minutes"
        )
    spans = _forced(log_probs_TV, units)
    return words_of(spans, len(log_probs_TV), vocabulary, hop_s, loudness_TE)


def split_at_blanks(log_probs_TV: Outputs, most_frames: int) -> list[slice]:
    """Consecutive parts of at most `most_frames` frames that cover the recording, cut in pauses.

    A pause is a run of nearly certain blanks. Each cut is in the middle of the longest pause within reach.
    Silence of more than 15 frames on both sides of a cut counts as 15, and the last of equal cuts is taken,
    so that parts are long. Without a pause, the cut is in the second half of the reach, at the frame most
    probably blank. Raises ValueError for fewer than 1 frame.
    """
    if most_frames < 1:
        raise ValueError(f"most_frames must be at least 1, not {most_frames}")
    blank_T = blanks(log_probs_TV)
    depth_T = _depths(np.flatnonzero(blank_T < SURE), len(blank_T))
    cuts = [0]
    while len(blank_T) - cuts[-1] > most_frames:
        cuts.append(_best_cut(blank_T, depth_T, cuts[-1], cuts[-1] + most_frames))
    return [slice(start, stop) for start, stop in pairwise([*cuts, len(blank_T)]) if stop > start]


def check_log_probs(log_probs_TV: Outputs, vocabulary: Vocabulary) -> None:
    """Raises ValueError for an array that is not (T, V), or that holds NaN."""
    units = len(vocabulary.symbols)
    if len(log_probs_TV.shape) != 2 or log_probs_TV.shape[1] != units:
        raise ValueError(
            f"log-probabilities must have the shape (frames, {units}), not {log_probs_TV.shape}: they must "
            "come from a head with this vocabulary"
        )
    if np.isnan(numbers(log_probs_TV)).any():
        raise ValueError("log-probabilities hold NaN: the audio or the model is broken")


def _forced(log_probs_TV: NDArray[np.float32], units: Sequence[int]) -> list[Span]:
    import torch
    from torchaudio.functional import forced_align, merge_tokens

    # With a large vocabulary, only the text's own units are copied.
    columns = [0, *sorted(set(units))]
    places = {unit: place for place, unit in enumerate(columns)}
    log_probs_TC = np.maximum(log_probs_TV[:, columns], np.float32(LEAST_LOG_PROB))
    log_probs_1TC = torch.from_numpy(np.ascontiguousarray(log_probs_TC))[None]
    targets_1U = torch.tensor([[places[unit] for unit in units]], dtype=torch.int32)
    path_1T, scores_1T = forced_align(log_probs_1TC, targets_1U, blank=0)
    spans = merge_tokens(path_1T[0], scores_1T[0])
    return [Span(columns[span.token], span.start, span.end, span.score) for span in spans]


def _depths(speech: NDArray[np.intp], frames: int) -> NDArray[np.intp]:
    """For a cut before each frame: the blank frames on its shorter side, at most PAUSE."""
    cuts = np.arange(frames)
    after = np.searchsorted(speech, cuts)
    edges = np.concatenate([[-PAUSE - 1], speech, [frames + PAUSE]])  # silence beyond the ends
    depth_T: NDArray[np.intp] = np.minimum(cuts - edges[after] - 1, edges[after + 1] - cuts)
    return np.minimum(depth_T, PAUSE)


def _best_cut(blank_T: NDArray[np.float32], depth_T: NDArray[np.intp], begin: int, end: int) -> int:
    """The best cut after `begin`, where the part begins, and up to `end`."""
    cuts = np.arange(begin + 1, end + 1)
    depths = np.minimum(depth_T[cuts], cuts - begin)
    speech = np.flatnonzero(blank_T[begin:end] < SURE)
    silence = int(speech[0]) if len(speech) else end - begin
    # The rest of the previous cut's pause is not worth a part of its own, unless it is long itself.
    depths[:silence][depths[:silence] < PAUSE] = 0
    if depths.max() >= SHORT_PAUSE:
        return end - int(depths[::-1].argmax())
    half = begin + (end - begin + 1) // 2
    return half + int(blank_T[half : end + 1].argmax())

"""From a head's outputs for a whole clip, stitched from its windows, to transcripts and classifications."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from speech_ssl.inference.ctc.best_path import align, greedy, split_at_blanks
from speech_ssl.inference.ctc.word_times import Loudness, Word, of_every
from speech_ssl.inference.units import Outputs, best_path, dense
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec
from speech_ssl.text import SPACE, Vocabulary, normalize
from speech_ssl.types import AudioWarning, Features

T = TypeVar("T", NDArray[np.float32], Outputs)

PART_S = 30.0
"""Longer recordings are searched and aligned in parts, cut in pauses: the cost is not linear in length."""
SMOOTHING_S = 0.2
"""Width of the median filter over frame scores: events and gaps shorter than half of it are noise."""
LABELS, ROWS = 16, 1024
"""Processed at a time: for hundreds of labels over an hour, each copy would be a gigabyte."""


class Hypothesis(Protocol):
    @property
    def text(self) -> str: ...


TextDecoder = Callable[[NDArray[np.float32]], Hypothesis]
"""From log-probabilities of units (T, V) to a text, for example a beam search."""


@runtime_checkable
class PartDecoder(Protocol):
    """A decoder for recordings in parts; it takes the text before each part."""

    def part(self, log_probs_TV: NDArray[np.float32], *, before: str, last: bool) -> Hypothesis: ...


@dataclass(frozen=True, slots=True)
class Transcript:
    """warnings: problems of the clip's audio."""

    text: str
    words: list[Word]
    duration_s: float
    warnings: tuple[AudioWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """score: a probability."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """start, end: seconds. score: the mean probability over the event's frames."""

    label: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """labels: the best first. events: by start time. warnings: problems of the clip's audio."""

    labels: list[Label]
    events: list[TimedEvent]
    duration_s: float
    warnings: tuple[AudioWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Analysis:
    """All answers from one pass; None for a task that was not requested."""

    features: Features | None
    transcript: Transcript | None
    classification: Classification | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which labels to return: the `top_k` most probable (None: all). Events must reach `threshold`."""

    top_k: int | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be a probability above 0, not {self.threshold}")


@dataclass(frozen=True, slots=True)
class Clock:
    """Times of frames: frame t is centred at `t * hop_s + field_s / 2` in a clip of `duration_s`."""

    hop_s: float
    field_s: float
    duration_s: float

    def span(self, first: int, last: int, frames: int) -> tuple[float, float]:
        """Start and end of the frames from `first` to `last`; a clip's outer frames reach to its ends."""
        before = self.field_s / 2 - self.hop_s / 2
        start = 0.0 if first == 0 else first * self.hop_s + before
        end = self.duration_s if last == frames - 1 else (last + 1) * self.hop_s + before
        return start, min(end, self.duration_s)


def transcribe(
    log_probs_TV: Outputs,
    spec: CTCSpec,
    clock: Clock,
    decoder: TextDecoder | None,
    loudness_TE: Loudness | None = None,
) -> Transcript:
    """Transcribe by the decoder, or without one by the best path, with times of words. With a large
    vocabulary the decoder gets the most probable units of each frame, and one value for all others."""
    vocabulary = Vocabulary(spec.vocabulary, spec.spaced)
    log_probs_TV, clock, loudness_TE = _every(spec.stride, log_probs_TV, clock, loudness_TE)
    if decoder is None:
        text, words = greedy(log_probs_TV, vocabulary, clock.hop_s, loudness_TE)
    else:
        text, words = _decoded(log_probs_TV, vocabulary, clock.hop_s, decoder, loudness_TE)
    return Transcript(text, _shifted(words, clock), clock.duration_s)


def settled(log_probs_TV: Outputs, spec: CTCSpec) -> int:
    """The number of frames before the last space of the best path: later frames do not change their text."""
    if SPACE not in spec.vocabulary:
        return 0
    best_T, _ = best_path(log_probs_TV[:: spec.stride])
    spaces = np.flatnonzero(best_T == spec.vocabulary.index(SPACE))
    return int(spaces[-1]) * spec.stride if len(spaces) else 0


def align_text(
    log_probs_TV: NDArray[np.float32],
    text: str,
    spec: CTCSpec,
    clock: Clock,
    loudness_TE: Loudness | None = None,
) -> Transcript:
    """The times of the words of a known text. Raises ValueError if it does not fit into the clip."""
    text = _as_said(text, spec)
    log_probs_TV, clock, loudness_TE = _every(spec.stride, log_probs_TV, clock, loudness_TE)
    words = align(log_probs_TV, text, Vocabulary(spec.vocabulary, spec.spaced), clock.hop_s, loudness_TE)
    return Transcript(text, _shifted(words, clock), clock.duration_s)


def _as_said(text: str, spec: CTCSpec) -> str:
    return " ".join(text.split()) if spec.spaced else normalize(text)


def spelled(spec: CTCSpec, texts: Sequence[str]) -> tuple[CTCSpec, list[int]]:
    """A spec with the units needed to align these texts, and those units' indices, the blank first. Used with
    large vocabularies. Raises ValueError for texts that the vocabulary cannot spell."""
    vocabulary = Vocabulary(spec.vocabulary, spec.spaced)
    found = {unit for text in texts for unit in vocabulary.encode(_as_said(text, spec))}
    units = [0, *sorted(found or {1})]
    return replace(spec, vocabulary=tuple(spec.vocabulary[unit] for unit in units)), units


def _every(
    stride: int, log_probs_TV: T, clock: Clock, loudness_TE: Loudness | None
) -> tuple[T, Clock, Loudness | None]:
    """Every `stride`-th frame, and a clock with a hop `stride` times as long."""
    if stride == 1:
        return log_probs_TV, clock, loudness_TE
    loudness_TE = None if loudness_TE is None else of_every(stride, loudness_TE)
    return log_probs_TV[::stride], replace(clock, hop_s=stride * clock.hop_s), loudness_TE


def _shifted(words: list[Word], clock: Clock) -> list[Word]:
    """A frame begins half a hop before its middle, not at `t * hop_s`; with long hops the first one begins
    before the recording does."""
    middle_s = clock.field_s / 2 - clock.hop_s / 2
    return [
        replace(
            word,
            start=min(max(word.start + middle_s, 0.0), clock.duration_s),
            end=min(max(word.end + middle_s, 0.0), clock.duration_s),
        )
        for word in words
    ]


def _decoded(
    log_probs_TV: Outputs,
    vocabulary: Vocabulary,
    hop_s: float,
    decoder: TextDecoder,
    loudness_TE: Loudness | None,
) -> tuple[str, list[Word]]:
    between = SPACE if vocabulary.spaced or SPACE in vocabulary.symbols else ""
    said = ""
    words: list[Word] = []
    for part in split_at_blanks(log_probs_TV, max(round(PART_S / hop_s), 1)):
        part_TV = dense(log_probs_TV[part])
        if isinstance(decoder, PartDecoder):
            text = decoder.part(part_TV, before=said, last=part.stop == len(log_probs_TV)).text
        else:
            text = decoder(part_TV).text
        said = between.join(filter(None, (said, text)))
        offset_s = part.start * hop_s
        loudness = None if loudness_TE is None else loudness_TE[part]
        for word in align(part_TV, text, vocabulary, hop_s, loudness):
            words.append(replace(word, start=word.start + offset_s, end=word.end + offset_s))
    return said, words


def classify(
    outputs_TO: NDArray[np.float32], spec: EventsSpec, clock: Clock, choice: Choice
) -> Classification:
    """The clip's labels, and events where a label's smoothed frame scores reach the threshold. Unless
    `spec.frames_decide`, the clip's own score must reach it too."""
    top_k, threshold = choice.top_k, choice.threshold
    clip_K = probabilities(clip_logits(outputs_TO, spec), spec)
    frames_TK, _ = frame_scores(outputs_TO, spec, clock)
    order = np.argsort(-clip_K, kind="stable")
    labels = [Label(spec.labels[k], float(clip_K[k])) for k in order[:top_k]]
    heard = [k for k in range(len(spec.labels)) if spec.frames_decide or clip_K[k] >= threshold]
    events = []
    for k in heard:
        for first, last in _runs(_smoothed(frames_TK[:, k], clock.hop_s) >= threshold):
            start, end = clock.span(first, last, len(frames_TK))
            score = float(frames_TK[first : last + 1, k].mean())
            events.append(TimedEvent(spec.labels[k], start, end, score))
    return Classification(labels, sorted(events, key=lambda e: (e.start, e.end, e.label)), clock.duration_s)


def frame_scores(
    outputs_TO: NDArray[np.float32], spec: EventsSpec, clock: Clock
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Label probabilities for each frame (T, K), and the frame edges in seconds (T + 1,)."""
    frames_TK = probabilities(frame_logits(outputs_TO, spec), spec)
    count = len(frames_TK)
    edges_s = [clock.span(t, t, count)[0] for t in range(count)] + [clock.duration_s]
    return frames_TK, np.array(edges_s)


# In NumPy, since answering needs no PyTorch; `model.heads.head` has the same for training, on batches.


def frame_logits(outputs_TO: NDArray[np.float32], spec: EventsSpec) -> NDArray[np.float32]:
    """Logits of each label for each frame: (T, K)."""
    return outputs_TO[:, : len(spec.labels)]


def clip_logits(outputs_TO: NDArray[np.float32], spec: EventsSpec) -> NDArray[np.float32]:
    """Logits of each label for the whole clip: (K,)."""
    logits_TK = frame_logits(outputs_TO, spec)
    if spec.pooling == "max":
        return np.asarray(logits_TK.max(0))
    if spec.pooling == "mean":
        return np.asarray(logits_TK.mean(0))
    attention_TK = outputs_TO[:, len(spec.labels) :]
    logits_K = np.empty(len(spec.labels), dtype=np.float32)
    for first in range(0, len(logits_K), LABELS):
        some = slice(first, first + LABELS)
        logits_K[some] = (logits_TK[:, some] * _softmax(attention_TK[:, some], axis=0)).sum(0)
    return logits_K


def probabilities(logits_NK: NDArray[np.float32], spec: EventsSpec) -> NDArray[np.float32]:
    """Probabilities of labels; exclusive ones sum to 1."""
    if not spec.exclusive:
        return _sigmoid(logits_NK)
    rows_NK = logits_NK.reshape(-1, logits_NK.shape[-1])
    shares_NK = np.empty_like(rows_NK)
    for first in range(0, len(rows_NK), ROWS):
        some = slice(first, first + ROWS)
        shares_NK[some] = _softmax(rows_NK[some], axis=-1)
    return shares_NK.reshape(logits_NK.shape)


def _softmax(x: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Not scipy's, whose import would lengthen the start of the service's process by a sixth."""
    shares = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(shares / shares.sum(axis, keepdims=True))


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    y = np.negative(x)
    np.logaddexp(0, y, out=y)
    return np.exp(np.negative(y, out=y), out=y)


def _smoothed(frames_T: NDArray[np.float32], hop_s: float) -> NDArray[np.float32]:
    from scipy.ndimage import median_filter

    width = 2 * round(SMOOTHING_S / hop_s / 2) + 1
    # Mirrored at the ends: a single edge frame, repeated, would outweigh all its neighbours.
    return np.asarray(median_filter(frames_T, size=width, mode="reflect"))


def _runs(on_T: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and last index of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], on_T, [False])).astype(np.int8)))
    for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield first, stop - 1

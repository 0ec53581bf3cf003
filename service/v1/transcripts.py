"""Transcripts as they are read: words, segments, SubRip, WebVTT, and OpenAI's log-probabilities."""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from service.v1 import schemas_audio
from speech_ssl.inference.ctc.word_times import Word

PAUSE_S = 0.6
"""A pause so long ends a segment."""
MAX_CHARACTERS, MAX_S = 84, 7.0
"""Two lines of 42 characters, and how long a caption should stand, as broadcasters have it."""
LEAST_SCORE = 1e-9


@dataclass(frozen=True)
class Segment:
    """Words that follow each other, from `start` to `end` seconds."""

    words: Sequence[Word]

    @property
    def text(self) -> str:
        return " ".join(word.word for word in self.words)

    @property
    def start(self) -> float:
        return self.words[0].start

    @property
    def end(self) -> float:
        return self.words[-1].end


def segments(words: Sequence[Word]) -> list[Segment]:
    """Cut in pauses, and where a segment would be too long to read."""
    found: list[list[Word]] = []
    characters = 0
    for word in words:
        characters += 1 + len(word.word)
        if (
            not found
            or word.start - found[-1][-1].end >= PAUSE_S
            or word.end - found[-1][0].start > MAX_S
            or characters > MAX_CHARACTERS + 1
        ):
            found.append([])
            characters = 1 + len(word.word)
        found[-1].append(word)
    return [Segment(part) for part in found]


def words_of(words: Sequence[Word]) -> list[schemas_audio.Word]:
    return [schemas_audio.Word(**asdict(word)) for word in words]


def segments_of(words: Sequence[Word]) -> list[schemas_audio.Segment]:
    return [
        schemas_audio.Segment(
            id=number,
            start=part.start,
            end=part.end,
            text=part.text,
            avg_logprob=statistics.fmean(map(_logprob, part.words)),
            compression_ratio=len(text := part.text.encode()) / len(zlib.compress(text)),
        )
        for number, part in enumerate(segments(words))
    ]


def logprobs_of(words: Sequence[Word], *, begun: bool = False) -> list[schemas_audio.Logprob]:
    """One a word, with the space before it: joined, they are the text. begun: words come before these."""
    texts = [f" {word.word}" if index or begun else word.word for index, word in enumerate(words)]
    return [
        schemas_audio.Logprob(token=text, bytes=list(text.encode()), logprob=_logprob(word))
        for text, word in zip(texts, words, strict=True)
    ]


def _logprob(word: Word) -> float:
    """The mean of its units' log-probabilities, as `score` is their geometric mean."""
    return math.log(max(word.score, LEAST_SCORE))


def srt(words: Sequence[Word]) -> str:
    """SubRip."""
    return "".join(_cues(words, ",", numbered=True))


def vtt(words: Sequence[Word]) -> str:
    """WebVTT; the characters that it gives a meaning are escaped."""
    return "WEBVTT\n\n" + "".join(_cues(words, ".", numbered=False))


def _cues(words: Sequence[Word], comma: str, *, numbered: bool) -> Iterator[str]:
    for number, segment in enumerate(segments(words), start=1):
        text = segment.text
        if not numbered:
            text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        head = f"{number}\n" if numbered else ""
        yield f"{head}{_time(segment.start, comma)} --> {_time(segment.end, comma)}\n{text}\n\n"


def _time(seconds: float, comma: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{comma}{milliseconds % 1000:03}"

"""Transcripts as they are read: segments, SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from speech_ssl.inference.ctc.word_times import Word

PAUSE_S = 0.6
"""A pause so long ends a segment."""
MAX_CHARACTERS, MAX_S = 84, 7.0
"""Two lines of 42 characters, and how long a caption should stand, as broadcasters have it."""


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

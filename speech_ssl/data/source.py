"""Where the loader gets waves from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from speech_ssl import audio
from speech_ssl.data.manifest import Utterance
from speech_ssl.types import Waveform


class Source(Protocol):
    """Anything that reads a part of an utterance. It is pickled into the worker processes."""

    def read(self, utterance: Utterance, start_s: float, stop_s: float) -> Waveform:
        """The part between two times, in seconds from the utterance's start, or what there is of it.

        Raises ValueError (AudioError) or OSError where there is nothing to read.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """Reads the files named by the manifest. Parts are sought: a crop of a long file costs a crop (but
    see `audio.stream` for FFmpeg's formats)."""

    limits: audio.Limits = audio.Limits()

    def read(self, utterance: Utterance, start_s: float, stop_s: float) -> Waveform:
        offset = utterance.start or 0.0
        return audio.decode(
            utterance.path, limits=self.limits, start_s=offset + start_s, stop_s=offset + stop_s
        )

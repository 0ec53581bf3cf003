"""Where the loader reads waves from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from speech_ssl import audio
from speech_ssl.audio import Warn
from speech_ssl.data.manifest import Utterance
from speech_ssl.types import AudioWarning, Waveform

CONSTANT = 1e-6
"""Samples within this range count as equal: -120 dB. Resampling turns a constant offset into values that
differ by 1e-7."""
ROUNDING_S = 0.001
"""Rounding of times to whole samples, at any rate."""
PART_SLACK_S = 0.05
"""Tolerance for parts: their times are rounded, and codecs put some silence around the audio."""
FILE_SLACK_S = 0.5
"""Tolerance for whole files: manifests made by others round durations more coarsely."""


def cut_short(
    utterance: Utterance, got_s: float, *, start_s: float = 0.0, stop_s: float | None = None
) -> AudioWarning | None:
    """The warning for audio that ends before the manifest says: only `got_s` seconds of the utterance, or of
    its part between two times, were read. None if nothing is missing, within the tolerances above."""
    if stop_s is not None and got_s >= stop_s - start_s - ROUNDING_S:
        return None
    missing_s = utterance.duration_s - start_s - got_s
    if missing_s <= (FILE_SLACK_S if utterance.end is None else PART_SLACK_S):
        return None
    ended_s = (utterance.start or 0.0) + start_s + got_s
    said_s = utterance.duration_s if utterance.end is None else utterance.end
    message = f"{utterance.path}: the audio ends at {ended_s:.2f} s, the manifest says {said_s:.2f} s"
    return AudioWarning("truncated", message)


class Silent(ValueError):
    """All samples are equal: digital silence, or an offset."""


class Source(Protocol):
    """Anything that reads a part of an utterance. It is pickled into the worker processes."""

    def read(
        self, utterance: Utterance, start_s: float, stop_s: float, *, warn: Warn | None = None
    ) -> Waveform:
        """The part between two times, in seconds from the utterance's start, or as much of it as exists.
        `warn` is called with problems of the audio.

        Raises ValueError (AudioError) or OSError if there is nothing to read.
        """
        ...


@dataclass(frozen=True)
class FileSource:
    """Reads the files named by the manifest. It seeks, so that a crop of a long file costs no more than a
    crop (FFmpeg's formats are an exception, see `audio.stream`)."""

    limits: audio.Limits = audio.Limits()

    def read(
        self, utterance: Utterance, start_s: float, stop_s: float, *, warn: Warn | None = None
    ) -> Waveform:
        first_s, last_s = ((utterance.start or 0.0) + seconds for seconds in (start_s, stop_s))
        return audio.decode(utterance.path, limits=self.limits, start_s=first_s, stop_s=last_s, warn=warn)


@dataclass(frozen=True)
class Sounding:
    """Wraps a source and raises Silent for silent parts."""

    source: Source = FileSource()

    def read(
        self, utterance: Utterance, start_s: float, stop_s: float, *, warn: Warn | None = None
    ) -> Waveform:
        wave = self.source.read(utterance, start_s, stop_s, warn=warn)
        if len(wave) and np.ptp(wave) <= CONSTANT:
            raise Silent(f"{utterance.path}: silent (all samples are equal) from {start_s:g} to {stop_s:g} s")
        return wave

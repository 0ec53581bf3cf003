"""Where the loader gets waves from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from speech_ssl import audio
from speech_ssl.data.manifest import Utterance
from speech_ssl.types import AudioWarning, Waveform

PART_SLACK_S = 0.05
"""Times of parts are rounded, and codecs put some silence around the audio."""
FILE_SLACK_S = 0.5
"""Durations of whole files are rounded more coarsely, where others than us wrote the manifest."""


def cut_short(utterance: Utterance, wanted_s: float, got_s: float) -> AudioWarning | None:
    """What there is to tell where a file has less of an utterance than the manifest says."""
    slack_s = FILE_SLACK_S if utterance.end is None else PART_SLACK_S
    if got_s >= wanted_s - slack_s:
        return None
    where = "" if utterance.start is None else f" from {utterance.start:g} s on"
    return AudioWarning(
        "truncated", f"{utterance.path}: {got_s:.4g} s of audio{where}, the manifest says {wanted_s:.4g} s"
    )


CONSTANT = 1e-6
"""Samples within such a range are all equal: -120 dB. Resampling leaves 1e-7 of an offset."""


class Silent(ValueError):
    """All samples are equal: digital silence, or an offset."""


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


@dataclass(frozen=True)
class Sounding:
    """What is to be heard in another source. Raises Silent for a part in which nothing is."""

    source: Source = FileSource()

    def read(self, utterance: Utterance, start_s: float, stop_s: float) -> Waveform:
        wave = self.source.read(utterance, start_s, stop_s)
        if len(wave) and np.ptp(wave) <= CONSTANT:
            raise Silent(f"{utterance.path}: silent (all samples are equal) from {start_s:g} to {stop_s:g} s")
        return wave

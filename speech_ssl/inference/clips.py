"""Input clips, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from speech_ssl.audio import AudioError
from speech_ssl.types import Waveform

Clip: TypeAlias = Waveform | str | Path
"""A wave (S,) at 16 kHz, or the path of an audio file at any rate."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Prefix an error with the clip's name if it does not mention it."""
    try:
        yield
    except AudioError as error:
        if name in str(error):
            raise
        raise AudioError(error.code, f"{name}: {error}") from error


def checked_clips(clips: Sequence[Clip]) -> list[Clip]:
    if isinstance(clips, str | Path | np.ndarray):
        raise ValueError("encode takes a list of clips: encode([clip])")
    return [clip if isinstance(clip, str | Path) else _checked_wave(clip, i) for i, clip in enumerate(clips)]


def _checked_wave(wave: object, index: int) -> Waveform:
    """As float32, from any floats. Raises an error that names the remedy for anything else."""
    if not isinstance(wave, np.ndarray):
        raise ValueError(f"clip {index} must be a path or a numpy array, not {type(wave).__name__}")
    if not np.issubdtype(wave.dtype, np.floating):
        remedy = ": divide by 32768 for floats" if wave.dtype == np.int16 else ""
        raise AudioError("bad_samples", f"clip {index} must hold floats in [-1, 1], not {wave.dtype}{remedy}")
    if wave.ndim != 1:
        raise AudioError(
            "bad_samples",
            f"clip {index} must be one channel, of shape (samples,), not {wave.shape}: take the mean over "
            "the channels",
        )
    with np.errstate(over="ignore"):
        wave = np.ascontiguousarray(wave, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise AudioError("bad_samples", f"clip {index} holds NaN or infinite samples")
    return wave

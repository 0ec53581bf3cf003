"""Clips as they come in, checked; and what a model said of the last ones."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from speech_ssl.audio import AudioError
from speech_ssl.inference.window_output import WindowOutput
from speech_ssl.types import AudioWarning, Waveform

Clip: TypeAlias = Waveform | str | Path
"""A wave (S,) at 16 kHz, or the path of an audio file of any rate."""

REMEMBERED_S = 600.0
REMEMBERED_BYTES = 64 << 20

Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class ClipOutput:
    """What the model gave for a whole clip, and what is wrong with its audio."""

    passed: WindowOutput
    duration_s: float
    warnings: tuple[AudioWarning, ...] = ()


class Memory:
    """Outputs of heads for the clips seen last, up to `REMEMBERED_S` seconds and `REMEMBERED_BYTES` of them.
    Frames are not kept."""

    def __init__(self) -> None:
        self._wholes: OrderedDict[Key, ClipOutput] = OrderedDict()
        self._seconds, self.nbytes = 0.0, 0

    def get(self, keys: Sequence[Key | None]) -> list[ClipOutput] | None:
        """One for each key, if all are there."""
        found = [whole for key in keys if key is not None and (whole := self._wholes.get(key))]
        return found if len(found) == len(keys) else None

    def put(self, keys: Sequence[Key | None], wholes: Sequence[ClipOutput]) -> None:
        for key, whole in zip(keys, wholes, strict=True):
            kept = replace(whole, passed=whole.passed.without_frames())
            size = kept.passed.nbytes
            if (
                key is None
                or key in self._wholes
                or size > REMEMBERED_BYTES
                or kept.duration_s > REMEMBERED_S
            ):
                continue
            self._wholes[key] = kept
            self._seconds, self.nbytes = self._seconds + kept.duration_s, self.nbytes + size
            while self._seconds > REMEMBERED_S or self.nbytes > REMEMBERED_BYTES:
                _, oldest = self._wholes.popitem(last=False)
                self._seconds -= oldest.duration_s
                self.nbytes -= oldest.passed.nbytes


def key_of(clip: Clip) -> Key | None:
    """The same for the same samples, or the same file while nobody writes to it; None if unknown."""
    if isinstance(clip, np.ndarray):
        return len(clip), hashlib.blake2b(np.ascontiguousarray(clip).data, digest_size=16).digest()
    try:
        status = Path(clip).stat()
    except OSError:
        return None
    return str(Path(clip).absolute()), status.st_mtime_ns, status.st_size, status.st_ino


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the clip's name before an error that does not say it."""
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
    """float32, whatever floats came; every other mistake is named with its remedy."""
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

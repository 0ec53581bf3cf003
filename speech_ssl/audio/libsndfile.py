"""What libsndfile decodes."""

from __future__ import annotations

import numpy as np
import soundfile
from numpy.typing import NDArray

from speech_ssl.audio.errors import DAMAGED, AudioError, Flaw
from speech_ssl.audio.files import View

UNKNOWN = 1 << 40


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # it comes without types
    """Reads sequentially. Its parent seeks to the current position after every block: FLAC of unknown length
    fails at that, and MP3 decodes slightly differently."""

    def seekable(self) -> bool:
        return False

    @property
    def can_seek(self) -> bool:
        """Not the parent's answer for the format: GSM cannot."""
        return bool(super().seekable())


class SndfileReader:
    """One recording. frames: as its header claims; beyond 2^40 they are unknown.

    flaw: what was found to be wrong with it, so far. Raises AudioError.
    """

    def __init__(self, view: View, name: str) -> None:
        self._view, self._name = view, name
        self._file = self._opened()
        self.samplerate, self.channels, self.frames = (
            self._file.samplerate,
            self._file.channels,
            self._file.frames,
        )
        self.can_seek = self._file.can_seek
        self._exact = self._file.format == "FLAC" and self.frames < UNKNOWN
        self._at = 0
        self.flaw: Flaw | None = None

    def _opened(self) -> _SoundFile:
        self._view.seek(0)
        descriptor = self._view.descriptor()
        try:
            return _SoundFile(self._view if descriptor < 0 else descriptor, closefd=False)
        except (soundfile.SoundFileError, ValueError, TypeError) as error:
            raise AudioError("undecodable", f"{self._name}: cannot be decoded ({_reason(error)})") from error

    def close(self) -> None:
        self._file.close()

    def length_s(self, *, complete: bool) -> float | None:
        """Where audio is found at the end that the header claims. MP3 is not tried, for the library prints
        that it cannot begin there: its header was made true before, that of a WAV of it was not."""
        if self._file.subtype.startswith("MPEG"):
            return float(self.frames / self.samplerate) if self._file.format == "MP3" else None
        if not self.can_seek or not self.seek(self.frames - 1):
            return None
        last = self.read(out=np.empty((1, self.channels), dtype=np.float32))
        return float(self.frames / self.samplerate) if len(last) else None

    def seek(self, frame: int) -> bool:
        """Whether it succeeded; if not, it is at the beginning."""
        try:
            self._file.seek(frame)
        except soundfile.SoundFileError:
            self.close()
            self._file, self._at = self._opened(), 0
            return False
        self._at = frame
        return True

    def read(self, *, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The beginning of `out`, shape (frames, channels), filled with what comes next, up to damage."""
        if self.flaw is not None:
            return out[:0]
        out[:, 0] = np.nan
        try:
            read = np.asarray(self._file.read(out=out), dtype=np.float32)
        except soundfile.SoundFileError:  # it does not say how much it has read before
            self.flaw = DAMAGED
            missing = np.isnan(out[:, 0])
            read = out[: int(missing.argmax()) if missing.any() else len(out)]
        self._at += len(read)
        if len(read) < len(out) and self._exact and self._at < self.frames:
            self.flaw = DAMAGED
        return read


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    if "not a regular file" in text:  # said of MP3 without one whole frame
        return "no audio frames"
    return str(text).strip().rstrip(".")

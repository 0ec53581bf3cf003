"""What comes of a file, and what is told of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from speech_ssl.audio import AudioWarning, decode, duration


def heard(content: bytes, *, seen_without_decoding: bool = True) -> tuple[np.ndarray, list[str]]:
    """Its wave, and the codes of what is told; by its path as by its bytes.

    Its duration tells the same, but for what only decoding shows.
    """
    told: list[AudioWarning] = []
    wave = decode(content, warn=told.append)
    assert all("\n" not in warning.message and warning.message.startswith("audio: ") for warning in told)
    codes = [warning.code for warning in told]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        path.write_bytes(content)
        again: list[AudioWarning] = []
        np.testing.assert_array_equal(decode(path, warn=again.append), wave)
        assert [warning.code for warning in again] == codes
        if seen_without_decoding:
            told.clear()
            seconds = duration(path, warn=told.append)
            assert abs(seconds - len(wave) / 16_000) < 0.06
            codes_then = [warning.code for warning in told]
            assert {*codes_then} | {"opposite_phase"} == {*codes} | {"opposite_phase"}
    return wave, codes

"""What is wrong with audio that is used all the same: told, once, by a code and in one line."""

from __future__ import annotations

import numpy as np
import pytest

from speech_ssl.audio import AudioWarning, decode
from tests.sounds import encoded, noise


def told(content: bytes, start_s: float = 0.0, stop_s: float | None = None) -> list[AudioWarning]:
    warnings: list[AudioWarning] = []
    decode(content, start_s=start_s, stop_s=stop_s, warn=warnings.append)
    assert all("\n" not in warning.message for warning in warnings)
    return warnings


# --- opposite phase --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("leak", [0.0, 0.05])
def test_channels_in_opposite_phase_are_told(offset: float, leak: float) -> None:
    left = noise(3, 48_000)
    stereo = np.stack([left, -(1 - leak) * left], axis=1) + np.float32(offset)
    (warning,) = told(encoded(stereo, 48_000, subtype="FLOAT"))
    assert warning.code == "opposite_phase"
    assert warning.message.startswith("audio: ")
    decode(encoded(stereo, 48_000, subtype="FLOAT"))  # nobody has to listen


def test_other_channels_are_nothing_to_tell() -> None:
    rng, left = np.random.default_rng(1), noise(3)
    for channels in (
        np.stack([left, left], axis=1),
        np.stack([left, 0 * left], axis=1),
        np.stack([left, np.roll(left, 8)], axis=1),
        rng.uniform(-0.3, 0.3, (32_000, 16)),  # nothing in common
        np.zeros((32_000, 2)),
        np.full((32_000, 2), 0.25),
        np.full((32_000, 2), 0.25) * [1, -1],
        left,
    ):
        assert not told(encoded(channels.astype(np.float32), subtype="FLOAT"))

"""An artifact with an encoder so narrow that minutes of audio take a second: where values do not matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from speech_ssl.checkpoints.artifact import save_artifact
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.presets import tiny


def save_narrow(folder: Path) -> Path:
    """The tiny encoder's strides and window lengths, but 16 wide and one layer deep."""
    config = replace(tiny(), conv_channels=(8,) * 7, width=16, depth=1, heads=2, ffn_width=16)
    return save_artifact(Encoder(config), folder, name="narrow", training={}, licence="Apache-2.0")

"""A narrow encoder, with the chance that encoders have in training and without."""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.model import presets

ENCODER = presets.tiny().changed(
    frontend={"channels": (16,) * 7},
    depth=3,
    width=32,
    heads=2,
    ffn_width=64,
    positions={"kernel": 16},
    dropout=0.1,
    layer_drop=0.3,
)

QUIET = replace(ENCODER, dropout=0.0, layer_drop=0.0)

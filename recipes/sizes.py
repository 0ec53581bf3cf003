"""Audio a step and schedules that recipes share: what a method does not decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from speech_ssl.data.batching import DataConfig
from speech_ssl.training.config import TrainConfig

TINY_FRAMES = DataConfig(crop_s=6.0, batch_s=48.0, min_s=1.0, workers=1)
"""For two CPU cores, and methods that learn from frames: a few long rows, so that there is context."""
TINY_CLIPS = DataConfig(crop_s=2.0, batch_s=64.0, min_s=1.0, workers=1)
"""For methods that compare rows: many short ones."""
SMOKE = DataConfig(crop_s=1.0, batch_s=4.0, min_s=0.5, workers=1)
SMOKE_CLIPS = replace(SMOKE, batch_s=8.0)


def tiny_training(**changes: Any) -> TrainConfig:
    """Half an hour to some hours on two CPU cores, by method."""
    usual = TrainConfig(
        steps=7_000,
        peak_lr=1e-3,
        warmup=0.08,
        clip_norm=5.0,
        log_every=100,
        valid_every=500,
        save_every=500,
    )
    return replace(usual, **changes)


def smoke_training(**changes: Any) -> TrainConfig:
    """A few steps, in fp32, so that losses are the same on every machine."""
    usual = TrainConfig(steps=30, precision="fp32", peak_lr=1e-3, log_every=5, valid_every=10, save_every=5)
    return replace(usual, **changes)

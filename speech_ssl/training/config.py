"""The numbers of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Defaults: the optimizer of wav2vec 2.0 BASE (section 4.2)."""

    steps: int
    batches_per_step: int = 1
    """Batches whose gradients make one step, over all ranks and micro-steps: the run is the same on
    one GPU as on eight."""
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"

    peak_lr: float = 5e-4
    warmup: float = 0.08
    """Share of the steps in which the learning rate rises linearly from 0; then it falls linearly."""
    final_lr_scale: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float | None = None

    log_every: int = 100
    valid_every: int = 5_000
    save_every: int = 1_000
    watch_after: float = 0.02
    """Share of the steps before the collapse watch begins: codes need time to spread."""
    watch_patience: int = 3
    """Log lines of training in a row below a floor before it counts as a collapse."""
    on_collapse: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        if min(self.steps, self.batches_per_step, self.log_every, self.valid_every, self.save_every) < 1:
            raise ValueError(
                "steps, batches_per_step, log_every, valid_every and save_every must be at least 1"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), not {self.warmup}")

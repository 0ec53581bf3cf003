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
    """Share of the steps in which the learning rate rises linearly from 0; then it stays, then falls."""
    hold: float = 0.0
    """Share of the steps at the peak. With an exponential fall that is wav2vec 2.0's tri-stage schedule."""
    decay: Literal["linear", "exponential"] = "linear"
    final_lr_scale: float = 0.0
    """Learning rate of the last step, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float | None = None

    log_every: int = 100
    valid_every: int = 5_000
    valid_at_start: bool = False
    """Validate before the first step too: what a run starts from may be its best."""
    save_every: int = 1_000
    patience: int | None = None
    """Validations in a row without a new best after which the run ends; None: it takes all its steps."""
    probe_every: int = 1_000
    """Steps between two looks of the online probe, where the run was given one."""
    watch_after: float = 0.02
    """Share of the steps before the collapse watch begins: codes need time to spread."""
    watch_patience: int = 3
    """Log lines of training in a row below a floor before it counts as a collapse."""
    on_collapse: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        for name in ("steps", "batches_per_step", "log_every", "valid_every", "save_every", "probe_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, not {self.patience}")
        if not (0 <= self.warmup < 1 and 0 <= self.hold < 1 and self.warmup + self.hold < 1):
            raise ValueError(
                f"warmup and hold are shares of the steps, below 1 in all, not {self.warmup} and {self.hold}"
            )
        if self.decay == "exponential" and not self.final_lr_scale > 0:
            raise ValueError("an exponential fall needs a final_lr_scale above 0")

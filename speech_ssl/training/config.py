"""The numbers of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from speech_ssl.precision import Precision

COUNTS = (
    "steps",
    "batches_per_step",
    "log_every",
    "valid_every",
    "save_every",
    "probe_every",
    "watch_patience",
    "max_bad_steps",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Defaults: the optimizer of wav2vec 2.0 BASE (section 4.2), but without weight decay of vectors."""

    steps: int
    batches_per_step: int = 1
    """Batches per step, over all ranks and micro-steps: the run is the same on one GPU and on eight."""
    seed: int = 0
    precision: Precision = "auto"
    """Precision of the forward pass. "auto": what the first process's device computes natively
    (`precision.native`). A run keeps the precision that it began with. fp16 uses loss scaling."""

    peak_lr: float = 5e-4
    warmup: float = 0.08
    """Share of the steps in which the learning rate rises linearly from 0. It then stays constant for `hold`
    and falls."""
    hold: float = 0.0
    """Share of the steps at the peak. With an exponential decay this is wav2vec 2.0's tri-stage schedule."""
    decay: Literal["linear", "exponential"] = "linear"
    final_lr_scale: float = 0.0
    """Learning rate of the last step, as a share of the peak."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    decay_vectors: bool = False
    """Apply weight decay also to biases, norms and other vectors, as in fairseq."""
    clip_norm: float | None = None

    max_bad_steps: int = 5
    """The run ends after this many bad steps in a row: steps with a non-finite loss or gradients. A bad step
    is skipped and changes nothing; its audio is listed in `bad_steps.jsonl`."""

    log_every: int = 100
    valid_every: int = 5_000
    valid_at_start: bool = False
    """Validate before the first step too: the initial weights may be the best ones."""
    save_every: int = 1_000
    patience: int | None = None
    """The run ends after this many validations in a row without a new best; None: it takes all its steps."""
    probe_every: int = 1_000
    """Steps between runs of the online probe, if there is one."""
    watch_after: float = 0.02
    """Share of the steps before the collapse watch begins: the codes need time to spread."""
    watch_patience: int = 3
    """A collapse is reported after this many training log lines in a row below a floor."""
    on_collapse: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        self._check_counts()
        for name in ("peak_lr", "eps", "clip_norm"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, not {value}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a number of at least 0, not {self.weight_decay}")
        if not (0 <= self.warmup < 1 and 0 <= self.hold < 1 and self.warmup + self.hold < 1):
            raise ValueError(
                "warmup and hold are shares of the steps and must sum to less than 1, "
                f"not {self.warmup} and {self.hold}"
            )
        if self.decay == "exponential" and not self.final_lr_scale > 0:
            raise ValueError("an exponential decay needs a final_lr_scale above 0")
        if not 0 <= self.final_lr_scale < math.inf:
            raise ValueError(f"final_lr_scale must be a number of at least 0, not {self.final_lr_scale}")
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision must be one of {', '.join(get_args(Precision))}, not {self.precision!r}"
            )

    def _check_counts(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, not {self.patience}")

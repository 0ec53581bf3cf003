"""What happened since the last report, summed on the device and read only when it is wanted."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from speech_ssl.objectives.base import Objective
from speech_ssl.training.health import NonFinite
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import SAMPLE_RATE, Batch, LossSum


def summarize(sums: LossSum, objective: Objective) -> dict[str, float]:
    """Means over all targets, as the objective reports them."""
    count = sums.count.clamp(min=1)
    means = {name: metric / count for name, metric in sums.metrics.items()}
    return {"loss": float(sums.total / count), **objective.report(means)}


class OnItsWay:
    """A small tensor that travels to the host while the device goes on. Reading it waits for what was
    queued before it was made, not for what came after."""

    def __init__(self, value: Tensor) -> None:
        self._value, self._arrived = value.detach(), None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> Tensor:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value


class Meter:
    """Sums of losses and metrics, the gradient norm, and the audio that went through."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._norm: OnItsWay | None = None
        self._step = 0
        self._reset()

    def _reset(self) -> None:
        self._sums: LossSum | None = None
        self._samples = 0
        self._began = time.monotonic()

    def heard(self, batch: Batch) -> None:
        self._samples += int(batch.lengths_B.sum())

    def add(self, sums: LossSum, norm: Tensor, step: int) -> None:
        """norm: of the gradients, on all ranks the same, and not finite where the loss is not."""
        self._sums = sums if self._sums is None else self._sums + sums
        self._norm, self._step = OnItsWay(norm), step

    def check_finite(self) -> None:
        """Raises NonFinite if the last loss or gradient norm is not finite, on all ranks alike. Called
        before anything is logged or saved."""
        if self._norm is not None and not torch.isfinite(self._norm.read()):
            raise NonFinite(self._step)

    def flush(self, objective: Objective) -> dict[str, float]:
        """The numbers since the last call, over all ranks. Raises NonFinite as `check_finite`."""
        self.check_finite()
        assert self._sums is not None and self._norm is not None
        numbers = summarize(self._sums.map(self._ranks.all_sum), objective)
        samples = self._ranks.all_sum(torch.tensor(float(self._samples), device=self._ranks.device))
        seconds = time.monotonic() - self._began
        numbers["grad_norm"] = float(self._norm.read())
        numbers["audio_s_per_s"] = float(samples) / SAMPLE_RATE / seconds
        numbers["seconds"] = seconds
        self._reset()
        return numbers

"""Statistics since the last report, summed on the device and read only on demand."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from speech_ssl.objectives.base import Objective
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import SAMPLE_RATE, Batch, LossSum


def summarize(sums: LossSum, objective: Objective) -> dict[str, float]:
    """Means over all targets, in the form that the objective reports."""
    count = sums.count.clamp(min=1)
    means = {name: metric / count for name, metric in sums.metrics.items()}
    return {"loss": float(sums.total / count), **objective.report(means)}


class OnItsWay:
    """A small tensor copied to the host while the device continues. Reading it waits only for what was queued
    before the copy."""

    def __init__(self, value: Tensor) -> None:
        self._value, self._arrived = value.detach(), None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # On the tensor's own device: the current one may be another, with nothing to wait for.
            self._arrived.record(torch.cuda.current_stream(value.device))

    def read(self) -> Tensor:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value


class Meter:
    """Sums of losses and metrics, gradient norms, and seconds of audio. Skipped steps count only as audio."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._norm = torch.zeros((), device=ranks.device)
        self._reset()

    def _reset(self) -> None:
        self._sums: LossSum | None = None
        self._largest = torch.zeros((), device=self._ranks.device)
        self._taken = torch.zeros((), device=self._ranks.device)
        self._samples = 0
        self._began = time.monotonic()

    def heard(self, batch: Batch) -> None:
        self._samples += int(batch.lengths_B.sum())

    def add(self, sums: LossSum, norm: Tensor, skip: Tensor) -> None:
        """Adds a step. norm: of the gradients, equal on all ranks. skip: a bool, on the device."""
        sums = sums.map(lambda value: value.masked_fill(skip, 0))
        self._sums = sums if self._sums is None else self._sums + sums
        self._norm = torch.where(skip, self._norm, norm)
        self._largest = torch.where(skip, self._largest, torch.maximum(self._largest, norm))
        self._taken = self._taken + ~skip

    def flush(self, objective: Objective) -> dict[str, float]:
        """The numbers since the last call, over all ranks; loss and norms only if a step was taken."""
        assert self._sums is not None
        sums = self._sums.map(self._ranks.all_sum)
        samples = self._ranks.all_sum(torch.tensor(float(self._samples), device=self._ranks.device))
        numbers = {}
        if self._taken > 0:
            numbers = summarize(sums, objective)
            numbers["grad_norm"] = float(self._norm)
            numbers["grad_norm_max"] = float(self._largest)
        numbers["seconds"] = time.monotonic() - self._began
        numbers["audio_s_per_s"] = float(samples) / SAMPLE_RATE / numbers["seconds"]
        self._reset()
        return numbers

"""Adapters that fairseq2's Trainer needs: gangs, batches, loss sums, logs, checkpoint files.

Imported only by `fairseq2.py`; needs the extra `fairseq2`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from fairseq2.datasets import DataReader
from fairseq2.device import SupportsDeviceTransfer
from fairseq2.gang import FakeGang, Gangs, ProcessGroupGang, create_fsdp_gangs, create_parallel_gangs
from fairseq2.metrics.recorders import MetricRecorder
from torch import Tensor
from torch.distributed import group
from torcheval.metrics import Metric

from speech_ssl.objectives.base import Objective
from speech_ssl.training.checkpoint import RunState
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.health import Collapsed
from speech_ssl.training.logs import Logs
from speech_ssl.training.loop import Batches, LoaderState, look_for_collapse
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import SAMPLE_RATE, Batch, LossSum


@dataclass(kw_only=True, frozen=True)
class BorrowedGangs(Gangs):
    """Gangs over the process group that `joined_ranks` opened and will close."""

    def close(self) -> None:
        """Called by the Trainer at its end, when the group is still needed: does nothing."""


def gangs_of(ranks: Ranks, *, sharded: bool) -> BorrowedGangs:
    """sharded: across the processes of a machine, with a replica per machine (hybrid FSDP2)."""
    device = ranks.device
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    root = FakeGang(device) if ranks.world == 1 else ProcessGroupGang(group.WORLD, device)
    gangs = create_parallel_gangs(root)
    if sharded:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))
        gangs = create_fsdp_gangs(gangs, local if 1 < local < ranks.world else None)
    return BorrowedGangs(**{field.name: getattr(gangs, field.name) for field in fields(gangs)})


class Shipment(SupportsDeviceTransfer):
    """A batch that moves to a device in place, as the Trainer expects."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def to(self, device: torch.device, *, non_blocking: bool = False) -> None:
        self.batch = self.batch.to(device)


class Reader(DataReader[Shipment]):
    """This rank's batches, `num_accumulate` per step, endless. Its state holds what the Trainer does not save
    itself: the run's progress."""

    def __init__(self, batches: Batches, state: RunState, num_accumulate: int) -> None:
        self._batches, self._state, self._number = batches, state, num_accumulate
        self._stream: Generator[tuple[Batch, LoaderState], None, None] | None = None

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> list[Shipment]:
        if self._stream is None:
            self._stream = self._batches(self._state.loader)
        shipments = []
        for _ in range(self._number):
            batch, self._state.loader = next(self._stream)
            shipments.append(Shipment(batch))
        return shipments

    def reset(self) -> None:
        """Never called: the data has no end."""

    def close(self) -> None:
        """Ends the reading processes."""
        if self._stream is not None:
            self._stream.close()

    def state_dict(self) -> dict[str, object]:
        state = self._state
        return {"step": state.step, "loader": state.loader, "below": state.below}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self._state, name, value)

    @property
    def num_accumulate(self) -> int:
        return self._number


class LossSums(Metric[LossSum]):
    """LossSums and the number of their samples, summed over batches and ranks."""

    sums: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self._add_state("sums", {})

    @torch.no_grad()
    def update(self, loss: LossSum, samples: Tensor) -> LossSums:
        metrics = {f"metric.{name}": value for name, value in loss.metrics.items()}
        return self._add({"total": loss.total, "count": loss.count, "samples": samples, **metrics})

    def _add(self, sums: Mapping[str, Tensor]) -> LossSums:
        for name, value in sums.items():
            known = self.sums.get(name)
            value = value.detach().to(self.device)
            self.sums[name] = value.clone() if known is None else known + value
        return self

    @torch.no_grad()
    def merge_state(self, metrics: Iterable[LossSums]) -> LossSums:
        for metric in metrics:
            self._add(metric.sums)
        return self

    def compute(self) -> tuple[LossSum, float]:
        """The sums, and the seconds of audio."""
        metrics = {k.removeprefix("metric."): v for k, v in self.sums.items() if k.startswith("metric.")}
        seconds = float(self.sums["samples"]) / SAMPLE_RATE
        return LossSum(self.sums["total"], self.sums["count"], metrics), seconds


class IntoLogs(MetricRecorder):
    """Forwards what fairseq2 records to `log.jsonl`, TensorBoard and the terminal."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs

    def record_metric_values(
        self, category: str, values: Mapping[str, object], step_nr: int | None = None
    ) -> None:
        self._logs.numbers(category, step_nr or 0, numbers_in(values))

    def close(self) -> None:
        """Does nothing: whoever opened the logs closes them."""


class CollapseWatch(MetricRecorder):
    """Watches the recorded numbers for a collapse. Only the first rank records, so it cannot stop the Trainer
    itself; it keeps the reason in `collapsed`."""

    def __init__(self, objective: Objective, state: RunState, config: TrainConfig, logs: Logs) -> None:
        self._run = objective, state, config, logs
        self.collapsed: Collapsed | None = None

    def record_metric_values(
        self, category: str, values: Mapping[str, object], step_nr: int | None = None
    ) -> None:
        objective, state, config, logs = self._run
        try:
            look_for_collapse(category, objective, numbers_in(values), state, config, logs)
        except Collapsed as collapsed:
            self.collapsed = collapsed

    def close(self) -> None:
        """Does nothing."""


def numbers_in(values: Mapping[str, object]) -> dict[str, float]:
    """The scalars, with the first learning rate (ours are all equal) and the speed, under the names of our
    own loop."""
    numbers = {name: value[0] if isinstance(value, list) else value for name, value in values.items()}
    scalars = {
        name: float(value) for name, value in numbers.items() if isinstance(value, int | float | Tensor)
    }
    if "audio_s" in scalars and scalars.get("lapse_time"):
        scalars["seconds"] = scalars.pop("lapse_time")
        scalars["audio_s_per_s"] = scalars.pop("audio_s") / scalars["seconds"]
    return scalars

"""An objective so small that a training step takes a millisecond, with chance in it as the real ones have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from speech_ssl.objectives.base import Floor, Objective
from speech_ssl.training.loop import LoaderState
from speech_ssl.training.ranks import Ranks
from speech_ssl.types import Batch, LossSum

CPU = Ranks(0, 1, torch.device("cpu"))


class Guess(Objective):
    """Predict a wave's samples from its neighbours, some of them dropped. Targets: the valid samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(2, 8)
        self.out = nn.Linear(8, 1)
        self.unused = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        around_BS2 = torch.stack([batch.wave_BS.roll(1, 1), batch.wave_BS.roll(-1, 1)], -1)
        keep = torch.rand(around_BS2.shape, generator=generator) > 0.1
        hidden = F.dropout(self.hidden(around_BS2 * keep).tanh(), 0.1, self.training)
        error_BS = (self.out(hidden)[..., 0] - batch.wave_BS).square()
        valid_BS = torch.arange(error_BS.shape[1]) < batch.lengths_B[:, None]
        total, count = (error_BS * valid_BS).sum(), valid_BS.sum().float()
        return LossSum(total, count, {"energy": (batch.wave_BS.square() * valid_BS).sum()})


class Scripted(Guess):
    """`Guess` whose loss is multiplied by `factors[n]` in its n-th training batch, and whose reported
    `codes` are the number given."""

    def __init__(self, factors: Mapping[int, float] | None = None, codes: float = 100.0) -> None:
        super().__init__()
        self.factors, self.codes, self.batches = factors or {}, codes, 0

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        loss = super().forward(batch, generator=generator)
        factor = self.factors.get(self.batches, 1.0) if self.training else 1.0
        self.batches += self.training
        metrics = {**loss.metrics, "codes": loss.count * self.codes}
        return LossSum(loss.total * factor, loss.count, metrics)

    def floors(self) -> Mapping[str, Floor]:
        return {"codes": Floor(10.0, "use more codes")}


def wave(number: int) -> Batch:
    """Three rows of unequal length, other ones for each number."""
    generator = torch.Generator().manual_seed(number)
    lengths_B = torch.randint(20, 60 + 20 * (number % 3), (3,), generator=generator)
    wave_BS = torch.rand(3, int(lengths_B.max()), generator=generator).cumsum(1).sin()
    return Batch(wave_BS, lengths_B)


def waves(state: LoaderState | None) -> Iterator[tuple[Batch, LoaderState]]:
    number = 0 if state is None else state["number"]
    while True:
        number += 1
        yield wave(number), {"number": number}


class Crash(Exception):
    """The end of a process."""


class Poisoned:
    """`waves`, some of which have a sample that is no number. skip: numbers that are left out."""

    def __init__(
        self, values: Mapping[int, float], *, crash_at: int | None = None, skip: Set[int] = frozenset()
    ) -> None:
        self.values, self.crash_at, self.skip = values, crash_at, skip

    def __call__(self, state: LoaderState | None) -> Iterator[tuple[Batch, LoaderState]]:
        for batch, after in waves(state):
            number = after["number"]
            if number == self.crash_at:
                raise Crash
            if number in self.values:
                batch.wave_BS[0, 0] = self.values[number]
            if number not in self.skip:
                yield replace(batch, names=tuple(f"{number}.wav {row}" for row in range(3))), after


def shared_waves(rank: int, world: int) -> Iterator[tuple[Batch, LoaderState]]:
    for number, (batch, state) in enumerate(waves(None)):
        if number % world == rank:
            yield batch, state


def lines(folder: Path) -> list[str]:
    return (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()

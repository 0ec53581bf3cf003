"""Audio made up for the loader's tests, and comparisons of what the loader makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from speech_ssl.audio import AudioError
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.loader import Loader, LoaderState
from speech_ssl.data.manifest import Utterance
from speech_ssl.data.source import Sounding
from speech_ssl.types import Batch, Waveform

RATE = 16_000
CONFIG = DataConfig(crop_s=1.0, batch_s=4.0, min_s=0.25, workers=0)
START = LoaderState()
SILENT_S = 1.5


class Ramps:
    """Audio made up: every sample tells its utterance (thousands) and its time (seconds); in silent ones, for
    the first SILENT_S seconds its utterance alone."""

    def __init__(self, broken: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        self.broken, self.silent = frozenset(broken), frozenset(silent)

    def read(self, utterance: Utterance, start_s: float, stop_s: float, *, warn: object = None) -> Waveform:
        if utterance.id in self.broken:
            raise AudioError("undecodable", f"{utterance.path}: broken on purpose")
        times = np.arange(round(start_s * RATE), round(stop_s * RATE)) / RATE
        if utterance.id in self.silent:
            times = times.clip(min=SILENT_S)
        return (1_000 * int(utterance.id) + times).astype(np.float32)


def made_up(count: int, seed: int = 0) -> list[Utterance]:
    durations = np.random.default_rng(seed).uniform(0.3, 3.5, count)
    return [
        Utterance(path=Path(f"/none/{n}"), duration_s=float(d), id=str(n)) for n, d in enumerate(durations)
    ]


def loader(
    count: int = 30,
    config: DataConfig = CONFIG,
    broken: Sequence[str] = (),
    silent: Sequence[str] = (),
    seed: int = 5,
) -> Loader:
    return Loader(made_up(count), config, seed=seed, source=Sounding(Ramps(broken, silent)))


def same(one: Batch, two: Batch) -> bool:
    return torch.equal(one.wave_BS, two.wave_BS) and torch.equal(one.lengths_B, two.lengths_B)


def take(steps: Iterator[tuple[Batch, LoaderState]], count: int) -> list[tuple[Batch, LoaderState]]:
    return list(islice(steps, count))


def assert_same(one: Sequence[Batch], two: Sequence[Batch]) -> None:
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        assert same(left, right)

"""From the clips of a batch to its tensors: the part of the loader that runs in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from speech_ssl.data.manifest import Utterance
from speech_ssl.data.source import Silent, Source, cut_short
from speech_ssl.types import SAMPLE_RATE, AudioWarning, Batch, Waveform, pad

Targets: TypeAlias = Callable[[Utterance], Sequence[int]]
"""The target units of a whole utterance. Raises ValueError for one without: it is left out, like one that
cannot be read. Picklable, since workers call it."""


class Cut(NamedTuple):
    """A clip for a worker to read. It carries its utterance: workers hold no list of utterances."""

    number: int
    utterance: Utterance
    start_s: float
    stop_s: float


Request: TypeAlias = tuple[Cut, ...]


class LeftOut(NamedTuple):
    """A clip left out of its batch. silent: it can be read, but is silent."""

    clip: Cut
    reason: str
    silent: bool = False


class Told(NamedTuple):
    """A warning about the audio of a clip in a batch."""

    clip: Cut
    warning: AudioWarning


class Read(NamedTuple):
    """What a worker returns: the rows, possibly none, and the clips left out."""

    wave_BS: Tensor
    lengths_B: Tensor
    names: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    told: tuple[Told, ...]
    targets_BU: Tensor | None = None
    target_lengths_B: Tensor | None = None

    @property
    def batch(self) -> Batch:
        names = tuple(self.names)  # a list after memory was pinned
        return Batch(self.wave_BS, self.lengths_B, self.targets_BU, self.target_lengths_B, names)


class Reader(Dataset[Read]):
    """Reads the clips of a batch, and pads them."""

    def __init__(self, source: Source, min_samples: int, targets: Targets | None) -> None:
        self._source, self._min_samples, self._targets = source, min_samples, targets

    def __getitem__(self, request: Request) -> Read:
        waves: list[Waveform] = []
        names: list[str] = []
        units: list[Sequence[int]] = []
        left_out: list[LeftOut] = []
        told: list[Told] = []
        for clip in request:
            try:
                if self._targets is not None:
                    units.append(self._targets(clip.utterance))
                wave, warnings = self._wave(clip)
                waves.append(wave)
                told += [Told(clip, warning) for warning in warnings]
                names.append(f"{clip.utterance.path} {clip.start_s:.2f}-{clip.stop_s:.2f} s")
            except (ValueError, OSError) as error:
                left_out.append(LeftOut(clip, str(error), isinstance(error, Silent)))
            del units[len(waves) :]  # remove the targets of a wave that failed
        batch = collate(waves)
        targets = () if self._targets is None else collate_targets(units)
        return Read(batch.wave_BS, batch.lengths_B, tuple(names), tuple(left_out), tuple(told), *targets)

    def _wave(self, clip: Cut) -> tuple[Waveform, list[AudioWarning]]:
        warnings: list[AudioWarning] = []
        wave = self._source.read(clip.utterance, clip.start_s, clip.stop_s, warn=warnings.append)
        if len(wave) < self._min_samples:
            raise ValueError(
                f"{clip.utterance.path}: {len(wave)} samples from {clip.start_s:g} to {clip.stop_s:g} s, at "
                f"least {self._min_samples} are needed; the manifest says {clip.utterance.duration_s:g} s"
            )
        seconds = len(wave) / SAMPLE_RATE
        short = cut_short(clip.utterance, seconds, start_s=clip.start_s, stop_s=clip.stop_s)
        if short is not None and all(warning.code != "truncated" for warning in warnings):
            warnings.append(short)
        return wave, warnings


def collate(waves: Sequence[Waveform]) -> Batch:
    """Zero-pad to the longest."""
    padded_BS, lengths = pad(waves)
    return Batch(torch.from_numpy(padded_BS), torch.tensor(lengths, dtype=torch.int64))


def collate_targets(units: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Units padded with zeros (B, U) int64, and the number of units in each row (B,)."""
    lengths_B = torch.tensor([len(row) for row in units], dtype=torch.int64)
    targets_BU = torch.zeros(len(units), max(map(len, units), default=0), dtype=torch.int64)
    for row_U, row in zip(targets_BU, units, strict=True):
        row_U[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return targets_BU, lengths_B

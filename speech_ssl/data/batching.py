"""Which segments of audio share a batch: pure functions of lengths, a seed and an epoch.

A plan is made of arrays, not objects: an epoch of a million utterances takes tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from speech_ssl.types import SAMPLE_RATE

Samples: TypeAlias = NDArray[np.int64]

SPREAD = 0.1
"""Lengths within a batch differ by about this share: the padding that randomly chosen neighbours cost."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How utterances become batches.

    batch_s: most padded seconds of a batch.
    crop_s: longer utterances are cut into crops of this length; None: into parts of `batch_s`.
    min_s: shorter utterances are left out.
    max_batch_rows: most rows of a batch; None: as many as fit into `batch_s`.
    workers: processes that decode; 0: the training process decodes.
    """

    batch_s: float
    crop_s: float | None = None
    min_s: float = 0.4
    max_batch_rows: int | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.min_s <= self.longest_s <= self.batch_s < np.inf:
            raise ValueError(
                f"wanted 0 < min_s <= crop_s <= batch_s, "
                f"not min_s={self.min_s}, crop_s={self.crop_s}, batch_s={self.batch_s}"
            )
        if self.workers < 0 or (self.max_batch_rows is not None and self.max_batch_rows < 1):
            raise ValueError(
                f"workers={self.workers} must be at least 0, max_batch_rows={self.max_batch_rows} at least 1"
            )

    @property
    def longest_s(self) -> float:
        """Most seconds of a row."""
        return self.batch_s if self.crop_s is None else self.crop_s

    @property
    def min_samples(self) -> int:
        return max(_whole_samples(self.min_s), 1)


class Segment(NamedTuple):
    """A part of an utterance, in seconds from its start; whole samples at 16 kHz."""

    utterance: int
    start_s: float
    stop_s: float


BatchPlan: TypeAlias = tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class EpochPlan(Sequence[BatchPlan]):
    """The batches of an epoch, in order.

    The arrays have one entry per segment, in samples. Batch i is the segments from `edges[order[i]]` to
    `edges[order[i] + 1]`.
    """

    utterance: Samples
    start: Samples
    length: Samples
    edges: Samples
    order: Samples

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> BatchPlan: ...
    @overload
    def __getitem__(self, index: slice) -> list[BatchPlan]: ...
    def __getitem__(self, index: int | slice) -> BatchPlan | list[BatchPlan]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        batch = self.order[index]
        rows = slice(self.edges[batch], self.edges[batch + 1])
        starts, stops = self.start[rows], self.start[rows] + self.length[rows]
        return tuple(
            Segment(utterance, start / SAMPLE_RATE, stop / SAMPLE_RATE)
            for utterance, start, stop in zip(
                self.utterance[rows].tolist(), starts.tolist(), stops.tolist(), strict=True
            )
        )

    @property
    def seconds(self) -> float:
        """Seconds of audio, without the padding."""
        return float(self.length.sum()) / SAMPLE_RATE

    @property
    def padded_seconds(self) -> float:
        rows = np.diff(self.edges)
        longest = np.maximum.reduceat(self.length, self.edges[:-1]) if len(rows) else rows
        return float((rows * longest).sum()) / SAMPLE_RATE

    @property
    def padding(self) -> float:
        """The share of the padded seconds that is padding."""
        padded = self.padded_seconds
        return 1 - self.seconds / padded if padded else 0.0


def plan_epoch(durations_s: NDArray[np.float64], config: DataConfig, *, seed: int, epoch: int) -> EpochPlan:
    """Cover all the audio about once, in batches of segments of similar length, in random order.

    An utterance of d seconds gives `max(1, round(d / crop_s))` crops at a random phase, or itself if it
    is no longer than a crop. Utterances below `min_s` are left out.
    """
    rng = np.random.default_rng([seed, epoch])
    utterance, start, length = _segments(durations_s, config, rng)
    # Sorted by length, with noise that lets utterances of similar length change places.
    noisy = np.log(length) + SPREAD * rng.random(len(length))
    sort = np.argsort(noisy, kind="stable")
    edges = _edges(length[sort], config)
    return EpochPlan(
        utterance=utterance[sort],
        start=start[sort],
        length=length[sort],
        edges=edges,
        order=rng.permutation(len(edges) - 1),
    )


def plan_evaluation(durations_s: NDArray[np.float64], config: DataConfig) -> EpochPlan:
    """The first crop of every utterance of at least `min_s`, shortest first: the same plan each time."""
    samples = _samples(durations_s)
    utterance = np.flatnonzero(samples >= config.min_samples)
    length = np.minimum(samples[utterance], _crop_samples(config))
    sort = np.argsort(length, kind="stable")
    edges = _edges(length[sort], config)
    return EpochPlan(
        utterance=utterance[sort],
        start=np.zeros_like(utterance),
        length=length[sort],
        edges=edges,
        order=np.arange(len(edges) - 1),
    )


def _samples(durations_s: NDArray[np.float64]) -> Samples:
    return np.rint(np.asarray(durations_s, dtype=np.float64) * SAMPLE_RATE).astype(np.int64)


def _crop_samples(config: DataConfig) -> int:
    return max(_whole_samples(config.longest_s), config.min_samples)


def _whole_samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE + 1e-6)  # 2.01 s would lose one of its 32160 samples to rounding


def _segments(
    durations_s: NDArray[np.float64], config: DataConfig, rng: np.random.Generator
) -> tuple[Samples, Samples, Samples]:
    """Utterance, start and length of every segment of an epoch."""
    samples = _samples(durations_s)
    kept = np.flatnonzero(samples >= config.min_samples)
    total, crop = samples[kept], _crop_samples(config)
    pieces = np.maximum(np.rint(total / crop).astype(np.int64), 1)
    # The crops lie side by side. They overlap where otherwise less than a quarter of a crop would be free:
    # the phase may vary by that much, so that no utterance is always cut at the same places.
    wanted = np.minimum(crop, np.maximum(total - crop, 0)) // 4
    room = np.where(total > crop, np.maximum(total - pieces * crop, wanted), 0)
    step = (total - crop - room) / np.maximum(pieces - 1, 1)
    phase = np.minimum(np.floor(rng.random(len(kept)) * (room + 1)), room)
    first = np.cumsum(pieces) - pieces
    piece = np.arange(pieces.sum()) - np.repeat(first, pieces)
    start = np.repeat(phase, pieces) + np.floor(piece * np.repeat(step, pieces))
    length = np.repeat(np.minimum(total, crop), pieces)
    return np.repeat(kept, pieces), start.astype(np.int64), length


def _edges(lengths: Samples, config: DataConfig) -> Samples:
    """Where to cut a sequence of lengths into batches: each takes as many as fit, padded to its longest."""
    budget = _whole_samples(config.batch_s)
    most = config.max_batch_rows or len(lengths)
    edges = [0]
    longest = rows = 0
    for index, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if rows and (longest * (rows + 1) > budget or rows == most):
            edges.append(index)
            longest, rows = length, 0
        rows += 1
    if rows:
        edges.append(len(lengths))
    return np.asarray(edges, dtype=np.int64)

"""From utterances to an endless, resumable sequence of batches, the same on any number of ranks.

There is one global sequence of batches, running on from epoch to epoch. With W ranks, rank r takes at
its j-th step the batch number `j * W + r`: so one process that accumulates two batches and two ranks
read the same data, and a run can go on with another number of ranks.
"""

from __future__ import annotations

import atexit
import gc
import signal
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from speech_ssl.data.batching import DataConfig, EpochPlan, plan_epoch, plan_evaluation
from speech_ssl.data.manifest import Utterance
from speech_ssl.data.source import FileSource, Source
from speech_ssl.types import Batch, Waveform

OnFailure: TypeAlias = Callable[[Utterance, str], object]
"""Called with an utterance that cannot be used, and why."""

Targets: TypeAlias = Callable[[Utterance], Sequence[int]]
"""The units that a whole utterance is to be read as. Raises ValueError for one that has none: it is left out,
like one that cannot be read. Picklable, for workers call it."""

PREFETCH = 4
"""Batches read ahead by each worker."""

MOST_FAILING = 0.5
"""The share of unreadable utterances at which a run had better stop: the manifest is wrong, not a file."""


FILES = FileSource()


class DataError(ValueError):
    """There is nothing, or too little, to learn from. The message says what to look at."""


@dataclass(frozen=True, slots=True)
class LoaderState:
    """The next batch of the global sequence (of rank 0): batch `index` of epoch `epoch`."""

    epoch: int = 0
    index: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.index < 0:
            raise ValueError(f"a loader's state counts from 0, not epoch {self.epoch}, index {self.index}")

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, int]) -> LoaderState:
        return cls(epoch=int(state["epoch"]), index=int(state["index"]))


class _Clip(NamedTuple):
    """What a worker is asked to read: it holds no list of utterances, each request brings its own."""

    number: int
    utterance: Utterance
    start_s: float
    stop_s: float


_Request: TypeAlias = tuple[_Clip, ...]


class _Read(NamedTuple):
    """What comes back: perhaps no row at all, and the number and reason of each clip that failed."""

    wave_BS: Tensor
    lengths_B: Tensor
    names: Sequence[str]
    failures: tuple[tuple[int, str], ...]
    targets_BU: Tensor | None = None
    target_lengths_B: Tensor | None = None

    @property
    def batch(self) -> Batch:
        names = tuple(self.names)
        return Batch(self.wave_BS, self.lengths_B, self.targets_BU, self.target_lengths_B, names)


class Loader:
    """Reads training batches in worker processes.

    failures: id -> reason, of every utterance that could not be read so far by this rank. Each is also
        passed to `on_failure`, once.
    too_short: how many utterances are left out because the manifest gives them less than `min_s`.

    Raises DataError where no utterance is long enough.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        config: DataConfig,
        *,
        seed: int,
        source: Source = FILES,
        on_failure: OnFailure | None = None,
        targets: Targets | None = None,
    ) -> None:
        _check_whole(config, targets)
        self.utterances, self.config = utterances, config
        self.failures: dict[str, str] = {}
        self._failed: set[int] = set()
        self._on_failure = on_failure
        self._reader = _Reader(source, config.min_samples, targets)
        durations_s = _durations(utterances)
        # Two, for the workers are in the next epoch before the batches of this one are all used.
        self._plan = lru_cache(2)(lambda epoch: plan_epoch(durations_s, config, seed=seed, epoch=epoch))
        self.too_short = len(utterances) - len(np.unique(self._plan(0).utterance))
        if self.too_short == len(utterances):
            raise DataError(
                f"none of the {len(utterances)} utterances is as long as min_s, {config.min_s:g} s: "
                "look at the manifest's durations"
            )

    def iterate(
        self, state: LoaderState, *, rank: int = 0, world: int = 1
    ) -> Generator[tuple[Batch, LoaderState], None, None]:
        """This rank's batches from `state` on, endlessly, each with the state to go on from after it.

        The state is the same on all ranks, and the batches that follow from it are bit for bit those
        that would have followed. Closing the generator ends the worker processes. It raises DataError
        where most utterances turn out to be unreadable.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} ranks")
        stream = self._iterate(state, rank, world)
        _STREAMS.add(stream)
        return stream

    def _iterate(
        self, state: LoaderState, rank: int, world: int
    ) -> Generator[tuple[Batch, LoaderState], None, None]:
        turns = self._turns(state, rank, world)
        requests = (self._request(turn) for turn, _ in self._turns(state, rank, world))
        for read, (turn, after) in zip(self._reads(requests), turns, strict=True):
            yield self._batch(turn, read), after

    def _turns(self, state: LoaderState, rank: int, world: int) -> Iterator[tuple[LoaderState, LoaderState]]:
        """This rank's batch of each round, and where the next round begins."""
        while True:
            turn, state = self._advance(state, rank), self._advance(state, world)
            yield turn, state

    def _advance(self, state: LoaderState, batches: int) -> LoaderState:
        epoch, index = state.epoch, state.index + batches
        while index >= len(self._plan(epoch)):
            index -= len(self._plan(epoch))
            epoch += 1
        return LoaderState(epoch, index)

    def _request(self, turn: LoaderState) -> _Request:
        return _request(self.utterances, self._plan(turn.epoch), turn.index)

    def _reads(self, requests: Iterator[_Request]) -> Iterator[_Read]:
        """In the order of the requests."""
        workers = self.config.workers
        return iter(
            DataLoader(
                self._reader,
                batch_size=None,
                sampler=requests,
                num_workers=workers,
                prefetch_factor=PREFETCH if workers else None,
                collate_fn=_as_it_is,
                worker_init_fn=_prepare_worker,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # else it draws from the global one
            )
        )

    def _batch(self, turn: LoaderState, read: _Read) -> Batch:
        """The batch of a turn. Where nothing of it is readable, the next one of the epoch that is: all
        ranks need a batch in every round."""
        self._note(read.failures)
        batches = len(self._plan(turn.epoch))
        for ahead in range(1, batches):
            if len(read.lengths_B):
                break
            other = LoaderState(turn.epoch, (turn.index + ahead) % batches)
            read = self._reader[self._request(other)]
            self._note(read.failures)
        if not len(read.lengths_B):
            raise DataError(f"nothing in the manifest can be read. {self._examples()}")
        return read.batch

    def _note(self, failures: Sequence[tuple[int, str]]) -> None:
        for number, reason in failures:
            utterance = self.utterances[number]
            if number not in self._failed:
                self._failed.add(number)
                self.failures[utterance.id] = reason
                if self._on_failure is not None:
                    self._on_failure(utterance, reason)
        if failures and len(self._failed) > MOST_FAILING * len(self.utterances):
            raise DataError(
                f"{len(self._failed)} of {len(self.utterances)} utterances cannot be used. "
                + self._examples()
            )

    def _examples(self) -> str:
        first = list(self.failures.values())[:3]
        return f"Look at the manifest's paths and the files. For example: {'; '.join(first)}"


def evaluation(
    utterances: Sequence[Utterance],
    config: DataConfig,
    *,
    source: Source = FILES,
    on_failure: OnFailure | None = None,
    targets: Targets | None = None,
) -> Iterator[Batch]:
    """One pass without chance: the first crop of every utterance, shortest first, the same each time.

    Utterances that cannot be read are left out. Reads in threads, which a short pass starts sooner than
    processes.
    """
    _check_whole(config, targets)
    plan = plan_evaluation(_durations(utterances), config)
    requests = (_request(utterances, plan, number) for number in range(len(plan)))
    reader = _Reader(source, config.min_samples, targets)
    for read in _read_in_threads(reader, requests, max(config.workers, 1)):
        if on_failure is not None:
            for number, reason in read.failures:
                on_failure(utterances[number], reason)
        if len(read.lengths_B):
            yield read.batch


def _read_in_threads(reader: _Reader, requests: Iterator[_Request], threads: int) -> Iterator[_Read]:
    pending: deque[Future[_Read]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for request in requests:
            pending.append(pool.submit(reader.__getitem__, request))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def collate(waves: Sequence[Waveform]) -> Batch:
    """Zero-pad to the longest."""
    longest = max((len(wave) for wave in waves), default=0)
    padded_BS = np.zeros((len(waves), longest), dtype=np.float32)
    for row_S, wave in zip(padded_BS, waves, strict=True):
        row_S[: len(wave)] = wave
    lengths_B = torch.tensor([len(wave) for wave in waves], dtype=torch.int64)
    return Batch(torch.from_numpy(padded_BS), lengths_B)


def collate_targets(units: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Units padded with zeros (B, U) int64, and how many each row has (B,)."""
    lengths_B = torch.tensor([len(row) for row in units], dtype=torch.int64)
    targets_BU = torch.zeros(len(units), max(map(len, units), default=0), dtype=torch.int64)
    for row_U, row in zip(targets_BU, units, strict=True):
        row_U[: len(row)] = torch.tensor(row, dtype=torch.int64)
    return targets_BU, lengths_B


def _check_whole(config: DataConfig, targets: Targets | None) -> None:
    if targets is not None and config.crop_s is not None:
        raise ValueError("targets are those of whole utterances: crop_s must be None")


class _Reader(Dataset[_Read]):
    """The part that works in another process."""

    def __init__(self, source: Source, min_samples: int, targets: Targets | None) -> None:
        self._source, self._min_samples, self._targets = source, min_samples, targets

    def __getitem__(self, request: _Request) -> _Read:
        waves: list[Waveform] = []
        names: list[str] = []
        units: list[Sequence[int]] = []
        failures: list[tuple[int, str]] = []
        for clip in request:
            try:
                if self._targets is not None:
                    units.append(self._targets(clip.utterance))
                waves.append(self._wave(clip))
                names.append(f"{clip.utterance.path} {clip.start_s:.2f}-{clip.stop_s:.2f} s")
            except (ValueError, OSError) as error:
                failures.append((clip.number, str(error)))
            del units[len(waves) :]  # of a wave that failed
        batch = collate(waves)
        targets = () if self._targets is None else collate_targets(units)
        return _Read(batch.wave_BS, batch.lengths_B, names, tuple(failures), *targets)

    def _wave(self, clip: _Clip) -> Waveform:
        wave = self._source.read(clip.utterance, clip.start_s, clip.stop_s)
        if len(wave) < self._min_samples:
            raise ValueError(
                f"{clip.utterance.path}: {len(wave)} samples from {clip.start_s:g} to {clip.stop_s:g} s, at "
                f"least {self._min_samples} are needed; the manifest says {clip.utterance.duration_s:g} s"
            )
        return wave


def _durations(utterances: Sequence[Utterance]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.fromiter((utterance.duration_s for utterance in utterances), np.float64, len(utterances))


def _request(utterances: Sequence[Utterance], plan: EpochPlan, number: int) -> _Request:
    return tuple(_Clip(i, utterances[i], start_s, stop_s) for i, start_s, stop_s in plan[number])


_STREAMS: weakref.WeakSet[Generator[tuple[Batch, LoaderState], None, None]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    # They ignore SIGTERM, and multiprocessing would wait for ever for those of a generator that is still
    # referred to when the process exits, by the traceback of an error for one.
    for stream in list(_STREAMS):
        stream.close()


def _as_it_is(read: Any) -> Any:
    return read


def _prepare_worker(_: int) -> None:
    # Ctrl-C and SIGTERM reach the whole group: the run saves its state first, and needs its workers
    # as long as that takes. They end when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()  # what was inherited stays shared: a collection would write to every page of it
    torch.set_num_threads(1)

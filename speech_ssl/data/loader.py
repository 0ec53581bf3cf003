"""From utterances to an endless, resumable sequence of batches, the same on any number of ranks.

There is one global sequence of batches, across epochs. With W ranks, rank r takes batch number `j * W + r` at
its j-th step. So two ranks, and one process that accumulates two batches, read the same data, and a run can
resume on another number of ranks.
"""

from __future__ import annotations

import atexit
import gc
import signal
import sys
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader

from speech_ssl.data.batching import DataConfig, EpochPlan, plan_epoch, plan_evaluation
from speech_ssl.data.manifest import Utterance
from speech_ssl.data.reading import Cut, Read, Reader, Request, Targets
from speech_ssl.data.source import FileSource, Source
from speech_ssl.types import AudioWarning, Batch

OnFailure: TypeAlias = Callable[[Utterance, str], object]
"""Called with an utterance that cannot be used, and why."""

OnWarning: TypeAlias = Callable[[Utterance, AudioWarning], object]
"""Called with an utterance that is used, and what is wrong with its audio."""

PREFETCH = 4
"""Batches read ahead by each worker."""

MOST_FAILING = 0.5
"""A run stops when more than this share of the utterances is unreadable: then the manifest is wrong."""


FILES = FileSource()


class DataError(ValueError):
    """There is nothing, or too little, to train on. The message says where to look."""


@dataclass(frozen=True, slots=True)
class LoaderState:
    """The next batch of the global sequence (for rank 0): batch `index` of epoch `epoch`."""

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


class Loader:
    """Reads training batches in worker processes.

    failures: id -> reason, for every utterance that this rank has failed to read so far. Each is also passed
    to `on_failure`, once.
    crops, silent: the number of crops that this rank has read so far, and how many of them `Sounding` left
    out. An utterance's first silent crop is passed to `on_failure`; its other crops are used unless they are
    silent too.
    on_warning: called once for each warning code of an utterance that is used.
    too_short: the number of utterances left out because the manifest says that they are shorter than `min_s`.

    Raises DataError if no utterance is long enough.
    """

    def __init__(  # noqa: PLR0913 - each is a part of it
        self,
        utterances: Sequence[Utterance],
        config: DataConfig,
        *,
        seed: int,
        source: Source = FILES,
        on_failure: OnFailure | None = None,
        on_warning: OnWarning | None = None,
        targets: Targets | None = None,
    ) -> None:
        _check_whole(config, targets)
        self.utterances, self.config = utterances, config
        self.failures: dict[str, str] = {}
        self.crops = self.silent = 0
        self._failed: set[int] = set()
        self._told: dict[int, str] = {}
        self._warned: set[tuple[int, str]] = set()
        self._on_failure, self._on_warning = on_failure, on_warning
        self._reader = Reader(source, config.min_samples, targets)
        durations_s = _durations(utterances)
        # Two plans: the workers reach the next epoch before all batches of this one are used.
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
        """This rank's batches from `state` on, endless, each with the state to resume from after it.

        The state is the same on all ranks. Resuming from it gives the same batches, bit for bit, as an
        uninterrupted run. Closing the generator ends the worker processes. Raises DataError if most
        utterances turn out to be unreadable.
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
        """This rank's batch of each round, and the state at which the next round begins."""
        while True:
            turn, state = self._advance(state, rank), self._advance(state, world)
            yield turn, state

    def _advance(self, state: LoaderState, batches: int) -> LoaderState:
        epoch, index = state.epoch, state.index + batches
        while index >= len(self._plan(epoch)):
            index -= len(self._plan(epoch))
            epoch += 1
        return LoaderState(epoch, index)

    def _request(self, turn: LoaderState) -> Request:
        return _request(self.utterances, self._plan(turn.epoch), turn.index)

    def _reads(self, requests: Iterator[Request]) -> Iterator[Read]:
        """The clips read, in the order of the requests."""
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
                generator=torch.Generator(),  # otherwise it draws from the global one
            )
        )

    def _batch(self, turn: LoaderState, read: Read) -> Batch:
        """The batch of a turn or, if nothing in it can be used, the next usable one of the epoch: every rank
        needs a batch in every round."""
        self._note(read)
        batches = len(self._plan(turn.epoch))
        for ahead in range(1, batches):
            if len(read.lengths_B):
                break
            other = LoaderState(turn.epoch, (turn.index + ahead) % batches)
            read = self._reader[self._request(other)]
            self._note(read)
        if not len(read.lengths_B):
            raise DataError(f"nothing in the manifest can be used. {self._examples()}")
        return read.batch

    def _note(self, read: Read) -> None:
        self.crops += len(read.lengths_B) + len(read.left_out)
        for clip, reason, silent in read.left_out:
            self.silent += silent
            if not silent:
                self._failed.add(clip.number)
                self.failures[clip.utterance.id] = reason
            if clip.number not in self._told:
                self._told[clip.number] = reason
                if self._on_failure is not None:
                    self._on_failure(clip.utterance, reason)
        for clip, warning in read.told:
            if self._on_warning is not None and (clip.number, warning.code) not in self._warned:
                self._warned.add((clip.number, warning.code))
                self._on_warning(clip.utterance, warning)
        if read.left_out and len(self._failed) > MOST_FAILING * len(self.utterances):
            raise DataError(
                f"{len(self._failed)} of {len(self.utterances)} utterances cannot be used. "
                + self._examples()
            )

    def _examples(self) -> str:
        first = list(self._told.values())[:3]
        return f"Look at the manifest's paths and the files. For example: {'; '.join(first)}"


def evaluation(
    utterances: Sequence[Utterance],
    config: DataConfig,
    *,
    source: Source = FILES,
    on_failure: OnFailure | None = None,
    on_warning: OnWarning | None = None,
    targets: Targets | None = None,
) -> Iterator[Batch]:
    """One deterministic pass: the first crop of every utterance, shortest first.

    Utterances that cannot be read are left out. Reads in threads, which start faster than processes for a
    short pass.
    """
    _check_whole(config, targets)
    plan = plan_evaluation(_durations(utterances), config)
    requests = (_request(utterances, plan, number) for number in range(len(plan)))
    reader = Reader(source, config.min_samples, targets)
    for read in _read_in_threads(reader, requests, max(config.workers, 1)):
        if on_failure is not None:
            for clip, reason, _ in read.left_out:
                on_failure(clip.utterance, reason)
        if on_warning is not None:
            for clip, warning in read.told:
                on_warning(clip.utterance, warning)
        if len(read.lengths_B):
            yield read.batch


def _read_in_threads(reader: Reader, requests: Iterator[Request], threads: int) -> Iterator[Read]:
    pending: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for request in requests:
            pending.append(pool.submit(reader.__getitem__, request))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _check_whole(config: DataConfig, targets: Targets | None) -> None:
    if targets is not None and config.crop_s is not None:
        raise ValueError("targets belong to whole utterances: crop_s must be None")


def _durations(utterances: Sequence[Utterance]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.fromiter((utterance.duration_s for utterance in utterances), np.float64, len(utterances))


def _request(utterances: Sequence[Utterance], plan: EpochPlan, number: int) -> Request:
    return tuple(Cut(i, utterances[i], start_s, stop_s) for i, start_s, stop_s in plan[number])


_STREAMS: weakref.WeakSet[Generator[tuple[Batch, LoaderState], None, None]] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    # Workers ignore SIGTERM. Some belong to a generator that is still referenced when the process exits, for
    # example by an error's traceback; multiprocessing would wait for those for ever.
    for stream in list(_STREAMS):
        stream.close()


def _as_it_is(read: Any) -> Any:
    return read


def _prepare_worker(_: int) -> None:
    # Ctrl-C and SIGTERM reach the whole process group. The run saves its state first and needs its workers
    # until then; they end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()  # keeps inherited memory shared: a collection would write to every page of it
    torch.set_num_threads(1)
    sys.excepthook = _tell_but_the_end


def _tell_but_the_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The thread that hands tensors over (multiprocessing's resource sharer) would print a traceback where
    the run ended while one was on its way."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)

"""What waits and what runs it: requests' places in the queue, their items, lanes; the choice of a batch."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from service.batcher import Batcher

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class BatchLimits:
    """`max_queue_s`: seconds waiting and running together. `max_batch_s`: padded seconds of a batch, the
    longest item times their number. `max_padding`: the largest part of a batch that is padding."""

    max_queue_s: float
    max_batch_s: float
    max_padding: float = 0.25


@dataclass(frozen=True)
class BatchReport:
    """What happened to one batch: for metrics."""

    items: int
    seconds: float
    padded_s: float
    waited_s: Sequence[float]
    run_s: float


class Ticket(Generic[P, R]):
    """One request's place in the queue: a context manager that takes its work back at the end.

    Its methods may be called from any thread.
    """

    def __init__(self, batcher: Batcher[P, R], clock: float) -> None:
        self._batcher = batcher
        self.next_start = clock
        self.items = self.pending = 0
        self.submitted_s = 0.0
        self.finished_s = 0.0
        self.reserved_s = 0.0
        self.first_submit: float | None = None
        self.first_start: float | None = None
        self.last_finish: float | None = None

    def reserve(self, seconds: float) -> None:
        """Hold room for work still to be submitted. Raises Overloaded, TooLarge, Stopped."""
        self._batcher._reserve(self, seconds)

    def submit(self, payload: P, seconds: float) -> Future[R]:
        """Queue one item, out of the reserve as far as that goes. Raises Stopped."""
        return self._batcher._submit(self, payload, seconds)

    @property
    def waited_s(self) -> float:
        """From the first submission until its batch began."""
        return (self.first_start or 0.0) - (self.first_submit or 0.0)

    @property
    def ran_s(self) -> float:
        """From the beginning of the first batch to the end of the last."""
        return (self.last_finish or 0.0) - (self.first_start or 0.0)

    def __enter__(self) -> Ticket[P, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self._batcher._close(self)


@dataclass(eq=False)
class Item(Generic[P, R]):
    """A piece of work of known length. The lowest rank is served first: the virtual start time (to the
    millisecond), then how many items the request had before it, then the order of submission."""

    payload: P
    seconds: float
    rank: tuple[float, int, int]
    ticket: Ticket[P, R]
    future: Future[R]
    submitted_at: float
    lost: int = 0
    """Lanes that were lost while they ran it and nothing else."""

    def begin(self) -> bool:
        """False if nobody waits for it any more."""
        return self.future.running() or self.future.set_running_or_notify_cancel()


Run: TypeAlias = Callable[[Sequence[P]], Sequence[R]]


@dataclass(frozen=True, eq=False)
class Lane(Generic[P, R]):
    """What runs batches, one at a time. ready: whether it could begin now; whoever changes that calls
    `Batcher.wake`."""

    run: Run[P, R]
    ready: Callable[[], bool] = lambda: True


def choose(items: Sequence[Item[P, R]], limits: BatchLimits) -> list[Item[P, R]]:
    """The first by rank, then those nearest to it in length, within the limits."""
    head = min(items, key=lambda item: item.rank)
    batch, longest, total = [head], head.seconds, head.seconds
    others = [(abs(item.seconds - head.seconds), item.rank, item) for item in items if item is not head]
    heapq.heapify(others)
    while others and longest * (len(batch) + 1) <= limits.max_batch_s:
        item = heapq.heappop(others)[-1]
        padded = max(longest, item.seconds) * (len(batch) + 1)
        within = padded <= limits.max_batch_s
        if within and padded - total - item.seconds <= limits.max_padding * padded:
            batch.append(item)
            longest, total = max(longest, item.seconds), total + item.seconds
    return batch

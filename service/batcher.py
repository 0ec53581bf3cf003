"""Batches measured in seconds of audio, made out of what is waiting for whoever is free to run one.

A request holds a `Ticket` and submits windows to it. Each item has a virtual start time: the queue's
clock at the request's arrival, plus the seconds that the request has submitted before. The clock
advances by the seconds run, divided among the requests present (weighted fair queueing with equal
weights). So short requests are served in order of arrival, the later windows of a long one do not stand
in their way, and the long one still gets its share under a flood of short ones.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, cast

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")

LARGEST_USUAL = 0.05  # of the queue: no request is refused unseen while more than that is free


class Overloaded(Exception):
    """The queue is full. `retry_after_s` is when there should be room, at the speed measured so far."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


class TooLarge(ValueError):
    """More audio in one request than the whole queue holds: waiting would not help."""


class Stopped(Exception):
    """The batcher no longer runs."""


class Again(Exception):
    """Raised by `run` where its items may not be to blame: even a single one is run again, once."""


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


Run: TypeAlias = Callable[[Sequence[P]], Sequence[R]]


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


class Ticket(Generic[P, R]):
    """One request's place in the queue: a context manager that takes its work back at the end.

    Its methods may be called from any thread.
    """

    def __init__(self, batcher: Batcher[P, R], clock: float) -> None:
        self._batcher = batcher
        self.arrived = clock
        self.items = 0
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


class Batcher(Generic[P, R]):
    """Owns the queue, and a thread for each lane in which batches are run.

    `opening` is called first in each thread and returns its `run` (payloads -> as many results). `started`
    holds the outcome. When a batch fails, its halves are run again, down to the item that fails alone.
    """

    def __init__(
        self,
        opening: Callable[[], Run[P, R]],
        limits: BatchLimits,
        observe: Callable[[BatchReport], None] = lambda report: None,
        lanes: int = 1,
    ) -> None:
        self.limits = limits
        self.started: Future[None] = Future()
        self._opening = opening
        self._observe = observe
        self._changed = threading.Condition()
        self._waiting: list[Item[P, R]] = []
        self._tickets: set[Ticket[P, R]] = set()
        self._queued_s = 0.0
        self._clock = 0.0
        self._order = 0
        self._speed = self._usual_s = 0.0
        self._stopped = False
        self._opened = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher {lane}", daemon=True) for lane in range(lanes)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Refuse what waits, let the batch under way finish, and end the thread."""
        with self._changed:
            self._stopped = True
            refused, self._waiting = self._waiting, []
            self._queued_s -= sum(item.seconds for item in refused)
            self._changed.notify_all()
        for item in refused:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(Stopped())
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)

    @property
    def queued_s(self) -> float:
        """Seconds of audio that are reserved, waiting or running."""
        with self._changed:
            return abs(round(self._queued_s, 6))  # sums of floats

    @property
    def speed(self) -> float:
        """Seconds of audio run per second, a moving mean; 0 before the first batch."""
        return self._speed * len(self._threads)

    def check_room(self, seconds: float) -> None:
        """Raises Overloaded or Stopped if `seconds` more, or what requests usually bring, has no room now."""
        with self._changed:
            usual_s = min(self._usual_s, LARGEST_USUAL * self.limits.max_queue_s)
            self._check_room(max(seconds, usual_s))

    def ticket(self) -> Ticket[P, R]:
        with self._changed:
            ticket: Ticket[P, R] = Ticket(self, self._clock)
            self._tickets.add(ticket)
            return ticket

    def _check_room(self, seconds: float) -> None:
        if self._stopped:
            raise Stopped
        excess = self._queued_s + seconds - self.limits.max_queue_s
        if excess > 1e-6:  # sums of floats
            raise Overloaded(excess / (self.speed or 1.0))

    def _reserve(self, ticket: Ticket[P, R], seconds: float) -> None:
        with self._changed:
            if ticket not in self._tickets:
                raise Stopped
            whole = ticket.submitted_s + ticket.reserved_s + seconds
            if whole > self.limits.max_queue_s:
                raise TooLarge(f"at most {self.limits.max_queue_s:g} s of audio are taken in one request")
            self._check_room(seconds)
            ticket.reserved_s += seconds
            self._queued_s += seconds

    def _submit(self, ticket: Ticket[P, R], payload: P, seconds: float) -> Future[R]:
        if seconds > self.limits.max_batch_s:
            raise TooLarge(f"an item of {seconds:g} s, where a batch takes {self.limits.max_batch_s:g} s")
        now = time.monotonic()
        future: Future[R] = Future()
        with self._changed:
            if self._stopped or ticket not in self._tickets:
                raise Stopped
            rank = (round(ticket.arrived + ticket.submitted_s, 3), ticket.items, self._order)
            self._waiting.append(Item(payload, seconds, rank, ticket, future, now))
            self._order += 1
            ticket.items += 1
            ticket.submitted_s += seconds
            ticket.first_submit = ticket.first_submit or now
            taken = min(seconds, ticket.reserved_s)
            ticket.reserved_s -= taken
            self._queued_s += seconds - taken
            self._changed.notify_all()
        return future

    def _close(self, ticket: Ticket[P, R]) -> None:
        with self._changed:
            self._tickets.discard(ticket)
            if ticket.submitted_s:
                self._usual_s += (ticket.submitted_s - self._usual_s) / 20
            gone = [item for item in self._waiting if item.ticket is ticket]
            if gone:
                self._waiting = [item for item in self._waiting if item.ticket is not ticket]
            self._queued_s -= ticket.reserved_s + sum(item.seconds for item in gone)
            ticket.reserved_s = 0.0
        for item in gone:
            item.future.cancel()

    def _work(self) -> None:
        try:
            run = self._opening()
        except BaseException as error:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
                if not self.started.done():
                    self.started.set_exception(error)
            return
        with self._changed:
            self._opened += 1
            if self._opened == len(self._threads) and not self.started.done():
                self.started.set_result(None)
        while batch := self._next_batch():
            try:
                self._serve(run, batch)
            except BaseException as error:  # the next batch must be served all the same
                logger.exception("the batcher failed")
                for item in batch:
                    if not item.future.done():
                        self._finish(item, error=error)

    def _serve(self, run: Run[P, R], batch: Sequence[Item[P, R]]) -> None:
        began = time.monotonic()
        wanted = []
        for item in batch:
            item.ticket.first_start = item.ticket.first_start or began
            if item.future.set_running_or_notify_cancel():
                wanted.append(item)
            else:
                self._release(item)
        if not wanted:
            return
        self._run(run, wanted)
        seconds, ran = sum(item.seconds for item in wanted), max(time.monotonic() - began, 1e-6)
        with self._changed:
            self._speed = 0.8 * self._speed + 0.2 * seconds / ran if self._speed else seconds / ran
        padded = max(item.seconds for item in wanted) * len(wanted)
        waited = [began - item.submitted_at for item in wanted]
        self._observe(BatchReport(len(wanted), seconds, padded, waited, ran))

    def _next_batch(self) -> list[Item[P, R]]:
        """Waits for one; empty when stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return []
            batch = choose(self._waiting, self.limits)
            chosen = set(map(id, batch))
            self._waiting = [item for item in self._waiting if id(item) not in chosen]
            self._clock += sum(item.seconds for item in batch) / max(1, len(self._tickets))
            return batch

    def _run(self, run: Run[P, R], items: Sequence[Item[P, R]], *, again: bool = True) -> None:
        if not items:
            return
        try:
            results = run([item.payload for item in items])
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items")
        except Exception as error:
            if len(items) == 1:
                if again and isinstance(error, Again):
                    return self._run(run, items, again=False)
                return self._finish(items[0], error=error)
            logger.warning("a batch of %d failed and is split: %s", len(items), error)
            middle = len(items) // 2
            self._run(run, items[:middle])
            self._run(run, items[middle:])
            return
        for item, result in zip(items, results, strict=True):
            self._finish(item, result)

    def _finish(self, item: Item[P, R], result: R | None = None, error: BaseException | None = None) -> None:
        self._release(item)
        item.future.set_exception(error) if error else item.future.set_result(cast(R, result))

    def _release(self, item: Item[P, R]) -> None:
        with self._changed:
            self._queued_s -= item.seconds
            item.ticket.finished_s += item.seconds
            item.ticket.last_finish = time.monotonic()

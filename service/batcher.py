"""Batches measured in seconds of audio, made out of what is waiting for whoever is free to run one.

A request holds a `Ticket` and submits windows to it. Each item has a virtual start time: where the
request's item before it ends, or the queue's clock if that is later, so that nothing is saved up by having
been idle. The clock advances by the seconds run, divided among the requests that have something waiting or
running (weighted fair queueing with equal weights). So short requests are served in order of arrival, the
later windows of a long one do not stand in their way, and the long one still gets its share under a flood.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar, cast

from service.batches import BatchLimits, BatchReport, Item, Lane, Run, Ticket, choose

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")

LARGEST_USUAL = 0.05  # of the queue: no request is refused unseen while more than that is free
LOST = 2
"""Lanes that an item may take down alone; then it fails."""
STANDBY_S = 5.0
"""So long what a lane was lost with waits for one that is not the only one left."""


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
    """Raised by `run` whose lane was lost with these items, which may not be to blame: even a single one is
    run again, once."""


class Away(Exception):
    """Raised by `run` that cannot begin: its items are run by whoever can. It is not held against them."""


class Batcher(Generic[P, R]):
    """Owns the queue, and a thread for each lane in which batches are run.

    `opening` is called first in each thread and returns its lane (payloads -> as many results). `started`
    holds the outcome. When a batch fails, its halves are run again, down to the item that fails alone. A
    batch whose lane is lost goes back for any other to take.
    """

    def __init__(
        self,
        opening: Callable[[], Lane[P, R]],
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
        self._again: list[tuple[float, list[Item[P, R]]]] = []  # and since when
        self._tickets: set[Ticket[P, R]] = set()
        self._queued_s = 0.0
        self._clock = 0.0
        self._order = 0
        self._speed = self._usual_s = 0.0
        self._stopped = False
        self._lanes: list[Lane[P, R]] = []
        self._threads = [
            threading.Thread(target=self._work, name=f"batcher {lane}", daemon=True) for lane in range(lanes)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Refuse what waits, let the batches under way finish, for so long in all, and end the threads."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self.refuse(Stopped)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def refuse(self, error: Callable[[], Exception]) -> None:
        """What waits fails of it."""
        with self._changed:
            refused = [*self._waiting, *(item for _, items in self._again for item in items)]
            self._waiting, self._again = [], []
            self._queued_s -= sum(item.seconds for item in refused)
        for item in refused:
            if item.begin():
                item.future.set_exception(error())

    def wake(self) -> None:
        """For whoever knows that a lane has become ready."""
        with self._changed:
            self._changed.notify_all()

    @property
    def queued_s(self) -> float:
        """Seconds of audio that are reserved, waiting or running."""
        with self._changed:
            return abs(round(self._queued_s, 6))  # sums of floats

    @property
    def speed(self) -> float:
        """Seconds of audio run per second, a moving mean; 0 before the first batch."""
        return self._speed * max(1, sum(lane.ready() for lane in self._lanes))

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
            start = max(self._clock, ticket.next_start)
            rank = (round(start, 3), ticket.items, self._order)
            self._waiting.append(Item(payload, seconds, rank, ticket, future, now))
            self._order, ticket.next_start = self._order + 1, start + seconds
            ticket.items, ticket.pending = ticket.items + 1, ticket.pending + 1
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
            for _, items in self._again:
                gone += [item for item in items if item.ticket is ticket]
                items[:] = [item for item in items if item.ticket is not ticket]
            self._again = [(since, items) for since, items in self._again if items]
            self._queued_s -= ticket.reserved_s + sum(item.seconds for item in gone)
            ticket.reserved_s = 0.0
        for item in gone:
            if not item.future.cancel():  # it has been run before
                item.future.set_exception(Stopped())

    def _work(self) -> None:
        try:
            lane = self._opening()
        except BaseException as error:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
                if not self.started.done():
                    self.started.set_exception(error)
            return
        with self._changed:
            self._lanes.append(lane)
            if len(self._lanes) == len(self._threads) and not self.started.done():
                self.started.set_result(None)
        while batch := self._next_batch(lane):
            try:
                self._serve(lane.run, batch)
            except Exception:  # of who observes: the next batch must be served all the same
                logger.exception("the batcher failed")

    def _serve(self, run: Run[P, R], batch: Sequence[Item[P, R]]) -> None:
        began = time.monotonic()
        wanted = []
        for item in batch:
            item.ticket.first_start = item.ticket.first_start or began
            if item.begin():
                wanted.append(item)
            else:
                self._release(item)
        if not wanted:
            return
        if done := self._run(run, wanted):
            self._report(done, began)

    def _report(self, done: Sequence[Item[P, R]], began: float) -> None:
        seconds, ran = sum(item.seconds for item in done), max(time.monotonic() - began, 1e-6)
        with self._changed:
            self._speed = 0.8 * self._speed + 0.2 * seconds / ran if self._speed else seconds / ran
        padded = max(item.seconds for item in done) * len(done)
        waited = [began - item.submitted_at for item in done]
        self._observe(BatchReport(len(done), seconds, padded, waited, ran))

    def _next_batch(self, lane: Lane[P, R]) -> list[Item[P, R]]:
        """Waits for one, and for the lane; empty when stopped."""
        with self._changed:
            while not self._stopped:
                if lane.ready() and (batch := self._taken_again(lane) or self._taken()):
                    return batch
                self._changed.wait(STANDBY_S if self._again else None)
            return []

    def _taken(self) -> list[Item[P, R]]:
        """The next of those that wait."""
        if not self._waiting:
            return []
        batch = choose(self._waiting, self.limits)
        chosen = set(map(id, batch))
        self._waiting = [item for item in self._waiting if id(item) not in chosen]
        busy = sum(1 for ticket in self._tickets if ticket.pending)
        self._clock += sum(item.seconds for item in batch) / max(1, busy)
        return batch

    def _taken_again(self, lane: Lane[P, R]) -> list[Item[P, R]]:
        """The first of what a lane was lost with: not by the only one that is left, as far as that can be, so
        that one bad item does not take all of them down."""
        if not self._again:
            return []
        others = [other for other in self._lanes if other is not lane]
        overdue = time.monotonic() >= self._again[0][0] + STANDBY_S
        if not others or overdue or any(other.ready() for other in others):
            return self._again.pop(0)[1]
        return []

    def _run(self, run: Run[P, R], items: Sequence[Item[P, R]]) -> Sequence[Item[P, R]]:
        """Those that are finished; the others have been put back."""
        try:
            results = run([item.payload for item in items])
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items")
        except Away:
            return self._put_back(items, since=-math.inf)
        except Again as error:
            return self._lost_with(items, error)
        except BaseException as error:
            if len(items) == 1 or not isinstance(error, Exception):
                return self._fail(items, error)
            return [item for half in _halves(items, error) for item in self._run(run, half)]
        for item, result in zip(items, results, strict=True):
            self._finish(item, result)
        return items

    def _lost_with(self, items: Sequence[Item[P, R]], error: Again) -> Sequence[Item[P, R]]:
        now = time.monotonic()
        if len(items) > 1:
            return [item for half in _halves(items, error) for item in self._put_back(half, now)]
        items[0].lost += 1
        return self._put_back(items, now) if items[0].lost < LOST else self._fail(items, error)

    def _put_back(self, items: Sequence[Item[P, R]], since: float) -> Sequence[Item[P, R]]:
        """For the next lane that is ready, before all that wait. Those nobody waits for are left out, and
        finished: they are returned."""
        with self._changed:
            kept = [] if self._stopped else [item for item in items if item.ticket in self._tickets]
            if kept:
                self._again.append((since, kept))
                self._changed.notify_all()
            left = [item for item in items if item not in kept]
        return self._fail(left, Stopped())

    def _fail(self, items: Sequence[Item[P, R]], error: BaseException) -> Sequence[Item[P, R]]:
        for item in items:
            self._finish(item, error=error)
        return items

    def _finish(self, item: Item[P, R], result: R | None = None, error: BaseException | None = None) -> None:
        self._release(item)
        item.future.set_exception(error) if error else item.future.set_result(cast(R, result))

    def _release(self, item: Item[P, R]) -> None:
        with self._changed:
            self._queued_s -= item.seconds
            item.ticket.finished_s += item.seconds
            item.ticket.pending -= 1
            item.ticket.last_finish = time.monotonic()


def _halves(items: Sequence[Item[P, R]], error: Exception) -> list[Sequence[Item[P, R]]]:
    logger.warning("a batch of %d failed and is split: %s", len(items), error)
    middle = len(items) // 2
    return [items[:middle], items[middle:]]

"""What the batcher promises, tried on made-up work."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher, Overloaded, Stopped, TooLarge
from service.batches import BatchLimits, BatchReport, Lane, Ticket
from tests.service.support import until

seconds = st.integers(1, 40).map(lambda quarters: quarters / 4)


@dataclass
class Worker:
    """Doubles numbers, remembers every batch, can be held, and chokes on what it is told to."""

    poison: set[int] = field(default_factory=set)
    slowness: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    done: Counter[int] = field(default_factory=Counter)

    def __call__(self, payloads: list[int]) -> list[int]:
        self.entered.set()
        assert self.gate.wait(60)
        self.batches.append(list(payloads))
        time.sleep(self.slowness)
        if self.poison.intersection(payloads):
            raise RuntimeError("choked")
        self.done.update(payloads)
        return [2 * payload for payload in payloads]


def started(worker: Worker, *, queue_s: float = 1e6, batch_s: float = 10.0, padding: float = 0.25, **more):
    batcher: Batcher[int, int] = Batcher(lambda: Lane(worker), BatchLimits(queue_s, batch_s, padding), **more)
    batcher.start()
    batcher.started.result(30)
    return batcher


def held(worker: Worker, batcher: Batcher[int, int]):
    """Something is in the worker, so that all that follows has to wait."""
    ticket = batcher.ticket()
    ticket.submit(-1, 0.25)
    assert worker.entered.wait(30)
    return ticket


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.lists(seconds, min_size=1, max_size=5), min_size=1, max_size=8),
    leaving=st.sets(st.integers(0, 7)),
    poison=st.sets(st.integers(0, 40), max_size=3),
)
def test_nothing_is_lost_and_nothing_answered_twice(requests, leaving, poison):
    worker = Worker(poison=poison)
    reports: list[BatchReport] = []
    batcher = started(worker, observe=reports.append)
    first = held(worker, batcher)
    tickets, futures, number = [], {}, 0
    for lengths in requests:
        ticket = batcher.ticket()
        tickets.append(ticket)
        for length in lengths:
            futures[number] = (len(tickets) - 1, ticket.submit(number, length))
            number += 1
    for index in leaving & set(range(len(tickets))):
        tickets[index].__exit__()
    worker.gate.set()
    for payload, (request, future) in futures.items():
        if request in leaving:
            assert future.cancelled()
        elif payload in poison:
            with pytest.raises(RuntimeError, match="choked"):
                future.result(30)
        else:
            assert future.result(30) == 2 * payload
    for ticket in (first, *tickets):
        ticket.__exit__()
    batcher.stop(30)
    answered = {payload for payload, (request, _) in futures.items() if request not in leaving} - poison
    assert worker.done == Counter({-1, *answered})
    assert batcher.queued_s == pytest.approx(0)
    assert all(report.padded_s <= 10.0 for report in reports)
    assert sum(report.items for report in reports) == len(answered) + 1 + sum(
        request not in leaving for payload, (request, _) in futures.items() if payload in poison
    )


def test_equal_requests_are_served_in_order_of_arrival():
    worker = Worker()
    batcher = started(worker, batch_s=1.0)
    held(worker, batcher)
    futures = [batcher.ticket().submit(number, 1.0) for number in range(20)]
    worker.gate.set()
    assert [future.result(30) for future in futures] == list(range(0, 40, 2))
    assert worker.batches == [[-1], *([number] for number in range(20))]
    batcher.stop(30)


def test_a_short_clip_does_not_wait_for_a_long_file():
    worker = Worker()
    batcher = started(worker, batch_s=40.0)
    held(worker, batcher)
    long = batcher.ticket()
    hour = [long.submit(number, 20.0) for number in range(180)]
    worker.gate.set()
    hour[10].result(30)
    worker.gate.clear()
    ran = len(worker.batches)
    short = batcher.ticket().submit(1000, 1.0)
    worker.gate.set()
    short.result(30)
    between = worker.batches[ran : worker.batches.index([1000])]
    assert len(between) <= 2  # what was under way, and at most one more
    assert hour[-1].result(30) == 358
    batcher.stop(30)


def test_a_long_file_gets_on_under_a_flood_of_short_clips():
    """Three short clips are waiting at any time: each that runs is replaced before the next choice."""
    ran = []

    def another():
        ticket = batcher.ticket()
        ticket.submit(ticket, 2.0)

    def run(payloads):
        ran.append(payloads)
        for payload in payloads:
            if isinstance(payload, Ticket) and len(ran) < 2000:
                payload.__exit__()
                another()
        return payloads

    batcher = Batcher(lambda: Lane(run), BatchLimits(1e6, 20.0))
    long = batcher.ticket()
    windows = [long.submit(number, 20.0) for number in range(5)]
    for _ in range(3):
        another()
    batcher.start()
    assert [window.result(60) for window in windows] == [0, 1, 2, 3, 4]
    assert len(windows) < ran.index([4]) < 200  # a quarter of the time is its own
    batcher.stop(30)


def test_a_poisoned_item_fails_alone():
    worker = Worker(poison={3})
    batcher = started(worker, batch_s=100.0)
    held(worker, batcher)
    futures = [batcher.ticket().submit(number, 1.0) for number in range(8)]
    worker.gate.set()
    for number, future in enumerate(futures):
        if number == 3:
            with pytest.raises(RuntimeError, match="choked"):
                future.result(30)
        else:
            assert future.result(30) == 2 * number
    assert [3] in worker.batches
    assert worker.done == Counter([-1, 0, 1, 2, 4, 5, 6, 7])
    batcher.stop(30)


@pytest.mark.parametrize("error", [SystemExit("out"), KeyboardInterrupt(), MemoryError()])
def test_the_loop_survives_whatever_is_raised(error):
    failing = [True]

    def run(payloads):
        if failing:
            failing.pop()
            raise error
        return payloads

    batcher = Batcher(lambda: Lane(run), BatchLimits(100, 10))
    batcher.start()
    with pytest.raises(type(error)):
        batcher.ticket().submit(1, 1.0).result(30)
    assert batcher.ticket().submit(2, 1.0).result(30) == 2
    assert batcher.queued_s == 0
    batcher.stop(30)


def test_the_loop_survives_too_few_results_and_an_observer_that_fails():
    def observe(report):
        raise ZeroDivisionError

    batcher = Batcher(lambda: Lane(lambda payloads: []), BatchLimits(100, 10), observe)
    batcher.start()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            batcher.ticket().submit(1, 1.0).result(30)
    batcher.stop(30)


def test_a_full_queue_says_when_there_is_room_and_keeps_its_word():
    worker = Worker(slowness=0.1)  # 2 s of audio in 0.1 s: 20 times real time
    worker.gate.set()
    batcher = started(worker, queue_s=40.0, batch_s=2.0)
    for _ in range(3):
        batcher.ticket().submit(0, 2.0).result(30)
    assert 0 < batcher.speed < 21
    worker.gate.clear()
    with batcher.ticket() as ticket, batcher.ticket() as newcomer:
        for number in range(20):
            ticket.reserve(2.0)
            ticket.submit(number, 2.0)
        with pytest.raises(Overloaded) as refused:
            newcomer.reserve(10.0)
        assert refused.value.retry_after_s == pytest.approx(10 / batcher.speed)
        worker.gate.set()
        time.sleep(3 * refused.value.retry_after_s)  # for a machine that others use as well
        newcomer.reserve(10.0)
    batcher.stop(30)


def test_what_requests_usually_bring_is_asked_for_before_they_are_read():
    """But no more than a twentieth of the queue, and nothing more is asked of what is known."""
    worker = Worker()
    worker.gate.set()
    batcher = started(worker, queue_s=100.0)
    for _ in range(200):
        with batcher.ticket() as ticket:
            ticket.submit(1, 4.0).result(30)
    with batcher.ticket() as ticket:
        ticket.reserve(95.5)
        batcher.check_room(4.5)
        batcher.check_room(0.5)
        ticket.reserve(1.0)
        with pytest.raises(Overloaded):
            batcher.check_room(0.5)
        with batcher.ticket() as known:
            known.reserve(3.5)
    for _ in range(200):
        with batcher.ticket() as ticket:
            for _ in range(3):
                ticket.submit(1, 9.0).result(30)
    with batcher.ticket() as ticket:
        ticket.reserve(94.5)
        batcher.check_room(0.5)
    batcher.stop(30)


def test_more_than_the_whole_queue_is_refused_at_once():
    worker = Worker()
    batcher = started(worker, queue_s=30.0)
    with batcher.ticket() as ticket:
        ticket.reserve(20.0)
        with pytest.raises(TooLarge, match="at most 30 s"):
            ticket.reserve(10.5)
        with pytest.raises(TooLarge):
            ticket.submit(1, 11.0)  # than a batch
        assert batcher.queued_s == 20.0
    assert batcher.queued_s == 0.0
    batcher.stop(30)


def test_reserved_seconds_become_queued_ones_and_are_given_back():
    worker = Worker()
    batcher = started(worker, queue_s=10.0)
    held(worker, batcher)
    ticket = batcher.ticket()
    ticket.reserve(8.0)
    assert batcher.queued_s == 8.25
    futures = [ticket.submit(number, 4.5) for number in range(2)]  # windows overlap: a little more
    assert batcher.queued_s == 9.25
    with pytest.raises(Overloaded):
        batcher.check_room(1.0)
    batcher.check_room(0.75)
    worker.gate.set()
    for future in futures:
        future.result(30)
    until(lambda: batcher.queued_s == 0)
    batcher.stop(30)


def test_a_gone_client_frees_the_queue_and_is_skipped():
    worker = Worker()
    batcher = started(worker, queue_s=20.0)
    held(worker, batcher)
    with batcher.ticket() as leaving:
        gone = [leaving.submit(number, 1.0) for number in range(10)]
        alone = leaving.submit(10, 1.0)
        alone.cancel()  # as a waiter in the event loop does, before its ticket is closed
    assert batcher.queued_s == 0.25
    assert all(future.cancelled() for future in gone)
    cancelled = batcher.ticket().submit(11, 1.0)
    cancelled.cancel()
    worker.gate.set()
    assert batcher.ticket().submit(12, 1.0).result(30) == 24
    assert worker.done == Counter([-1, 12])
    until(lambda: batcher.queued_s == 0)
    batcher.stop(30)


def test_stop_finishes_what_runs_and_refuses_what_waits():
    worker = Worker()
    batcher = started(worker, batch_s=1.0)
    running = batcher.ticket().submit(1, 1.0)
    assert worker.entered.wait(30)
    ticket = batcher.ticket()
    waiting = ticket.submit(2, 1.0)
    threading.Timer(0.1, worker.gate.set).start()
    batcher.stop(30)
    assert running.result(0) == 2
    with pytest.raises(Stopped):
        waiting.result(0)
    with pytest.raises(Stopped):
        ticket.submit(3, 1.0)
    with pytest.raises(Stopped):
        batcher.check_room(1.0)


def test_what_fails_to_open_is_told():
    def opening():
        raise ValueError("no such model")

    batcher: Batcher[int, int] = Batcher(opening, BatchLimits(10, 10))
    batcher.start()
    with pytest.raises(ValueError, match="no such model"):
        batcher.started.result(30)
    with pytest.raises(Stopped):
        batcher.ticket().submit(1, 1.0)


def test_a_closed_ticket_takes_nothing():
    batcher = started(Worker())
    with batcher.ticket() as ticket:
        ticket.reserve(1.0)
    with pytest.raises(Stopped):
        ticket.submit(2, 1.0)
    with pytest.raises(Stopped):
        ticket.reserve(1.0)
    assert batcher.queued_s == 0
    batcher.stop(30)

"""What each API key may use of the service at a time, and whose turn it is."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from service.batcher import Overloaded


class Share:
    """One request's, out of its key's: seconds of audio, given back when the request ends."""

    def __init__(self, shares: Shares, key: str) -> None:
        self._shares, self._key = shares, key
        self.seconds = 0.0

    def reserve(self, seconds: float) -> None:
        """In any thread. Raises Overloaded."""
        self._shares.take(self._key, seconds)
        self.seconds += seconds


class Shares:
    """max_requests, max_queue_s, max_streams: of one key, at a time; None is no limit."""

    def __init__(
        self, max_requests: int | None, max_queue_s: float | None, max_streams: int | None = None
    ) -> None:
        self._most = {False: max_requests, True: max_streams}
        self._max_queue_s = max_queue_s
        self._lock = threading.Lock()
        self._served: dict[tuple[str, bool], int] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def of(self, key: str, *, live: bool = False) -> Iterator[Share]:
        """For one request, or a live stream. Raises Overloaded if its key has too many already."""
        with self._lock:
            most, served = self._most[live], self._served.get((key, live), 0)
            if most is not None and served >= most:
                raise Overloaded(1.0)
            self._served[key, live] = served + 1
        share = Share(self, key)
        try:
            yield share
        finally:
            with self._lock:
                self._served[key, live] -= 1
                self._seconds[key] = max(self._seconds.get(key, 0.0) - share.seconds, 0.0)

    def take(self, key: str, seconds: float) -> None:
        with self._lock:
            most, used = self._max_queue_s, self._seconds.get(key, 0.0)
            if most is not None and used + seconds > most:
                raise Overloaded(1.0)
            self._seconds[key] = used + seconds


class Turns:
    """Whose turn it is, of those who have something to do: who has had the least time. Nothing is saved up by
    having had nothing to do: such a one begins where the others are."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._had_s: dict[str, float] = {}
        self._running: Counter[str] = Counter()
        self._clock = 0.0

    @contextmanager
    def of_one(self, waiting: Sequence[str]) -> Iterator[str]:
        """The name of one of those; of equals one of whom less is under way, then the first. The block is its
        turn."""

        def before(name: str) -> tuple[float, int]:
            return max(self._had_s.get(name, 0.0), self._clock), self._running[name]

        name = min(waiting, key=before)
        self._clock, _ = before(name)
        self._running[name] += 1
        began = self._now()
        try:
            yield name
        finally:
            self._running[name] -= 1
            self._had_s[name] = max(self._had_s.get(name, 0.0), self._clock) + self._now() - began

"""What each API key may use of the service at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from service.batcher import Overloaded

asking: ContextVar[Share | None] = ContextVar("asking", default=None)
"""The share of the request at hand; None where no keys are asked for."""


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
    """max_requests, max_queue_s: of one key, at a time; None is no limit."""

    def __init__(self, max_requests: int | None, max_queue_s: float | None) -> None:
        self._max_requests, self._max_queue_s = max_requests, max_queue_s
        self._lock = threading.Lock()
        self._requests: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    @contextmanager
    def of(self, key: str) -> Iterator[Share]:
        """For one request. Raises Overloaded if its key has too many already."""
        with self._lock:
            if self._max_requests is not None and self._requests.get(key, 0) >= self._max_requests:
                raise Overloaded(1.0)
            self._requests[key] = self._requests.get(key, 0) + 1
        share = Share(self, key)
        token = asking.set(share)
        try:
            yield share
        finally:
            asking.reset(token)
            with self._lock:
                self._requests[key] -= 1
                self._seconds[key] = max(self._seconds.get(key, 0.0) - share.seconds, 0.0)

    def take(self, key: str, seconds: float) -> None:
        with self._lock:
            most, used = self._max_queue_s, self._seconds.get(key, 0.0)
            if most is not None and used + seconds > most:
                raise Overloaded(1.0)
            self._seconds[key] = used + seconds

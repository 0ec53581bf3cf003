"""When to ask again, and when to give up."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from speech_ssl.client.errors import CONNECTION_LOST, NOT_CONNECTED, ServiceError, TimedOut

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
FOR_GOOD = ("model_lost", "not_loaded")
"""Though 503: the first has cost the service a process, twice, and the second comes again."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """At most `attempts` in all, and none that would begin more than `retry_for_s` after the first. What the
    service asks to wait (Retry-After) is waited for, and a little more, so that not all come back at once;
    without it, or if it is shorter than any pause here, the pauses double."""

    attempts: int = 5
    retry_for_s: float = 60.0
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if not self.retry_for_s >= 0:
            raise ValueError(f"retry_for_s must be at least 0, not {self.retry_for_s}")

    def pause_s(self, error: ServiceError, attempt: int, elapsed_s: float) -> float | None:
        """How long to wait after the failure of attempt 1, 2, ...; None to give up."""
        wanted_s = error.retry_after_s or 0.0
        if wanted_s < FIRST_PAUSE_S:  # zero too: all attempts at once would be one
            wanted_s = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
        pause_s = wanted_s + random.uniform(0, 0.1 * wanted_s)
        goes_on = attempt < self.attempts and elapsed_s + pause_s <= self.retry_for_s
        return pause_s if goes_on else None


def may_pass(error: ServiceError, repeatable: bool) -> bool:
    """Whether asking again can help, and does no harm: what is not `repeatable` may have been done though its
    answer was lost, or a proxy gave up waiting for it."""
    if error.code in FOR_GOOD:
        return False
    if error.status == 429 or error.code == NOT_CONNECTED:
        return True
    return repeatable and (error.status in (502, 503) or error.code == CONNECTION_LOST)


class Deadline:
    """The end of a call, with all its attempts. Needs a running event loop, whose clock it goes by."""

    def __init__(self, timeout_s: float | None, request_id: str) -> None:
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout is a number of seconds above 0, or None for no limit, not {timeout_s}")
        self._timeout_s = timeout_s
        self._end = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        self.request_id = request_id

    def left_s(self) -> float | None:
        return None if self._end is None else max(self._end - asyncio.get_running_loop().time(), 0.001)

    @asynccontextmanager
    async def bounding(self) -> AsyncIterator[None]:
        """Ends what is inside when the time is over. Raises TimedOut."""
        try:
            async with asyncio.timeout_at(self._end) as scope:
                yield
        except TimeoutError as error:
            if not scope.expired():  # of the file system, for one
                raise
            message = f"there was no answer within {self._timeout_s:g} s"
            raise TimedOut(message, "deadline_exceeded", request_id=self.request_id) from error

"""What goes with a request: what whoever serves it notes, for logs, metrics and traces; what it may use and
what it holds; and until when it is waited for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from service.batcher import Overloaded, TooLarge
from service.batches import Ticket
from service.shares import Share

MIB = 1 << 20


class Holding:
    """Bytes of what models gave, as long as requests hold them: until the answer is made of it, and the
    answer until it is sent. most: of all requests together. It belongs to the event loop."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0


class Held:
    """One request's; nothing after its block."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding
        self.size = 0

    def more(self, size: int) -> None:
        """Raises Overloaded, and TooLarge where waiting would not help."""
        most = self._holding.most
        if self.size + size > most:
            raise TooLarge(
                f"what the model gives for it takes more than {most / MIB:g} MiB: send less at a time"
            )
        if self._holding.size + size > most:
            raise Overloaded(1.0)
        self.only(self.size + size)

    def only(self, size: int) -> None:
        """Of all that it held this is left, be it more."""
        self._holding.size += size - self.size
        self.size = size

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.only(0)


@dataclass(eq=False)
class Record:
    """Times are of `time.monotonic()`. code: of the error that was answered. warnings: codes of those of its
    files. status: of how a WebSocket or a stream ended, as of HTTP; 0: it went well. bare_errors: an error is
    answered as a string, not an object. share: of its key; None where no keys are asked for. due: when nobody
    waits for it any more."""

    request_id: str
    bare_errors: bool = False
    trace_id: str = ""
    model: str = ""
    code: str = ""
    status: int = 0
    audio_s: float = 0.0
    warnings: list[str] = field(default_factory=list)
    decodes: list[tuple[float, float]] = field(default_factory=list)
    tickets: list[Ticket[Any, Any]] = field(default_factory=list)
    held: Held = field(default_factory=lambda: Held(Holding(1 << 62)))
    share: Share | None = None
    due: float = math.inf

    def queued(self, model: str, ticket: Ticket[Any, Any]) -> None:
        self.model = model
        self.tickets.append(ticket)

    def waits(self, now: float) -> list[tuple[float, float]]:
        """From a ticket's first window to the beginning of its first batch, or until now."""
        return [(t.first_submit, t.first_start or now) for t in self.tickets if t.first_submit]

    def runs(self) -> list[tuple[float, float]]:
        """From a ticket's first batch to the end of its last."""
        return [(t.first_start, t.last_finish) for t in self.tickets if t.first_start and t.last_finish]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def current() -> Record:
    """That of the request being served; elsewhere a new one, which nobody reads."""
    return _current.get() or Record("")


@contextmanager
def recording(record: Record) -> Iterator[None]:
    token = _current.set(record)
    try:
        yield
    finally:
        _current.reset(token)

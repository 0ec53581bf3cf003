"""What is known of a request by its end: noted by whoever serves it, read by logs, metrics and traces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from service.batches import Ticket


@dataclass(eq=False)
class Record:
    """Times are of `time.monotonic()`. code: of the error that was answered. warnings: codes of those of its
    files. status: of how a WebSocket or a stream ended, as of HTTP; 0: it went well. bare_errors: an error is
    answered as a string, not an object."""

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

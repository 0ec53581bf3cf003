"""Bytes of what models gave, as long as requests hold them: until the answer is made of it, and the answer
until it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from service.batcher import Overloaded, TooLarge

MIB = 1 << 20


class Held:
    """One request's."""

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
        self._keep(self.size + size)

    def only(self, size: int) -> None:
        """Of all that it held this is left, be it more."""
        self._keep(size)

    def _keep(self, size: int) -> None:
        self._holding.size += size - self.size
        self.size = size


class Holding:
    """most: bytes of all requests together. It belongs to the event loop."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0

    @contextmanager
    def of_one(self) -> Iterator[Held]:
        """For a request, to its end."""
        held = Held(self)
        token = _holding.set(held)
        try:
            yield held
        finally:
            _holding.reset(token)
            held.only(0)


_holding: ContextVar[Held | None] = ContextVar("holding", default=None)


def held() -> Held:
    """That of the request at hand; elsewhere one that nobody counts."""
    return _holding.get() or Held(Holding(1 << 62))

"""How slow the other side of a connection may be."""

from __future__ import annotations

from service.errors import ServiceError
from service.settings import Settings


class Pace:
    """What is left of its time: `patience_s` at first and at most, and a second more for each `rate` bytes.

    So a pause may be `patience_s` long, but who sends less than `rate` bytes a second has used it up some
    time, however short the pauses are, and what was sent fast earns no longer pause."""

    def __init__(self, rate: float, patience_s: float) -> None:
        self._rate, self._patience_s = rate, patience_s
        self.left_s = patience_s

    def moved(self, size: int, seconds: float) -> None:
        """So many bytes, and so long that was waited for them."""
        self.left_s = min(self.left_s - seconds + size / self._rate, self._patience_s)


def stalled(settings: Settings) -> ServiceError:
    """What a client is told that sends too slowly."""
    slow = f"less than {settings.min_upload_rate} bytes a second came, or none for"
    message = f"the upload stalled: {slow} {settings.upload_idle_timeout_s:g} s"
    return ServiceError(408, "upload_stalled", message, headers={"Connection": "close"})

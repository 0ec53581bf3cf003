"""How slow a client may be."""

from __future__ import annotations

from service.errors import ServiceError
from service.settings import Settings


class Pace:
    """The time it has left: `patience_s` at first and at most, and a second more for each `rate` bytes.

    So a pause may be `patience_s` long. A client that sends less than `rate` bytes a second uses up its time,
    however short its pauses are; fast sending earns no longer pause."""

    def __init__(self, rate: float, patience_s: float) -> None:
        self._rate, self._patience_s = rate, patience_s
        self.left_s = patience_s

    def moved(self, size: int, seconds: float) -> None:
        """After so many bytes, and so long a wait for them."""
        self.left_s = min(self.left_s - seconds + size / self._rate, self._patience_s)


def stalled(settings: Settings) -> ServiceError:
    """The error for a client that sends too slowly."""
    slow = f"less than {settings.min_upload_rate} bytes a second came, or none for"
    message = f"the upload stalled: {slow} {settings.upload_idle_timeout_s:g} s"
    return ServiceError(408, "upload_stalled", message, headers={"Connection": "close"})

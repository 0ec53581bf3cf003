"""Server-sent events of a transcription."""

from __future__ import annotations

import json
import logging

from speech_ssl.client.errors import of_event, unreadable

logger = logging.getLogger(__name__)


def delta_of(line: bytes, request_id: str | None) -> str | None:
    """The piece of text in a line, "" if there is none, None at the end of the stream. What is wrong with the
    file is logged. Raises ServiceError, for an error that is told in the stream too."""
    if not line.startswith(b"data:"):
        return ""
    data = line.removeprefix(b"data:").strip()
    if data == b"[DONE]":
        return None
    try:
        event = json.loads(data)
        if event.get("type") == "transcript.text.delta":
            return str(event["delta"])
        for warning in event.get("warnings", ()):
            logger.warning("%s", warning["message"])
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise unreadable(data, request_id) from error
    if "error" in event:
        raise of_event(event["error"], request_id)
    return ""

"""Asks a running service, with no model and no PyTorch on this side::

    from speech_ssl.client import Client
    with Client("http://localhost:8000") as client:
        client.embed("clip.wav").vector

docs/client.md shows the rest.
"""

from __future__ import annotations

try:
    import httpx as _httpx  # noqa: F401
except ImportError as error:
    raise ImportError("the client needs httpx: pip install 'speech-ssl[client]'") from error

from speech_ssl.client.aio import AsyncClient
from speech_ssl.client.answers import (
    Analysis,
    AudioWarning,
    Classification,
    Embedding,
    Head,
    Label,
    Model,
    Segment,
    Sounds,
    Spoken,
    TimedEvent,
    Transcript,
    Word,
)
from speech_ssl.client.errors import (
    BadAudio,
    Overloaded,
    Refused,
    ServiceError,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from speech_ssl.client.inputs import Audio
from speech_ssl.client.jobs import Job, JobProgress
from speech_ssl.client.many import Counts, Done
from speech_ssl.client.retrying import Retrying
from speech_ssl.client.sync import Client

__all__ = [
    "Analysis",
    "AsyncClient",
    "Audio",
    "AudioWarning",
    "BadAudio",
    "Classification",
    "Client",
    "Counts",
    "Done",
    "Embedding",
    "Head",
    "Job",
    "JobProgress",
    "Label",
    "Model",
    "Overloaded",
    "Refused",
    "Retrying",
    "Segment",
    "ServiceError",
    "Sounds",
    "Spoken",
    "TimedEvent",
    "TimedOut",
    "Transcript",
    "Unauthorized",
    "Unavailable",
    "Word",
]

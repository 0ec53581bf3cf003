"""The HTTP service. It needs the extra `serve`."""

from __future__ import annotations

from importlib.util import find_spec

NEEDED = ("fastapi", "prometheus_client", "pydantic_settings", "python_multipart", "uvicorn", "websockets")


def lacking() -> str | None:
    """What to tell whoever has not installed the extra; None if it is there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    return f"the service needs {', '.join(missing)}: pip install 'speech-ssl[serve]'" if missing else None

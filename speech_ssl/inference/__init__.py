"""The runtime: from an artifact and waves to features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speech_ssl.inference.chunking import Window

if TYPE_CHECKING:
    from speech_ssl.inference.runtime import Runtime, load

__all__ = ["Runtime", "Window", "load"]


def __getattr__(name: str) -> Any:
    """The runtime on first use: it needs PyTorch, which the service's own process never loads."""
    if name in ("Runtime", "load"):
        from speech_ssl.inference import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The runtime: from an artifact and waves to features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speech_ssl.inference.chunking import Window

if TYPE_CHECKING:
    from speech_ssl.inference.answers import Transcript
    from speech_ssl.inference.runtime import Runtime, load, load_encoder

__all__ = ["Runtime", "Transcript", "Window", "load", "load_encoder"]


def __getattr__(name: str) -> Any:
    """Import on first use: the runtime needs PyTorch, which the service's own process never loads."""
    if name == "Transcript":
        from speech_ssl.inference import answers

        return answers.Transcript
    if name in __all__:
        from speech_ssl.inference import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

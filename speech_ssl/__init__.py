"""Self-supervised speech representations: from raw audio to embeddings.

import speech_ssl
runtime = speech_ssl.load("default")
features = runtime.encode(["clip.wav"])[0]      # .frames (T, D), .pooled("mean") (D,)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech_ssl.inference import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` on first use: importing a part of the package must not load all of it."""
    if name == "load":
        from speech_ssl.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Self-supervised speech representations: from raw audio to embeddings.

import speech_ssl
runtime = speech_ssl.load("default")
features = runtime.encode(["clip.wav"])[0]      # .frames (T, D), .pooled("mean") (D,)
encoder = speech_ssl.load_encoder("default")    # a torch module to build on
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech_ssl.inference import Runtime as Runtime
    from speech_ssl.inference import Transcript as Transcript
    from speech_ssl.inference import load as load
    from speech_ssl.inference import load_encoder as load_encoder
    from speech_ssl.types import Features as Features

__version__ = "0.1.0"
__all__ = ["Features", "Runtime", "Transcript", "__version__", "load", "load_encoder"]


def __getattr__(name: str) -> Any:
    """On first use: importing a part of the package must not load all of it."""
    if name == "Features":
        from speech_ssl import types

        return types.Features
    if name in __all__:
        from speech_ssl import inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

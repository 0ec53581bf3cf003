"""The runtime: from an artifact and waves to features."""

from speech_ssl.inference.chunking import Window
from speech_ssl.inference.runtime import Runtime, load

__all__ = ["Runtime", "Window", "load"]

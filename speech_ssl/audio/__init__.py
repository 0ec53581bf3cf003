"""Audio of any kind in, 16 kHz mono float32 out, in blocks and within limits.

Headers are not trusted: samples are counted while they are decoded. Only formats that are recognised by
their first bytes reach a decoder: libsndfile, or FFmpeg if the extra `av` is installed.
"""

from speech_ssl.audio.decoding import (
    LARGEST_SAMPLE,
    Limits,
    decode,
    duration,
    resampler,
    stream,
)
from speech_ssl.audio.errors import AudioError, AudioWarning, Warn
from speech_ssl.audio.files import AudioSource
from speech_ssl.audio.formats import FORMATS, SUFFIXES, sniff

__all__ = [
    "FORMATS",
    "LARGEST_SAMPLE",
    "SUFFIXES",
    "AudioError",
    "AudioWarning",
    "Limits",
    "AudioSource",
    "Warn",
    "decode",
    "duration",
    "resampler",
    "sniff",
    "stream",
]

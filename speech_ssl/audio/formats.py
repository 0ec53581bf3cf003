"""Which files are audio, told by their first bytes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Literal, TypeAlias

Container: TypeAlias = Literal["wav", "flac", "ogg", "aiff", "mp3", "mp4", "adts", "matroska"]

WITH_PYAV: dict[Container, str] = {
    "mp4": "MP4 (M4A, MOV)",
    "adts": "AAC (ADTS)",
    "matroska": "WebM and Matroska",
}
"""What FFmpeg decodes, by way of PyAV, and its names for people; libsndfile decodes the others."""

FORMATS: tuple[str, ...] = (
    "WAV (also RF64)",
    "FLAC",
    "Ogg Vorbis",
    "Ogg Opus",
    "MP3",
    "AIFF",
    *(WITH_PYAV.values() if find_spec("av") else ()),
)
"""What can be read here, for people."""

HEAD_BYTES = 64

# The major brands of files that may hold a sound track. Pictures (HEIC, AVIF, CR3) are in the same container.
BRANDS = frozenset(
    b"M4A |M4B |M4V |F4A |F4V |mp41|mp42|mp71|isom|iso2|iso3|iso4|iso5|iso6|iso7|iso8|iso9|avc1|dash|MSNV"
    b"|qt  |3gp4|3gp5|3gp6|3gp7|3g2a|3g2b".split(b"|")
)
EBML = b"\x1a\x45\xdf\xa3"
_DOC_TYPE = re.compile(rb"\x42\x82(\x84webm|\x88matroska)")


def sniff(head: bytes) -> Container | None:
    """The container named by a file's first bytes (64 are enough), or None if it is not read here."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] in (b"WAVE", b""):
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        codecs = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")
        return "ogg" if len(head) < 40 or any(codec in head[28:] for codec in codecs) else None
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC", b""):
        return "aiff"
    if head[4:8] == b"ftyp" and head[8:12] in BRANDS:
        return "mp4"
    if head[:4] == EBML:
        return "matroska" if _DOC_TYPE.search(head) else None
    return _sniff_frame(head)


def _sniff_frame(head: bytes) -> Container | None:
    """Of formats that have no header but those of their frames."""
    if head[:3] == b"ID3":
        return "mp3"
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:  # 11 bits to synchronise by
        return None
    version, layer, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 2 & 15
    if layer == 0:  # reserved in MPEG audio, always so in ADTS
        return "adts" if version & 2 and rate < 13 and adts_frame_bytes(head) > 7 else None
    return "mp3" if version != 1 and head[2] >> 4 != 15 and rate & 3 != 3 else None


def adts_frame_bytes(head: bytes) -> int:
    """How long a frame of ADTS is, header included, by that header; 0 where the header is cut off."""
    return int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF if len(head) > 5 else 0

"""What is read: each container with its signature, its names, and who decodes it.

A file is recognised by its bytes alone. Only audio containers with a signature are here: nothing without a
header (it could be anything), no list or script that refers to other files, no pictures.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Literal, NamedTuple, TypeAlias

Container: TypeAlias = Literal[
    "wav",
    "w64",
    "aiff",
    "au",
    "caf",
    "sphere",
    "voc",
    "ircam",
    "flac",
    "ogg",
    "mp3",
    "adts",
    "ac3",
    "eac3",
    "amr",
    "wavpack",
    "mp4",
    "matroska",
    "asf",
]


class Format(NamedTuple):
    """libsndfile: whether libsndfile tries first. demuxer: FFmpeg's, if it tries. names, extra: for people,
    what libsndfile reads, and what needs the extra `av`."""

    suffixes: str
    libsndfile: bool = False
    demuxer: str = ""
    names: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


TABLE: dict[Container, Format] = {
    "wav": Format(".wav .wave .bwf", True, "wav", ("WAV (also RF64)",), ("G.722 and G.726 in WAV",)),
    "w64": Format(".w64", True, "w64", ("Wave64",)),
    "aiff": Format(".aif .aiff .aifc", True, "aiff", ("AIFF",)),
    "au": Format(".au .snd", True, "au", ("AU",)),
    "caf": Format(".caf", True, "caf", ("CAF",)),
    "sphere": Format(".sph .nist .wv1 .wv2", True, "", ("NIST SPHERE",)),
    "voc": Format(".voc", True, "", ("VOC",)),
    "ircam": Format(".sf .ircam", True, "", ("IRCAM",)),
    "flac": Format(".flac", True, "", ("FLAC",)),
    "ogg": Format(
        ".ogg .oga .opus .ogv .ogx .spx", True, "ogg", ("Ogg Vorbis", "Ogg Opus", "Ogg FLAC"), ("Ogg Speex",)
    ),
    "mp3": Format(".mp3 .mp2 .mp1 .mpa", True, "", ("MP3",)),
    "mp4": Format(
        ".mp4 .m4a .m4b .m4v .f4a .f4v .mov .qt .3gp .3g2", False, "mov", extra=("MP4 (M4A, MOV, 3GP)",)
    ),
    "adts": Format(".aac .adts", False, "aac", extra=("AAC (ADTS)",)),
    "matroska": Format(".webm .weba .mkv .mka", False, "matroska", extra=("WebM and Matroska",)),
    "amr": Format(".amr .awb", False, "amr", extra=("AMR",)),
    "asf": Format(".wma .wmv .asf", False, "asf", extra=("WMA (ASF)",)),
    "ac3": Format(".ac3", False, "ac3", extra=("AC-3",)),
    "eac3": Format(".eac3 .ec3", False, "eac3", extra=("E-AC-3",)),
    "wavpack": Format(".wv", False, "wv", extra=("WavPack",)),
}

HAS_FFMPEG = find_spec("av") is not None

FORMATS: tuple[str, ...] = (
    *(name for form in TABLE.values() for name in form.names),
    *(name for form in TABLE.values() for name in form.extra if HAS_FFMPEG),
)
"""What can be read here, for people."""


def known_formats() -> str:
    return f"known are {', '.join(FORMATS)}"


SUFFIXES: frozenset[str] = frozenset(suffix for form in TABLE.values() for suffix in form.suffixes.split())
"""Suffixes of all files that can be read, some only with the extra `av`."""

HEAD_BYTES = 64

SIGNATURES: tuple[tuple[Container, bytes], ...] = (
    ("au", b".snd"),
    ("au", b"dns."),
    ("caf", b"caff"),
    ("sphere", b"NIST_1A\n"),
    ("sphere", b"NIST_1A\r"),
    ("voc", b"Creative Voice File\x1a"),
    ("flac", b"fLaC"),
    ("ogg", b"OggS\0"),
    ("amr", b"#!AMR\n"),
    ("amr", b"#!AMR-WB\n"),
    ("wavpack", b"wvpk"),
    ("w64", b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"),
    ("asf", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"),
    *(("ircam", magic) for magic in (b"\x64\xa3\x01\0", b"\x64\xa3\x02\0", b"\x64\xa3\x03\0")),
    *(("ircam", magic) for magic in (b"\0\x01\xa3\x64", b"\0\x02\xa3\x64", b"\0\x03\xa3\x64")),
)

# The major brands of files that may hold a sound track. Pictures (HEIC, AVIF, CR3) are in the same container.
BRANDS = frozenset(
    b"M4A |M4B |M4V |F4A |F4V |mp41|mp42|mp71|isom|iso2|iso3|iso4|iso5|iso6|iso7|iso8|iso9|avc1|dash|MSNV"
    b"|qt  |3gp4|3gp5|3gp6|3gp7|3g2a|3g2b".split(b"|")
)
EBML = b"\x1a\x45\xdf\xa3"
_DOC_TYPE = re.compile(rb"\x42\x82(\x84webm|\x88matroska)")


def sniff(head: bytes) -> Container | None:
    """The container named by a file's first bytes (64 are enough), or None if it is not read here.

    For formats that consist of frames only (MP3, ADTS, AC-3) these are a few bits, which may be there by
    chance: more frames have to follow.
    """
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] in (b"WAVE", b""):
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC", b""):
        return "aiff"
    if head[4:8] == b"ftyp" and head[8:12] in BRANDS:
        return "mp4"
    if head[:4] == EBML:
        return "matroska" if _DOC_TYPE.search(head) else None
    for container, signature in SIGNATURES:
        if head.startswith(signature):
            return container
    return _sniff_frame(head)


def _sniff_frame(head: bytes) -> Container | None:
    if head[:3] == b"ID3":
        return "mp3"
    if head[:2] == b"\x0b\x77" and len(head) > 5:
        return "ac3" if head[5] >> 3 <= 10 else "eac3" if head[5] >> 3 <= 16 else None
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:  # 11 bits to synchronise by
        return None
    version, layer, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 2 & 15
    if layer == 0:  # reserved in MPEG audio, always so in ADTS
        length = int.from_bytes(head[3:6], "big") >> 5 & 0x1FFF
        return "adts" if version & 2 and rate < 13 and len(head) > 5 and length > 7 else None
    return "mp3" if version != 1 and head[2] >> 4 != 15 and rate & 3 != 3 else None

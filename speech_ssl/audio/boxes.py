"""Containers of packets (MP4, Matroska, ASF): whether they end where their outermost parts say they do."""

from __future__ import annotations

from typing import NamedTuple

from speech_ssl.audio.errors import CUT_OFF, DAMAGED, AudioError, Flaw
from speech_ssl.audio.files import File

MOST_PARTS = 2_000_000

SEGMENT, CLUSTER, EBML_HEADER = 0x18538067, 0x1F43B675, 0x1A45DFA3
IN_SEGMENT = {0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0xAF, 0x5854}
ANYWHERE = {0xEC, 0xBF}
KNOWN = {EBML_HEADER, SEGMENT, CLUSTER} | IN_SEGMENT | IN_CLUSTER | ANYWHERE


def end_of_mp4(file: File, name: str) -> tuple[int, Flaw | None]:
    """Where the recording ends, and what is wrong there. Raises AudioError if its index is missing."""
    at, kind = 0, b""
    kinds: set[bytes] = set()
    for _ in range(MOST_PARTS):
        head = file.peek(at, 16)
        if len(head) < 8:
            break
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        elif size == 0:
            size = file.size - at
        if size < 8 or (kind == b"ftyp" and kinds >= {b"moov", b"mdat"}):  # here begins another one
            break
        kinds.add(kind)
        at += size
    if b"moov" not in kinds:
        raise AudioError(
            "undecodable",
            f"{name}: cut off before its index (moov), without which nothing can be read",
        )
    return (file.size, CUT_OFF) if at > file.size else (at if kind == b"ftyp" else file.size, None)


class Element(NamedTuple):
    """An EBML element: its content is `size` bytes from `begin` on; endless: it does not say how many."""

    kind: int
    begin: int
    size: int
    endless: bool


def end_of_matroska(file: File) -> tuple[int, Flaw | None]:
    """Raises nothing: FFmpeg skips damage, and does not report it."""
    at, end = 0, file.size
    for _ in range(MOST_PARTS):
        if at >= end:
            break
        element = _element(file, at)
        if element is None:
            return at, CUT_OFF if file.size - at < 12 else DAMAGED
        if element.kind == SEGMENT and not element.endless:
            end = element.begin + element.size
        if element.kind in (SEGMENT, CLUSTER):  # what is in them is looked at
            at = element.begin
            continue
        following = element.begin + element.size
        if element.endless or (element.kind not in KNOWN and not _is_known(file, following)):
            return at, DAMAGED
        at = following
    return file.size, CUT_OFF if max(at, end) > file.size else None


def _element(file: File, at: int) -> Element | None:
    head = file.peek(at, 12)
    kind, kind_bytes = _number(head, keep_marker=True)
    size, size_bytes = _number(head[kind_bytes:], keep_marker=False)
    if not kind_bytes or not size_bytes:
        return None
    return Element(kind, at + kind_bytes + size_bytes, size, size == (1 << 7 * size_bytes) - 1)


def _is_known(file: File, at: int) -> bool:
    element = _element(file, at)
    return at == file.size or (element is not None and element.kind in KNOWN)


def _number(data: bytes, *, keep_marker: bool) -> tuple[int, int]:
    """A number of variable length, and its length in bytes; 0 if there is none."""
    length = 9 - data[0].bit_length() if data and data[0] else 0
    if not 0 < length <= len(data) or (keep_marker and length > 4):
        return 0, 0
    value = int.from_bytes(data[:length], "big")
    return value if keep_marker else value & ((1 << 7 * length) - 1), length


def end_of_asf(file: File) -> tuple[int, Flaw | None]:
    at = 0
    for _ in range(MOST_PARTS):
        head = file.peek(at, 24)
        if len(head) < 24:
            break
        size = int.from_bytes(head[16:24], "little")
        if at and head[:16] == file.peek(0, 16):
            return at, None
        if size < 24:  # a live one's packets: it does not say how many
            break
        at += size
    return file.size, CUT_OFF if at > file.size else None

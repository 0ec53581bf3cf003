"""MP3's first frame: how many frames follow, and the encoder's padding before and after the audio."""

from __future__ import annotations

import struct

from speech_ssl.audio.errors import CUT_OFF, Flaw
from speech_ssl.audio.files import File, Piece, Range, patched
from speech_ssl.audio.frames import NO_FRAME, FrameRun, mpeg_frame

FRAMES_SAID, BYTES_SAID, TABLE_SAID, QUALITY_SAID = 1, 2, 4, 8
INFO_BYTES = 192
SLACK_FRAMES = 1
"""Some writers count the info frame itself."""
LAYER_III = 1
LAME_TRIMS = 21
"""After its name and its settings, LAME says how much to remove at the beginning and the end."""


def is_info(head: bytes) -> bool:
    """Whether a frame says how many follow it: it is the first of a recording."""
    return (b"Xing" in head or b"Info" in head) and _info_at(head) is not None


def _info_at(head: bytes) -> int | None:
    at = _place(head)
    return at if head[at : at + 4] in (b"Xing", b"Info") else None


def _place(head: bytes) -> int:
    """After the header, and the place of the side information, which is empty."""
    mono, version_1 = head[3] >> 6 == 3, head[1] & 0x18 == 0x18
    return 4 + ((17 if mono else 32) if version_1 else (9 if mono else 17))


def pieces_of(file: File, run: FrameRun) -> tuple[list[Piece], Flaw | None]:
    """Frames behind one that says how many they are, for without it a decoder guesses, and stops there; and
    whether some are missing."""
    head = file.read_at(run.begin, INFO_BYTES)
    if head[1] >> 1 & 3 != LAYER_III:  # the others are of one bit rate
        return [Range(run.begin, run.end)], None
    if _info_at(head) is None:
        return [_info(head, run), Range(run.begin, run.end)], None
    changes, flaw = _changes(head, run)
    return patched(run.begin, run.end, changes), flaw


def _info(head: bytes, run: FrameRun) -> bytes:
    """The first frame again, long enough, with nothing in it but what it says."""
    frame = bytearray([head[0], head[1] | 1, 0, head[3]])
    for kbits in range(1, 15):
        frame[2] = kbits << 4 | head[2] & 0x0C
        size = (mpeg_frame(bytes(frame)) or NO_FRAME).size
        if size >= INFO_BYTES:
            break
    at = _place(head)
    said = struct.pack(">4sIII", b"Xing", FRAMES_SAID | BYTES_SAID, run.frames, size + run.end - run.begin)
    return bytes(frame) + (bytes(at - 4) + said).ljust(size - 4, b"\0")


def _changes(head: bytes, run: FrameRun) -> tuple[list[tuple[int, bytes]], Flaw | None]:
    """What it has to say instead. Of a file that was cut off, not so much may be left out at the end as of
    the whole one."""
    field = _place(head) + 8
    changes: list[tuple[int, bytes]] = []

    def say(at: int, number: int) -> None:
        if (said := number.to_bytes(4, "big")) != head[at : at + 4]:
            changes.append((run.begin + at, said))

    flags = int.from_bytes(head[field - 4 : field], "big")
    following, cut_off = run.frames - 1, False
    if flags & FRAMES_SAID:
        cut_off = int.from_bytes(head[field : field + 4], "big") > following + SLACK_FRAMES
        say(field, following)
        field += 4
    if flags & BYTES_SAID:
        say(field, run.end - run.begin)
        field += 4
    trims = field + (100 if flags & TABLE_SAID else 0) + (4 if flags & QUALITY_SAID else 0) + LAME_TRIMS
    if cut_off and len(head) >= trims + 3:
        changes.append((run.begin + trims, bytes([head[trims], head[trims + 1] & 0xF0, 0])))
    return changes, CUT_OFF if cut_off else None

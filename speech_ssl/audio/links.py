"""From a file to what is decoded: usually one recording, sometimes several that were joined.

Nothing is decoded here: the structure says what a file is, where its recordings begin and end, and whether it
was cut off.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from speech_ssl.audio import boxes, chunks, mp3, ogg, sphere
from speech_ssl.audio.errors import CUT_OFF, AudioError, Flaw
from speech_ssl.audio.files import File, Piece, Range, View
from speech_ssl.audio.formats import HEAD_BYTES, Container, known_formats, sniff
from speech_ssl.audio.frames import AMR_NB, AMR_WB, FRAMES, FrameRun, Frames, tag_bytes

MOST_TAGS = 8
MOST_LINKS = 10_000
WEAK: tuple[Container, ...] = ("mp3", "adts", "ac3", "eac3")
"""Signatures of a few bits that may be there by chance."""
JUNK_BEFORE: tuple[Container, ...] = ("mp3", "adts")
_OTHER = re.compile(rb"PK\x03\x04|RIFF|FORM|FLV|\x1aE\xdf\xa3|.{4}ftyp|.{257}ustar", re.DOTALL)
"""Archives and films, in which such frames may lie, are not junk."""


class Link(NamedTuple):
    """One recording. flaw: what is wrong at its end. seconds: its duration, if its frames say so."""

    kind: Container
    view: View
    flaw: Flaw | None = None
    seconds: float | None = None


def links_of(file: File, name: str) -> list[Link]:
    """At least one. Raises AudioError for what is not audio, or is known to be unreadable."""
    kind, begin = _recognised(file, name)
    if kind == "mp3":
        return _mp3(file, begin)
    links: list[Link] = []
    while True:
        file = file.behind(begin)
        found, begin = _links(file, kind, name)
        links += found
        if len(links) > MOST_LINKS:
            raise AudioError("undecodable", f"{name}: more than {MOST_LINKS} recordings joined; split it")
        if begin >= file.size or sniff(file.peek(begin, HEAD_BYTES)) != kind:
            return links


def _links(file: File, kind: Container, name: str) -> tuple[list[Link], int]:
    """Those up to the point where, by the first one's header, another may begin."""
    if kind == "ogg":
        found, flaw = ogg.links_of(file, name)
        links = [Link("flac" if one.codec == "flac" else "ogg", View(file, one.pieces)) for one in found]
        return [*links[:-1], links[-1]._replace(flaw=flaw)], file.size
    if kind in FRAMES or kind == "amr":
        return _framed(file, kind, name)
    pieces, flaw, end = _whole(file, kind, name)
    return [Link(kind, View(file, pieces), flaw)], end


def _recognised(file: File, name: str) -> tuple[Container, int]:
    """What it is, and where it begins."""
    head = file.peek(0, HEAD_BYTES)
    if not head:
        raise AudioError("empty", f"{name}: the file is empty")
    kind, at = sniff(head), 0
    for _ in range(MOST_TAGS):  # any format may hide behind a tag: look there
        if head[:3] != b"ID3" or not (skipped := tag_bytes(head)):
            break
        at += skipped
        head = file.peek(at, HEAD_BYTES)
        kind = sniff(head) if head else kind
    by_chance = kind in WEAK and not Frames(file, FRAMES[kind]).follow(at, 2)
    if kind is None or by_chance:
        found = _behind_junk(file, at if at < file.size else 0)
        if found is not None:
            return found
    free_bit_rate = kind == "mp3" and (head[:3] == b"ID3" or not head or head[2] >> 4 == 0)
    if kind is None or (by_chance and not free_bit_rate):  # whose frames cannot be followed
        raise AudioError("unsupported_format", f"{name}: not a known audio format; {known_formats()}")
    return kind, at


def _behind_junk(file: File, at: int) -> tuple[Container, int] | None:
    if _OTHER.match(file.peek(at, 512)):
        return None
    for kind in JUNK_BEFORE:
        begin = Frames(file, FRAMES[kind]).found(at)
        if begin is not None:
            return kind, begin
    return None


def _mp3(file: File, begin: int) -> list[Link]:
    rest = file.behind(begin)
    runs, flaw = Frames(rest, FRAMES["mp3"], mp3.is_info).runs(0)
    if not runs:
        return [Link("mp3", View(file, [Range(0, file.size)]))]
    found = [mp3.pieces_of(rest, run) for run in runs]
    links = [Link("mp3", View(rest, pieces), missing) for pieces, missing in found]
    links[-1] = links[-1]._replace(flaw=flaw or links[-1].flaw)
    untouched = found == [([Range(0, runs[0].end)], None)] and flaw is None
    head = file.peek(0, HEAD_BYTES)
    if untouched and begin == (tag_bytes(head) if head[:3] == b"ID3" else 0):  # libsndfile may open it itself
        links[0] = links[0]._replace(view=View(file, [Range(0, file.size)]))
    return links


def _framed(file: File, kind: Container, name: str) -> tuple[list[Link], int]:
    begin, frame_of = 0, FRAMES.get(kind)
    if frame_of is None:
        wide = file.peek(0, 9) == b"#!AMR-WB\n"
        begin, frame_of = (9, AMR_WB) if wide else (6, AMR_NB)
    runs, flaw = Frames(file, frame_of).runs(begin)
    if not runs:
        raise AudioError("undecodable" if flaw else "empty", f"{name}: no whole frame of audio in it")
    if kind == "wavpack":
        flaw = flaw or _missing_blocks(file, runs[0])
    if kind == "amr":  # behind a header
        runs = [runs[0]._replace(begin=0)]
    links = [Link(kind, View(file, [Range(run.begin, run.end)]), None, run.seconds) for run in runs]
    end = runs[-1].end
    goes_on = kind == "amr" and sniff(file.peek(end, HEAD_BYTES)) == kind
    return [*links[:-1], links[-1]._replace(flaw=None if goes_on else flaw)], end if goes_on else file.size


def _missing_blocks(file: File, run: FrameRun) -> Flaw | None:
    claimed = int.from_bytes(file.peek(run.begin + 12, 4), "little")
    return CUT_OFF if claimed != 0xFFFF_FFFF and claimed > run.samples else None


def _whole(file: File, kind: Container, name: str) -> tuple[list[Piece], Flaw | None, int]:
    if kind in ("wav", "w64", "aiff", "au", "caf"):
        return chunks.mended(file, kind)
    if kind == "sphere":
        return sphere.mended(file, name)
    end, flaw = file.size, None
    if kind == "mp4":
        end, flaw = boxes.end_of_mp4(file, name)
    elif kind == "matroska":
        end, flaw = boxes.end_of_matroska(file)
    elif kind == "asf":
        end, flaw = boxes.end_of_asf(file)
    elif kind == "voc":
        flaw = chunks.flaw_of_voc(file)
    return [Range(0, end)], flaw, end

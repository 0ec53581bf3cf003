"""Ogg: its pages, and the recordings in it.

Of several one after the other (a chain: joined messages, radio) each is a link. Of parallel streams (a
film's) the first audio stream is taken.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from speech_ssl.audio.errors import CUT_OFF, DAMAGED, AudioError, Flaw
from speech_ssl.audio.files import File, Piece, Range
from speech_ssl.audio.formats import known_formats

HEADER_BYTES = 27
MOST_PAGE_BYTES = HEADER_BYTES + 255 + 255 * 255
FIRST, LAST = 2, 4
JUNK_BYTES = 2_048
MOST_LINKS = 10_000

CODECS = {b"\x01vorbis": "vorbis", b"OpusHead": "opus", b"\x7fFLAC": "flac", b"Speex   ": "speex"}
_CODEC = re.compile(b"|".join(re.escape(start) for start in CODECS))
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """codec: of the audio stream whose first page this is."""

    begin: int
    body: int
    end: int
    flags: int
    granule: int
    serial: int
    number: int
    codec: str | None


@dataclass
class Link:
    """One audio recording: its codec, the pieces for its decoder, and its last page so far."""

    codec: str
    pieces: list[Piece]
    last: Page

    def add(self, page: Page) -> None:
        """FLAC is taken out of the container: apart from nine bytes, its content is a FLAC file."""
        begin, end = page.begin, page.end
        if self.codec == "flac":
            begin = page.body + (9 if page.flags & FIRST else 0)
        before = self.pieces[-1] if self.pieces else None
        if isinstance(before, Range) and before.end == begin:
            self.pieces[-1] = Range(before.begin, end)
        else:
            self.pieces.append(Range(begin, end))
        self.last = page

    def end(self, file: File) -> None:
        """Mark the last page as such if it is not: phones do not, and libsndfile takes that for damage."""
        before = self.pieces[-1]
        if self.last.flags & LAST or self.codec == "flac" or not isinstance(before, Range):
            return
        data = file.read_at(self.last.begin, self.last.end - self.last.begin)
        marked = data[:5] + bytes([data[5] | LAST]) + data[6:22] + bytes(4) + data[26:]
        marked = marked[:22] + _checksum(marked) + marked[26:]
        self.pieces[-1:] = [Range(before.begin, self.last.begin), marked]


def links_of(file: File, name: str) -> tuple[list[Link], Flaw | None]:
    """The links, and what is wrong at the end of the last. Raises AudioError if there is none."""
    links: list[Link] = []
    taken: Link | None = None
    opening, at, flaw = False, 0, None
    for page in _pages(file):
        first = bool(page.flags & FIRST)
        if first and not opening:
            taken = None
        opening, at = first, page.end
        if first and taken is None and page.codec is not None:
            taken = Link(page.codec, [], page)
            links.append(taken)
            if len(links) > MOST_LINKS:
                raise AudioError("undecodable", f"{name}: more than {MOST_LINKS} recordings joined; split it")
        elif taken is None or page.serial != taken.last.serial:
            continue
        elif _is_gap(taken.last, page):
            flaw = DAMAGED
            break
        taken.add(page)
    if not links:
        if at == 0 and _CODEC.search(file.peek(0, 2 * HEADER_BYTES)):
            raise AudioError("undecodable", f"{name}: its first page is damaged or cut off")
        said = f"{name}: Ogg with no sound in it that is read; {known_formats()}"
        raise AudioError("unsupported_format", said)
    for link in links:
        link.end(file)
    return links, flaw or _flaw(file, at)


def _is_gap(before: Page, page: Page) -> bool:
    """Whether pages are missing. A gap after the header pages does not count: recordings of radio begin
    there."""
    return page.number > before.number + 1 and before.granule != 0


def _pages(file: File) -> Iterator[Page]:
    """While they are whole."""
    at = 0
    while True:
        head = file.peek(at, HEADER_BYTES)
        if len(head) < HEADER_BYTES or head[:5] != b"OggS\0":
            return
        body = at + HEADER_BYTES + head[26]
        end = body + sum(file.peek(at + HEADER_BYTES, head[26]))
        data = file.peek(at, end - at)
        if len(data) < end - at or _checksum(data[:22] + bytes(4) + data[26:]) != head[22:26]:
            return
        start = _CODEC.match(data, body - at) if head[5] & FIRST else None
        yield Page(
            begin=at,
            body=body,
            end=end,
            flags=head[5],
            granule=int.from_bytes(head[6:14], "little"),
            serial=int.from_bytes(head[14:18], "little"),
            number=int.from_bytes(head[18:22], "little"),
            codec=CODECS[start.group()] if start else None,
        )
        at = end


def _checksum(page: bytes) -> bytes:
    """As written in a page. Ogg's CRC has the bits of each byte in the opposite order to zlib's."""
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return mirrored.to_bytes(4, "big").translate(_REVERSED)


def _flaw(file: File, at: int) -> Flaw | None:
    """What it means that there is no complete page."""
    rest = file.read_at(at, MOST_PAGE_BYTES)
    if not rest:
        return None
    if rest[:4] == b"OggS"[: len(rest)] and at + len(rest) == file.size and b"OggS" not in rest[4:]:
        return CUT_OFF
    return DAMAGED if len(rest) > JUNK_BYTES or b"OggS" in rest else None

"""WAV and its relatives, made of chunks, and AU: where their samples end, and where they should.

Recorders write the length last, and an interrupted recorder never does: what is there counts.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from speech_ssl.audio.errors import CUT_OFF, UNFINISHED, Flaw
from speech_ssl.audio.files import File, Piece, Range, patched
from speech_ssl.audio.formats import Container

SLACK_BYTES = 64
"""Some writers count the header as samples. So few missing bytes are not reported."""
JUNK_BYTES = 4_096
"""So many bytes after the samples count as padding, not as samples that the header does not mention."""
ENDLESS = (range(0x7FFF_0000, 0x8000_0001), range(0xFFFF_0000, 0x1_0000_0000), range(1 << 62, 1 << 64))
"""The lengths that writers into a pipe put there, since they cannot return to the header. Not an error."""
MOST_CHUNKS = 10_000


class Layout(NamedTuple):
    """first: where the first chunk begins. size: the format of a chunk's size, after its name. counts_itself:
    the size includes name and size. data: the name of the chunk of samples."""

    first: int
    name_bytes: int
    size: struct.Struct
    counts_itself: bool
    align: int
    data: bytes


W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
LAYOUTS: dict[bytes, Layout] = {
    b"RIFF": Layout(12, 4, struct.Struct("<I"), False, 2, b"data"),
    b"RF64": Layout(12, 4, struct.Struct("<I"), False, 2, b"data"),
    b"RIFX": Layout(12, 4, struct.Struct(">I"), False, 2, b"data"),
    b"FORM": Layout(12, 4, struct.Struct(">I"), False, 2, b"SSND"),
    b"riff": Layout(40, 16, struct.Struct("<Q"), True, 8, b"data" + W64_TAIL),
    b"caff": Layout(8, 4, struct.Struct(">Q"), False, 1, b"data"),
}


class Samples(NamedTuple):
    """Where samples begin, how many bytes of them are claimed, where and how this is written. added: what
    else is counted there. layout: of the chunks that may follow."""

    begin: int
    claimed: int
    said_at: int
    size: struct.Struct
    added: int = 0
    layout: Layout | None = None

    @property
    def end(self) -> int:
        return self.begin + self.claimed


def mended(file: File, kind: Container) -> tuple[list[Piece], Flaw | None, int]:
    """The file with a header for the samples that exist; what is wrong with it; and where it ends, because
    another file may have been joined to it."""
    samples = _samples_of_au(file) if kind == "au" else _samples_in_chunks(file)
    if samples is None or samples.begin > file.size:
        return [Range(0, file.size)], None, file.size
    flaw: Flaw | None = None
    if any(samples.claimed + samples.added in claims for claims in ENDLESS) and samples.end > file.size:
        pass
    elif samples.end > file.size:
        flaw = CUT_OFF if samples.end - file.size > SLACK_BYTES else None
    elif _go_on(file, samples):
        flaw = UNFINISHED
    else:  # libsndfile takes what follows in Wave64 for samples
        end = _end(file, samples)
        return [Range(0, samples.end if kind == "w64" else end)], None, end
    size = file.size - samples.begin + samples.added
    if size >= 1 << 8 * samples.size.size:
        return [Range(0, file.size)], flaw, file.size
    return patched(0, file.size, [(samples.said_at, samples.size.pack(size))]), flaw, file.size


def _end(file: File, samples: Samples) -> int:
    """The end of the file, or the beginning of another one."""
    ends = [samples.end]
    if samples.layout is not None:
        size = file.peek(16, 8) if samples.layout.counts_itself else file.peek(4, 4)
        said = int.from_bytes(size, "big" if samples.layout.size.format[0] == ">" else "little")
        ends += [_aligned(samples.end, samples.layout), said + (0 if samples.layout.counts_itself else 8)]
    return next((end for end in ends if _is_another(file, end)), file.size)


def _is_another(file: File, at: int) -> bool:
    return 0 < at < file.size and file.peek(at, 4) == file.peek(0, 4)


def flaw_of_voc(file: File) -> Flaw | None:
    """For its first block, usually the only one."""
    at = int.from_bytes(file.peek(20, 2), "little")
    head = file.peek(at, 4)
    end = at + 4 + int.from_bytes(head[1:], "little")
    return CUT_OFF if head[:1] in (b"\x01", b"\x09") and end > file.size + SLACK_BYTES else None


def _samples_of_au(file: File) -> Samples | None:
    head = file.peek(0, 12)
    if len(head) < 12:
        return None
    size = struct.Struct(">I" if head[:4] == b".snd" else "<I")
    (begin,), (claimed,) = size.unpack_from(head, 4), size.unpack_from(head, 8)
    return Samples(begin, claimed, 8, size)


def _samples_in_chunks(file: File) -> Samples | None:
    layout = LAYOUTS[file.peek(0, 4)]
    header_bytes = layout.name_bytes + layout.size.size
    in_ds64: Samples | None = None
    at = layout.first
    for _ in range(MOST_CHUNKS):
        head = file.peek(at, header_bytes)
        if len(head) < header_bytes:
            return None
        name, (size,) = head[: layout.name_bytes], layout.size.unpack_from(head, layout.name_bytes)
        added = header_bytes if layout.counts_itself else 0
        begin, size = at + header_bytes, max(size - added, 0)
        if name == layout.data:
            found = Samples(begin, size, at + layout.name_bytes, layout.size, added, layout)
            return in_ds64._replace(begin=begin) if in_ds64 and size == 0xFFFF_FFFF else found
        if name == b"ds64":
            claimed = int.from_bytes(file.peek(begin + 8, 8), "little")
            in_ds64 = Samples(0, claimed, begin + 8, struct.Struct("<Q"), 0, layout)
        at = _aligned(begin + size, layout)
    return None


def _aligned(at: int, layout: Layout) -> int:
    return -(-at // layout.align) * layout.align


def _go_on(file: File, samples: Samples) -> bool:
    """Whether samples continue after their stated end: nothing else that may follow is there."""
    rest = file.size - samples.end
    if _end(file, samples) < file.size:
        return False
    if samples.layout is not None:
        ends = (samples.end, _aligned(samples.end, samples.layout))
        if any(_is_chunk(file, end, samples.layout) for end in ends):
            return False
    if not samples.claimed:
        return rest > 0
    return rest > JUNK_BYTES and any(file.peek(samples.end, JUNK_BYTES))


def _is_chunk(file: File, at: int, layout: Layout) -> bool:
    head = file.peek(at, layout.name_bytes + layout.size.size)
    if len(head) < layout.name_bytes + layout.size.size:
        return False
    name, (size,) = head[: layout.name_bytes], layout.size.unpack_from(head, layout.name_bytes)
    plausible = name[4:] == layout.data[4:] and re.fullmatch(rb"[ -~]{4}", name[:4])
    return bool(plausible) and at + size <= file.size

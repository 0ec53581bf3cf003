"""NIST SPHERE, the format of many corpora: a text header, then samples.

libsndfile reads the samples, but not every form of the header, so it gets another one.
"""

from __future__ import annotations

import re

from speech_ssl.audio.errors import CUT_OFF, AudioError, Flaw
from speech_ssl.audio.files import File, Piece, Range

_LENGTH = re.compile(rb"NIST_1A\r?\n *(\d{1,7})\r?\n")
_FIELD = re.compile(rb"^(\w+) -(?:i|r|s\d+) ([^\r\n]*)", re.MULTILINE)
CODINGS = {b"pcm": b"pcm", b"ulaw": b"ulaw", b"mu-law": b"ulaw", b"mulaw": b"ulaw", b"alaw": b"alaw"}
SLACK_BYTES = 64
HEADER_BYTES = 1_024
MOST = 2**31 - 1


def mended(file: File, name: str) -> tuple[list[Piece], Flaw | None, int]:
    """The samples after a header that libsndfile understands. Raises AudioError for compressed ones."""
    start = _LENGTH.match(file.peek(0, 32))
    if start is None or b"\r" in start.group():
        raise AudioError(
            "undecodable",
            f"{name}: its SPHERE header is damaged, perhaps by a transfer as text: copy the original again",
        )
    begin = int(start.group(1))
    header = file.read_at(0, min(begin, 1 << 20)).partition(b"end_head")[0]
    fields = {field: value.strip() for field, value in _FIELD.findall(header)}
    coding, _, compressed = fields.get(b"sample_coding", b"pcm").lower().partition(b",")
    if compressed or coding not in CODINGS:
        how = (compressed or coding).decode("ascii", "replace")
        raise AudioError(
            "unsupported_format",
            f"{name}: SPHERE compressed ({how}); decompress it first: sph2pipe -f wav IN.sph OUT.wav",
        )
    rate = _number(fields, b"sample_rate", 0)
    if not rate:
        raise AudioError("undecodable", f"{name}: its SPHERE header says no sample rate")
    width = _number(fields, b"sample_n_bytes", 1 if coding != b"pcm" else 2)
    channels = _number(fields, b"channel_count", 1)
    order = fields.get(b"sample_byte_format", b"01")
    order = order if order in (b"01", b"10") and width == 2 else b"01" if width > 1 else b"1"
    lines = (
        b"NIST_1A\n   %d" % HEADER_BYTES,
        b"channel_count -i %d" % channels,
        b"sample_rate -i %d" % rate,
        b"sample_n_bytes -i %d" % width,
        b"sample_byte_format -s%d %s" % (len(order), order),
        b"sample_sig_bits -i %d" % (8 * width),
        b"sample_coding -s%d %s" % (len(CODINGS[coding]), CODINGS[coding]),
        b"end_head\n",
    )
    end = begin + width * channels * _number(fields, b"sample_count", 0)
    flaw = CUT_OFF if end > file.size + SLACK_BYTES else None
    end = end if begin < end <= file.size else file.size
    return [b"\n".join(lines).ljust(HEADER_BYTES, b"\0"), Range(min(begin, end), end)], flaw, end


def _number(fields: dict[bytes, bytes], field: bytes, default: int) -> int:
    try:
        return min(max(round(float(fields.get(field, default))), 0), MOST)
    except (ValueError, OverflowError):
        return default

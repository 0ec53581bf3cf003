"""Ogg taken apart and put together, by the specification and nothing of what is tested."""

from __future__ import annotations


def checksum(page: bytes) -> int:
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


def pages_of(content: bytes) -> list[bytes]:
    pages = []
    while content:
        assert content[:4] == b"OggS"
        end = 27 + content[26] + sum(content[27 : 27 + content[26]])
        pages.append(content[:end])
        content = content[end:]
    return pages


def changed(page: bytes, *, flags: int | None = None, serial: int | None = None) -> bytes:
    flagged = page[:5] + bytes([page[5] if flags is None else flags]) + page[6:]
    named = flagged[:14] + (page[14:18] if serial is None else serial.to_bytes(4, "little")) + flagged[18:]
    summed = checksum(named[:22] + bytes(4) + named[26:]).to_bytes(4, "little")
    return named[:22] + summed + named[26:]


def page(body: bytes, *, flags: int, serial: int, number: int) -> bytes:
    """Of one packet."""
    lacing = bytes([255] * (len(body) // 255) + [len(body) % 255])
    head = b"OggS\0" + bytes([flags]) + bytes(8) + serial.to_bytes(4, "little") + number.to_bytes(4, "little")
    return changed(head + bytes(4) + bytes([len(lacing)]) + lacing + body)

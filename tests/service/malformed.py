"""Over 300 uploads that are really malformed, made from real recordings and made-up sound; always the same.

Truncated ones end inside a header, or before the first sample: what ends later is audio up to there.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from speech_ssl.audio import sniff
from tests.service.support import encoded, tone
from tests.sounds import TIMIT, sphere
from tests.sounds_av import encoded_av, referring_to

OTHER_FILES = {
    "png": b"\x89PNG\r\n\x1a\n",
    "zip": b"PK\x03\x04",
    "gzip": b"\x1f\x8b\x08\x00",
    "pdf": b"%PDF-1.7\n",
    "html": b"<!doctype html><html>",
    "json": b'{"input": "AAAA"}',
    "playlist": b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\nfile:///etc/passwd\n",
    "heic": b"\x00\x00\x00\x20ftypheic",
    "webm": b"\x1a\x45\xdf\xa3\x01\x00\x00\x00",
    "avi": b"RIFF\x00\x10\x00\x00AVI LIST",
    "midi": b"MThd\x00\x00\x00\x06",
    "flv": b"FLV\x01\x05\x00\x00\x00\x09",
    "mpeg-ts": b"G@\x00\x10",
    "matlab": b"MATLAB 5.0 MAT-file",
    "monkey's audio": b"MAC \x96\x0f\x00\x00",
    "elf": b"\x7fELF\x02\x01\x01\x00",
}

SHORTEN = b"sample_coding -s26 pcm,embedded-shorten-v2.00"


class Case(NamedTuple):
    """`statuses`: what may be answered; by the contract it is one of them."""

    name: str
    data: bytes
    statuses: frozenset[int]


def cases(prompts: Path) -> list[Case]:
    rng = random.Random(20)
    recordings = [path.read_bytes() for path in sorted((prompts / "audio").rglob("*.flac"))[:20]]
    made: list[Case] = []
    for family in FAMILIES:
        for name, data, *statuses in family(rng, recordings):
            made.append(Case(f"{family.__name__}: {name}", data, frozenset(statuses)))
    return made


def wrong_magic(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    for index in range(40):
        data = recordings[index % 20] if index < 20 else as_wav(recordings[index % 20])
        while sniff(head := rng.randbytes(4) + data[4:64]):
            pass
        yield f"{head[:4]!r}", head[:4] + data[4:], 415


def other_files(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    for name, head in OTHER_FILES.items():
        yield name, head + rng.randbytes(2000), 415
    for length in (1, 2, 3, 100, 100_000):
        yield f"{length} zeros", bytes(length), 415


def truncated(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    wav, flac = as_wav(recordings[0]), recordings[1]
    for length in range(0, 44, 2):
        yield f"wav at {length}", wav[:length], 400, 415, 422
    for length in range(1, 42, 2):
        yield f"flac at {length}", flac[:length], 415, 422
    speech = soundfile.read(io.BytesIO(recordings[2]), dtype="float32")[0]
    for subtype in ("VORBIS", "OPUS"):
        ogg = encoded(speech, format="OGG", subtype=subtype)
        for length in range(3, 45, 6):
            yield f"{subtype} at {length}", ogg[:length], 415, 422
    mp3 = encoded(speech, format="MP3", subtype=None)
    for length in (1, 2, 3, 4, 10, 30):
        yield f"mp3 at {length}", mp3[:length], 415, 422
    m4a = encoded_av(speech)  # its header is at the end
    for length in (12, 40, 200, 1_000, len(m4a) // 2, len(m4a) - 200):
        yield f"m4a at {length}", m4a[:length], 422
    webm = encoded_av(speech, 16_000, "webm", "libopus")
    for length in (4, 20, 40, 60, 150, 300):
        yield f"webm at {length}", webm[:length], 400, 415, 422
    adts = encoded_av(speech, 16_000, "adts")
    for length in (1, 2, 5, 6, 7, 20):
        yield f"adts at {length}", adts[:length], 400, 415, 422
    aiff = encoded(speech, format="AIFF", subtype="PCM_16")
    for length in (4, 11, 12, 20, 37, 53):
        yield f"aiff at {length}", aiff[:length], 400, 415, 422


def lying_headers(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    wav, flac = as_wav(recordings[3]), recordings[4]
    for size in (1, 1000, 2**31 - 1, 2**31, 2**32 - 1):
        yield f"wav of {size} bytes, none there", wav_header(size=size), 400, 422
    for field, offset, pack, values in (
        ("channels", 22, "<H", (0,)),
        ("rate", 24, "<I", (0, 1, 3999, 192_001, 2**31, 2**32 - 1)),
        ("bits", 34, "<H", (0, 33, 65, 65535)),
        ("codec", 20, "<H", (0, 4, 0x0161, 0x00FF, 0x1234, 0xFFFD)),
        ("fmt size", 16, "<I", (0, 2, 2**31 - 1, 2**32 - 1)),
    ):
        for value in values:
            yield f"wav with {field} {value}", patched(wav, offset, struct.pack(pack, value)), 400, 415, 422
    for claimed in (0, 1, 2**36 - 1):
        long = encoded(np.zeros(8000 * 200, np.int16), rate=8000, format="FLAC", subtype="PCM_16")
        yield f"flac of {claimed} samples that is 200 s", with_total(long, claimed), 422
        empty = with_total(flac[: flac_frames_at(flac)], claimed)
        yield f"flac of {claimed} samples, none there", empty, 400, 422
    for rate in (0, 1, 3999, 200_000, 655_350):
        info = ((rate << 4) | (flac[20] & 15)).to_bytes(3, "big")
        yield f"flac at {rate} Hz", patched(flac, 18, info), 422


def other_codecs(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    for container, codec in (("matroska", "tta"), ("matroska", "real_144")):
        yield f"{codec} in {container}", encoded_av(tone(1.0, rate=8_000), 8_000, container, codec), 415
    yield "SPHERE in shorten", sphere(np.zeros(999, np.int16), *TIMIT[:-1], SHORTEN), 415


def elsewhere(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    for path in ("/etc/hostname", "/dev/zero", "/proc/self/environ", "/nowhere"):
        yield f"sound in {path}", referring_to(Path(path), 16_000), 400


def many_channels(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    for channels in (17, 18, 32, 100, 255, 256, 512, 999, 1000, 1024):
        for format, subtype in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16")):
            wave = np.zeros((40, channels), np.float32)
            yield f"{channels} in {format} {subtype}", encoded(wave, format=format, subtype=subtype), 422
    for channels in (1025, 4096, 65535):
        yield f"{channels} in WAV", wav_header(size=0, channels=channels) + bytes(200_000), 400, 422


def zero_or_few_samples(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    for form in ("WAV PCM_16", "WAV FLOAT", "FLAC PCM_16", "AIFF PCM_16", "RF64 PCM_16"):
        format, subtype = form.split()
        for samples in (0, 1, 50, 399):
            name = f"{samples} in {format} {subtype}"
            yield name, encoded(tone(1.0)[:samples], format=format, subtype=subtype), 400, 422


def not_finite(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    for index in range(30):
        wave = soundfile.read(io.BytesIO(recordings[index % 20]), dtype="float64")[0]
        worst = (np.nan, np.inf, -np.inf, 1e30, -1e30)[index % 5]
        wave[rng.randrange(len(wave))] = worst
        subtype, format = "DOUBLE" if index % 2 else "FLOAT", "WAV" if index % 3 else "AIFF"
        yield f"{worst} in clip {index}", encoded(wave, subtype=subtype, format=format), 422


def bombs(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    """Minutes of silence in a few kilobytes; the service under test takes two."""
    for rate, channels in ((8000, 1), (16_000, 1), (8000, 8), (44_100, 1), (48_000, 2), (96_000, 1)):
        wave = np.zeros((rate * 130, channels), np.int16)
        data = encoded(wave, rate=rate, format="FLAC", subtype="PCM_16")
        yield f"FLAC, {rate} Hz, {channels} channels, {len(data)} bytes", data, 422
    for rate in (8000, 16_000):
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", rate, 1, "OPUS", format="OGG") as sound:
            for _ in range(130):  # in pieces, for the encoder's stack
                sound.write(np.zeros(rate, np.float32))
        yield f"Opus, {rate} Hz, {len(file.getvalue())} bytes", file.getvalue(), 422
    for container, codec in (("ipod", "aac"), ("webm", "libopus"), ("adts", "aac"), ("matroska", "flac")):
        data = encoded_av(np.zeros(8000 * 130, np.float32), 8000, container, codec)
        yield f"{codec} in {container}, {len(data)} bytes", data, 422


def mutated(rng: random.Random, recordings: list[bytes]) -> Iterator[tuple]:
    """Bits flipped until nothing can be decoded: what comes before damage is no malformed upload."""
    made = 0
    while made < 45:
        data = scrambled(rng, recordings[made % 20])
        if sniff(data[:64]) == "flac" and not readable(data):
            made += 1
            yield f"flac {made}", data, 400, 422


FAMILIES: tuple[Callable[[random.Random, list[bytes]], Iterator[tuple]], ...] = (
    wrong_magic,
    other_files,
    truncated,
    lying_headers,
    other_codecs,
    elsewhere,
    many_channels,
    zero_or_few_samples,
    not_finite,
    bombs,
    mutated,
)


def scrambled(rng: random.Random, data: bytes) -> bytes:
    """Between one and 40 bytes replaced, mostly in the first 200."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 5, 40))):
        changed[rng.randrange(4, 200 if rng.random() < 0.7 else len(changed))] = rng.randrange(256)
    return bytes(changed)


def readable(data: bytes) -> bool:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            return len(sound.read(1)) > 0
    except (soundfile.SoundFileError, ValueError, TypeError):
        return False


def as_wav(flac: bytes) -> bytes:
    wave, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    return encoded(wave, rate=rate, subtype="PCM_16")


def wav_header(*, size: int, channels: int = 1, rate: int = 16_000) -> bytes:
    riff = struct.pack("<4sI4s4sI", b"RIFF", (36 + size) % 2**32, b"WAVE", b"fmt ", 16)
    align = 2 * channels % 2**16
    return riff + struct.pack("<HHIIHH4sI", 1, channels, rate, rate * 2 * channels, align, 16, b"data", size)


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def with_total(flac: bytes, samples: int) -> bytes:
    """Another number of samples in STREAMINFO: 36 bits, the last four of byte 21 and four bytes more."""
    first = bytes([flac[21] & 0xF0 | samples >> 32])
    return patched(flac, 21, first + (samples & 0xFFFFFFFF).to_bytes(4, "big"))


def flac_frames_at(flac: bytes) -> int:
    """Where the metadata ends."""
    at, last = 4, False
    while not last:
        last = bool(flac[at] & 0x80)
        at += 4 + int.from_bytes(flac[at + 1 : at + 4], "big")
    return at

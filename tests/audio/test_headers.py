"""Headers of WAV and its kin that were never finished, or that say something else than is there."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from speech_ssl.audio import AudioError, decode
from tests.audio.hearing import heard
from tests.sounds import RATE, SWITCHBOARD, TIMIT, encoded, mu_law, noise, sphere

SAMPLES = noise(3)


def said(kind: str, size: int, samples: np.ndarray = SAMPLES, subtype: str = "PCM_16") -> bytes:
    """With another number of bytes where the header says how many of samples there are."""
    content = encoded(samples, RATE, kind, subtype)
    place, form = {
        "WAV": (content.find(b"data") + 4, "<I"),
        "RF64": (content.find(b"ds64") + 16, "<Q"),
        "AIFF": (content.find(b"SSND") + 4, ">I"),
        "AU": (8, ">I"),
        "CAF": (content.find(b"data") + 4, ">Q"),
        "W64": (content.find(b"data") + 16, "<Q"),
    }[kind]
    number = struct.pack(form, size % (1 << 8 * struct.calcsize(form)))
    return content[:place] + number + content[place + len(number) :]


def chunk(kind: str, name: bytes, body: bytes) -> bytes:
    if kind == "W64":
        return (
            name
            + b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
            + struct.pack("<Q", 24 + len(body))
            + body
        )
    return name + struct.pack({"WAV": "<I", "RF64": "<I", "AIFF": ">I", "CAF": ">Q"}[kind], len(body)) + body


@pytest.mark.parametrize("kind", ["WAV", "RF64", "AIFF", "AU", "CAF", "W64"])
@pytest.mark.parametrize("size", [0, 24, 20_000])  # 24: what Wave64 says of no samples
def test_what_follows_an_unfinished_header_is_used_and_it_is_told(kind: str, size: int) -> None:
    """Recorders that were cut off left it at 0, or as it was when they last wrote it."""
    wave, told = heard(said(kind, size))
    np.testing.assert_array_equal(wave, decode(encoded(SAMPLES)))
    assert told == ["unfinished_header"]


@pytest.mark.parametrize(
    ("kind", "size"),
    [("WAV", 0xFFFFFFFF), ("WAV", 0x7FFFFFFF), ("WAV", 0x7FFFF000), ("AU", 0xFFFFFFFF)]
    + [("CAF", -1), ("W64", (1 << 63) - 1), ("AIFF", 0x7FFFFFFF), ("RF64", -1)],
)
def test_what_is_written_into_a_pipe_says_that_it_is_endless(kind: str, size: int) -> None:
    """And nothing is wrong with that."""
    wave, told = heard(said(kind, size))
    np.testing.assert_array_equal(wave, decode(encoded(SAMPLES)))
    assert not told


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU"])
@pytest.mark.parametrize("endian", ["BIG", "LITTLE"])
def test_either_order_of_bytes_is_read(kind: str, endian: str) -> None:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE, 1, "PCM_16", endian, kind) as sound:
        sound.write(SAMPLES)
    content = file.getvalue()
    whole = decode(encoded(SAMPLES))
    np.testing.assert_array_equal(heard(content)[0], whole)
    wave, told = heard(content[:-40_000])
    np.testing.assert_array_equal(wave, whole[: len(wave)])
    assert told == ["truncated"]
    np.testing.assert_array_equal(heard(content * 2)[0], np.concatenate([whole] * 2))


@pytest.mark.parametrize("extra", [4, 44])
def test_writers_that_count_the_header_are_forgiven(extra: int) -> None:
    assert heard(said("WAV", 2 * len(SAMPLES) + extra))[1] == []
    assert heard(said("WAV", 2 * len(SAMPLES) + 800))[1] == ["truncated"]


@pytest.mark.parametrize("kind", ["WAV", "RF64", "AIFF", "CAF", "W64"])
@pytest.mark.parametrize("size", [7, 6_000])
def test_what_follows_the_samples_is_not_heard(kind: str, size: int) -> None:
    content = encoded(SAMPLES, RATE, kind)
    wave, told = heard(content + chunk(kind, b"note", bytes(range(32, 39)) * (size // 7)))
    np.testing.assert_array_equal(wave, decode(encoded(SAMPLES)))
    assert not told


def test_a_file_of_no_samples_is_empty_whatever_follows() -> None:
    for content in (
        said("WAV", 0, SAMPLES[:0]),
        said("WAV", 0, SAMPLES[:0]) + chunk("WAV", b"LIST", b"of what there is"),
        said("AU", 0, SAMPLES[:0]),
        said("WAV", 0xFFFFFFFF, SAMPLES[:0]),
    ):
        with pytest.raises(AudioError) as caught:
            decode(content)
        assert caught.value.code == "empty"


def test_an_unfinished_header_of_another_codec() -> None:
    for subtype in ("GSM610", "ULAW", "MS_ADPCM"):
        whole = encoded(SAMPLES, RATE, "WAV", subtype)
        wave, told = heard(said("WAV", 0, SAMPLES, subtype))
        np.testing.assert_array_equal(wave[: 3 * RATE], decode(whole)[: 3 * RATE])
        assert told == ["unfinished_header"]


# --- SPHERE ----------------------------------------------------------------------------------------

PCM = (SAMPLES * 32_767).astype("<i2")


def replaced(lines: tuple[bytes, ...], **changes: bytes) -> list[bytes]:
    """A field's type and value; b"" leaves it out."""
    kept = []
    for line in lines:
        name = line.split()[0].decode()
        value = changes.get(name, line.split(b" ", 1)[1])
        kept += [name.encode() + b" " + (value % len(SAMPLES) if b"%d" in value else value)] if value else []
    return kept


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample_rate": b"-r 16000.000000"},
        {"sample_byte_format": b""},
        {"sample_count": b""},
        {"sample_sig_bits": b""},
        {"sample_byte_format": b"-s2 10"},
        {"database_id": b"-s26 A name; with end, and rates"},
    ],
)
@pytest.mark.parametrize("header_bytes", [1_024, 2_048])
def test_sphere_is_read_however_its_header_is_written(changes: dict[str, bytes], header_bytes: int) -> None:
    swapped = changes.get("sample_byte_format") == b"-s2 10"
    content = sphere(
        PCM.astype(">i2") if swapped else PCM, *replaced(TIMIT, **changes), header_bytes=header_bytes
    )
    wave, told = heard(content)
    np.testing.assert_allclose(wave, SAMPLES, atol=2**-14)
    assert not told


def test_sphere_in_mu_law_has_the_values_of_the_standard() -> None:
    """All 256, by G.711, in both channels."""
    codes = np.repeat(np.arange(256, dtype=np.uint8), 2)
    inverted = ~np.arange(256, dtype=np.uint8)
    magnitude = ((inverted & 15).astype(int) * 2 + 33 << (inverted >> 4 & 7)) - 33
    expected = np.where(inverted & 128, -magnitude, magnitude) * 4 / 32_768
    for coding in (b"-s4 ulaw", b"-s6 mu-law", b"-s4 ULAW"):
        lines = [b"sample_count -i 256" if line.startswith(b"sample_count") else line for line in SWITCHBOARD]
        lines = [b"sample_rate -i 16000" if line.startswith(b"sample_rate") else line for line in lines]
        lines = [b"sample_coding " + coding if line.startswith(b"sample_coding") else line for line in lines]
        np.testing.assert_array_equal(decode(sphere(codes, *lines)), expected.astype(np.float32))
    np.testing.assert_allclose(expected[mu_law(SAMPLES)], SAMPLES, atol=0.02)


@pytest.mark.parametrize("coding", [b"-s26 pcm,embedded-shorten-v2.00", b"-s27 ulaw,embedded-shorten-v2.00"])
def test_sphere_that_is_compressed_says_what_to_do(coding: bytes) -> None:
    with pytest.raises(AudioError, match=r"sph2pipe -f wav") as caught:
        decode(sphere(PCM, *TIMIT[:-1], b"sample_coding " + coding))
    assert caught.value.code == "unsupported_format" and "\n" not in str(caught.value)


def test_sphere_that_lost_its_line_ends_says_so() -> None:
    with pytest.raises(AudioError, match="copy the original again"):
        decode(sphere(PCM, *replaced(TIMIT)).replace(b"\n", b"\r\n"))

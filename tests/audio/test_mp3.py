"""MP3 behind something else, with a first frame that lies or without one; and what is no MP3."""

from __future__ import annotations

import random
import tarfile
import zipfile
from io import BytesIO

import numpy as np
import pytest

from speech_ssl.audio import AudioError, decode
from tests.audio.hearing import heard
from tests.sounds import RATE, encoded, noise
from tests.sounds_av import correlation, encoded_av, sound

MP3 = encoded(sound(4), RATE, "MP3", "MPEG_LAYER_III")
INFO = MP3.index(b"Xing")
FRAME = 288
"""The first one's bytes."""


def behind(junk: bytes) -> bytes:
    return junk + MP3


JUNK = {
    "zeros": bytes(20_000),
    "random": random.Random(1).randbytes(65_000),
    "half a frame": MP3[1_000:1_150],
    "one byte": b"\xff",
    "ape": b"APETAGEX" + b"\xd0\x07\0\0" + (1_000).to_bytes(4, "little") + bytes(16) + bytes(1_000),
    "a stream's answer": b"ICY 200 OK\r\nicy-name: radio\r\n\r\n",
    "64 KiB": random.Random(2).randbytes(1 << 16)[:-1],
    "chance syncs": b"\xff\xfb\x90\x64" * 4_000,
}


@pytest.mark.parametrize("junk", JUNK)
def test_mp3_behind_something_else_is_read(junk: str) -> None:
    wave, told = heard(behind(JUNK[junk]))
    np.testing.assert_array_equal(wave, decode(MP3))
    assert not told


def test_so_is_adts() -> None:
    pytest.importorskip("av")
    adts = encoded_av(sound(4), RATE, "adts", "aac")
    np.testing.assert_array_equal(decode(bytes(300) + adts), decode(adts))


def archive(kind: str) -> bytes:
    file = BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as opened:
            opened.writestr("a.mp3", MP3)
    else:
        with tarfile.open(fileobj=file, mode="w") as tar:
            info = tarfile.TarInfo("a.mp3")
            info.size = len(MP3)
            tar.addfile(info, BytesIO(MP3))
    return file.getvalue()


NO_MP3 = {
    "too far": random.Random(3).randbytes((1 << 16) + 5_000),
    "zip": archive("zip"),
    "tar": archive("tar"),
    "ones": b"\xff" * 100_000,
    "big-endian samples": (10 * noise(3)).astype(">i2").tobytes(),
    "little-endian samples": (10 * noise(3)).astype("<i2").tobytes(),
    "utf-16": ("speech and " * 5_000).encode("utf-16"),
    "five frames in a row": bytes(1_000) + MP3[: 3 * FRAME] + bytes(9_000),
}


@pytest.mark.parametrize("name", NO_MP3)
def test_what_is_no_mp3_is_not_taken_for_it(name: str) -> None:
    content = NO_MP3[name] + MP3 if name == "too far" else NO_MP3[name]
    with pytest.raises(AudioError) as caught:
        decode(content)
    assert caught.value.code == "unsupported_format"


def test_hundreds_of_random_files_are_no_mp3() -> None:
    rng = random.Random(5)
    for _ in range(200):
        with pytest.raises(AudioError):
            decode(b"\0" + rng.randbytes(20_000))


# --- what the first frame says ---------------------------------------------------------------------


def without_info() -> bytes:
    """Of a variable bit rate: a decoder that guesses by the first frame hears half of it."""
    return MP3[FRAME:]


def saying(frames: int) -> bytes:
    return MP3[: INFO + 8] + frames.to_bytes(4, "big") + MP3[INFO + 12 :]


@pytest.mark.parametrize("frames", [0, 1, 20, 10**6])
def test_frames_are_counted_not_believed(frames: int) -> None:
    whole = decode(MP3)
    wave, told = heard(saying(frames))
    assert abs(len(wave) - len(whole)) <= 1_152
    np.testing.assert_allclose(wave[:60_000], whole[:60_000], atol=1e-6)
    assert told == (["truncated"] if frames == 10**6 else [])


def test_all_of_a_file_that_does_not_say_how_long_it_is() -> None:
    wave, told = heard(without_info())
    assert 4 * RATE <= len(wave) < 4.2 * RATE and not told
    encoder_delay = 576  # nobody says now that it is to be left out
    assert correlation(wave[encoder_delay:][:60_000], decode(MP3)[:60_000]) > 0.999


def test_a_part_is_the_slice_of_the_whole() -> None:
    for content in (without_info(), saying(3), behind(bytes(500)), MP3 + MP3):
        whole = decode(content)
        np.testing.assert_allclose(
            decode(content, start_s=2, stop_s=3), whole[2 * RATE : 3 * RATE], atol=1e-6
        )


def test_tags_between_recordings_are_passed_over() -> None:
    id3 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
    id3_v1 = b"TAG" + bytes(125)
    wave, told = heard(id3 + MP3 + id3_v1 + id3 + MP3 + id3_v1)
    np.testing.assert_array_equal(wave, np.concatenate([decode(MP3)] * 2))
    assert not told


def test_layers_i_and_ii_and_all_rates() -> None:
    pytest.importorskip("av")
    for rate in (16_000, 22_050, 24_000, 32_000, 44_100, 48_000):
        for form in (("mp2", "mp2"), ("mp3", "libmp3lame")):
            wave, told = heard(encoded_av(sound(2, rate), rate, *form))
            assert 2 * RATE <= len(wave) < 2.2 * RATE and not told
    for rate in (8_000, 11_025, 12_000):
        wave, told = heard(encoded_av(sound(2, rate), rate, "mp3", "libmp3lame"))
        assert 2 * RATE <= len(wave) + 10 < 2.2 * RATE and not told

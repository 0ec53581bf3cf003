"""Decoding what cannot be trusted: headers that lie, what is refused and how, and any bytes at all."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speech_ssl import audio
from speech_ssl.audio import AudioError, Limits, decode, decoding, duration, formats, sniff, stream
from tests.sounds import FORMATS, RATE, count_frames, encoded, noise

NONE = Limits()


def refusal(source: audio.AudioSource, limits: Limits = NONE) -> AudioError:
    with pytest.raises(AudioError) as caught:
        decode(source, limits=limits)
    return caught.value


# --- headers that lie ------------------------------------------------------------------------------


def flac_claiming(samples: int, seconds: float = 10) -> bytes:
    """A FLAC file whose header gives another number of samples; 0 is "unknown"."""
    content = bytearray(encoded(noise(seconds), kind="FLAC"))
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = struct.pack(">I", samples & 0xFFFFFFFF)
    return bytes(content)


def wav_claiming(size: int) -> bytes:
    content = bytearray(encoded(noise(10)))
    assert content[36:40] == b"data"
    content[40:44] = struct.pack("<I", size)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(flac_claiming(0), id="flac-unknown"),
        pytest.param(flac_claiming(10**9), id="flac-too-many"),
        pytest.param(wav_claiming(0xFFFFFFFF), id="wav-streamed"),
        pytest.param(wav_claiming(1 << 30), id="wav-larger-than-file"),
    ],
)
def test_samples_are_counted_not_believed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(content)
    assert len(decode(content)) == 10 * RATE
    assert len(decode(content, limits=Limits(max_seconds=10))) == 10 * RATE
    assert refusal(content, Limits(max_seconds=9.9)).code == "too_long"
    assert duration(path) == 10.0
    np.testing.assert_array_equal(decode(content, start_s=3, stop_s=4), decode(content)[48_000:64_000])


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_a_bomb_is_defused_within_a_block_of_the_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames_read = count_frames(monkeypatch)
    silence = np.zeros(600 * 8_000, dtype=np.float32)
    content = encoded(silence, 8_000, kind, "VORBIS" if kind == "OGG" else "PCM_16")
    error = refusal(content, Limits(max_seconds=30))
    assert error.code == "too_long"
    assert "30 s" in str(error)
    assert sum(frames_read) <= 30 * 8_000 + decoding.BLOCK_SAMPLES


def test_streaming_takes_constant_memory() -> None:
    silence = np.zeros((120 * 48_000, 2), dtype=np.float32)
    content = encoded(silence, 48_000, "FLAC")
    del silence
    tracemalloc.start()
    try:
        samples = sum(len(block) for block in stream(content))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert samples == 120 * RATE  # 7.7 MB of them, from 46 MB
    assert peak < len(content) + 3_000_000


# --- refusals --------------------------------------------------------------------------------------


TAG = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)


def other(kind: str) -> bytes:
    return encoded(noise(1), kind=kind)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"this is a text, not a sound", id="text"),
        pytest.param(b"\x1a\x45\xdf\xa3" + bytes(200), id="ebml-of-no-type"),
        pytest.param(b"\x00\x00\x00\x20ftypheic" + bytes(200), id="picture"),
        pytest.param(b"RIFF\x24\x00\x00\x00AVI " + bytes(200), id="avi"),
        pytest.param(b"OggS\x00\x02" + bytes(22) + b"\x80theora" + bytes(200), id="ogg-video"),
        pytest.param(b"\xff\xff\xff\xff" * 50, id="no-mpeg-header"),
        pytest.param(other("PAF"), id="paf"),
        pytest.param(other("SVX"), id="svx"),
        pytest.param(other("MAT5"), id="mat5"),
        pytest.param(TAG + other("MAT5"), id="mat5-behind-a-tag"),
        pytest.param(TAG + TAG + other("HTK"), id="htk-behind-two"),
    ],
)
def test_only_known_formats_reach_the_decoder(content: bytes) -> None:
    error = refusal(content)
    assert error.code == "unsupported_format"
    assert all(known in str(error) for known in ("WAV", "FLAC", "Ogg Vorbis", "Ogg Opus", "MP3", "AIFF"))


@pytest.mark.parametrize("kind", ["MP3", "FLAC"])
def test_a_tag_in_front_is_passed(kind: str) -> None:
    content = encoded(noise(1), kind=kind, subtype="PCM_16" if kind == "FLAC" else "MPEG_LAYER_III")
    tagged = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256) + content
    np.testing.assert_allclose(decode(tagged), decode(content), atol=1e-6)


def test_a_chain_of_empty_tags_is_not_followed_to_its_end() -> None:
    """Ten bytes a tag: each would be a step of Python that holds up all other threads."""

    class Counting(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            return super().read(size)

    content = Counting(b"ID3\x04\0\0\0\0\0\0" * 1_000)
    refusal(content)
    assert content.reads < 100


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    error = refusal(tmp_path / "pipe.wav")
    assert error.code == "unsupported_format" and "pipe.wav: not a regular file" in str(error)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"", "empty", id="no-bytes"),
        pytest.param(encoded(noise(0)), "empty", id="no-samples"),
        pytest.param(encoded(noise(1))[:30], "undecodable", id="ends-in-the-header"),
        pytest.param(encoded(noise(0.1, channels=17)), "too_many_channels", id="17-channels"),
        pytest.param(encoded(noise(0.01, channels=1_000)), "too_many_channels", id="1000-channels"),
        pytest.param(encoded(noise(0.1), 3_999), "bad_rate", id="rate-too-low"),
        pytest.param(encoded(noise(0.1), 192_001), "bad_rate", id="rate-too-high"),
        pytest.param(encoded(np.array([0.0, np.nan] * 99), subtype="FLOAT"), "bad_samples", id="nan"),
        pytest.param(encoded(np.array([0.0, np.inf] * 99), subtype="FLOAT"), "bad_samples", id="inf"),
        pytest.param(encoded(np.array([0.0, -np.inf] * 99), subtype="FLOAT"), "bad_samples", id="-inf"),
        pytest.param(encoded(np.array([0.0, 1e30] * 99), subtype="FLOAT"), "bad_samples", id="huge"),
    ],
)
def test_refusals_have_a_code_and_name_the_file(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "culprit.wav"
    path.write_bytes(content)
    error = refusal(path)
    assert error.code == code
    assert "culprit.wav" in str(error)
    assert refusal(content).code == code


def test_nan_late_in_a_long_stereo_file_is_found() -> None:
    samples = noise(20, 44_100, 2)
    samples[-5, 1] = np.nan
    assert refusal(encoded(samples, 44_100, subtype="FLOAT")).code == "bad_samples"


def test_an_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(refusal(b"")))
    assert (error.code, str(error)) == ("empty", "audio: the file is empty")


def test_sniff_knows_each_container_and_no_other() -> None:
    for kind, subtype in FORMATS:
        head = encoded(noise(0.1), kind=kind, subtype=subtype)[: formats.HEAD_BYTES]
        assert sniff(head) == {"WAVEX": "wav", "RF64": "wav", "NIST": "sphere"}.get(kind, kind.lower())
    assert sniff(b"") is None


# --- anything at all -------------------------------------------------------------------------------

WHOLE = {(kind, subtype): encoded(noise(0.6), RATE, kind, subtype) for kind, subtype in FORMATS}


def cut(content: bytes, size: int) -> bytes:
    return content[:size]


def dented(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position : position + 3] = b"\xff\x00\x7f"
    return bytes(changed)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(FORMATS), st.sampled_from([cut, dented]), st.floats(0, 1), st.booleans())
@example(("AIFF", "PCM_16"), cut, 36.5 / 19_254, True)  # makes the decoder seek before the beginning
def test_no_bytes_make_anything_but_audio_or_a_refusal(
    form: tuple[str, str], harm: Callable[[bytes, int], bytes], where: float, early: bool
) -> None:
    content = WHOLE[form]
    position = int(where * (min(len(content), 250) if early else len(content)))
    try:
        wave = decode(harm(content, position), limits=Limits(max_seconds=5))
    except AudioError as error:
        assert error.code != "too_short"
    else:
        assert wave.size and np.isfinite(wave).all()


def test_a_broken_file_prints_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    content = WHOLE["AIFF", "PCM_16"]
    for size in range(54):  # none of them holds a sample
        assert isinstance(refusal(content[:size]), AudioError)
    assert "Traceback" not in capfd.readouterr().err

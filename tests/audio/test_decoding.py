"""Decoding: what comes out of each format, whole and in parts."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soxr

from speech_ssl.audio import AudioError, decode, duration
from tests.sounds import FORMATS, RATE, count_frames, encoded, noise

LOSSY = {"VORBIS", "OPUS", "MPEG_LAYER_III"}


def sine(hertz: float, seconds: float, rate: int) -> np.ndarray:
    time_S = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time_S)).astype(np.float32)


def peak_hertz(wave: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(np.argmax(spectrum)) * RATE / len(wave)


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
def test_every_format_gives_its_samples(kind: str, subtype: str, tmp_path: Path) -> None:
    samples = sine(440, 9.3, RATE)
    path = tmp_path / "clip"  # the name says nothing
    path.write_bytes(encoded(samples, RATE, kind, subtype))
    wave = decode(path)
    assert wave.dtype == np.float32
    assert wave.shape == samples.shape
    assert peak_hertz(wave) == pytest.approx(440, abs=0.2)
    if subtype not in LOSSY:
        np.testing.assert_allclose(wave, samples, atol=2**-15)
    assert duration(path) == len(samples) / RATE


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_resample_as_the_whole(rate: int, channels: int) -> None:
    samples = noise(7.37, rate, channels)  # several blocks, the last a short one
    expected = soxr.resample(samples.mean(axis=1), rate, RATE, quality="HQ")
    np.testing.assert_array_equal(decode(encoded(samples, rate, subtype="FLOAT")), expected)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_frequency(rate: int) -> None:
    wave = decode(encoded(sine(1_234, 3, rate), rate))
    assert len(wave) == 3 * RATE
    assert peak_hertz(wave) == pytest.approx(1_234, abs=0.2)


def test_what_16_khz_cannot_hold_is_filtered_not_folded() -> None:
    wave = decode(encoded(sine(10_000, 3, 44_100), 44_100, subtype="FLOAT"))
    assert np.abs(wave[RATE:-RATE]).max() < 1e-4  # 0.5 went in


def test_channels_are_averaged() -> None:
    left, right = sine(200, 1, RATE), sine(300, 1, RATE)
    wave = decode(encoded(np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(wave, (left + right) / 2, atol=1e-7)


def test_sixteen_khz_mono_floats_come_out_untouched() -> None:
    samples = noise(5)
    np.testing.assert_array_equal(decode(encoded(samples, subtype="FLOAT")), samples)


def test_a_source_may_be_a_path_bytes_or_an_open_file(tmp_path: Path) -> None:
    samples = noise(0.5)
    content = encoded(samples, subtype="FLOAT")
    path = tmp_path / "clip.raw"  # not taken as headerless samples for its name
    path.write_bytes(content)
    read_before = io.BytesIO(content)
    read_before.seek(77)
    with path.open("rb") as file:
        for source in (path, str(path), content, io.BytesIO(content), read_before, file):
            np.testing.assert_array_equal(decode(source), samples)


def test_a_pipe_can_be_read() -> None:
    samples = noise(3)
    content = encoded(samples, subtype="FLOAT")
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, "wb") as file:  # noqa: PTH123
            file.write(content)

    thread = threading.Thread(target=feed)
    thread.start()
    with open(reading, "rb") as file:  # noqa: PTH123
        np.testing.assert_array_equal(decode(file), samples)
    thread.join()


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.wav"):
        decode(tmp_path / "nowhere.wav")


# --- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "subtype"), FORMATS)
@pytest.mark.parametrize("part", [(0.0, 1.0), (4.3215, 7.1), (9.0, 10.0)])
def test_a_part_is_the_slice_of_the_whole(kind: str, subtype: str, part: tuple[float, float]) -> None:
    content = encoded(noise(10), RATE, kind, subtype)
    start, stop = (round(seconds * RATE) for seconds in part)
    wave = decode(content, start_s=part[0], stop_s=part[1])
    np.testing.assert_allclose(wave, decode(content)[start:stop], atol=1e-6)


def test_a_part_of_a_codec_that_cannot_seek() -> None:
    content = encoded(noise(4), RATE, "WAV", "GSM610")
    wave = decode(content, start_s=1.0, stop_s=2.5)
    np.testing.assert_allclose(wave, decode(content)[RATE : round(2.5 * RATE)], atol=1e-6)


def test_a_part_at_another_rate_is_resampled_alone() -> None:
    samples = noise(10, 44_100)
    wave = decode(encoded(samples, 44_100, subtype="FLOAT"), start_s=2, stop_s=4.5)
    expected = soxr.resample(samples[88_200 : round(4.5 * 44_100)], 44_100, RATE, quality="HQ")
    np.testing.assert_array_equal(wave, expected)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_part_of_a_long_file_is_sought(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames_read = count_frames(monkeypatch)
    decode(encoded(noise(60), kind=kind), start_s=50, stop_s=51)
    assert sum(frames_read) == RATE


def test_a_part_ends_where_the_audio_does() -> None:
    content = encoded(noise(2))
    assert len(decode(content, start_s=1.5, stop_s=99)) == RATE // 2
    with pytest.raises(AudioError, match="after 2 s") as caught:
        decode(content, start_s=2, stop_s=3)
    assert caught.value.code == "empty"


@pytest.mark.parametrize("part", [(-1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (float("nan"), 2.0)])
def test_a_part_that_is_none(part: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="start_s"):
        decode(encoded(noise(1)), start_s=part[0], stop_s=part[1])

"""What FFmpeg decodes: the same promises as for what libsndfile does, and nothing but the file itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soxr

pytest.importorskip("av")
import av

import speech_ssl
from speech_ssl import audio
from speech_ssl.audio import AudioError, Limits, decode, duration, stream
from speech_ssl.data.scanning import scan_folder
from tests.sounds import RATE
from tests.sounds_av import FORMATS_AV, NAMES, Form, correlation, encoded_av, sound

LOSSLESS = {"flac", "alac", "pcm_s16le"}
NONE = Limits()
every_format = pytest.mark.parametrize("form", FORMATS_AV, ids=NAMES)


def refusal(source: audio.AudioSource, limits: Limits = NONE) -> AudioError:
    with pytest.raises(AudioError) as caught:
        decode(source, limits=limits)
    return caught.value


# --- what comes out --------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [RATE, 48_000])
@every_format
def test_every_format_gives_its_samples(form: Form, rate: int, tmp_path: Path) -> None:
    container, codec, options = form
    samples = sound(7.3, rate)
    expected = samples if rate == RATE else soxr.resample(samples, rate, RATE, quality="HQ")
    path = tmp_path / "clip"  # the name says nothing
    path.write_bytes(encoded_av(samples, rate, container, codec, options))
    wave = decode(path)
    assert wave.dtype == np.float32
    if codec in LOSSLESS:
        np.testing.assert_allclose(wave, expected, atol=2**-14)
        return
    # What the encoder put in front is left out where the container says how much it is.
    unsaid = container == "adts" or "movflags" in options and container == "mp4"
    delay = round(1024 * RATE / rate) if unsaid else 0
    frame = round(1152 * RATE / rate)
    assert 0 <= len(wave) - delay - len(expected) <= frame
    wave = wave[delay : delay + len(expected)]
    assert correlation(wave, expected) > 0.99
    assert np.std(wave) / np.std(expected) == pytest.approx(1, abs=0.06)  # MP3 here is 5 % softer
    assert duration(path) == pytest.approx(len(decode(path)) / RATE, abs=0.05)


@every_format
def test_blocks_make_up_the_whole_and_bytes_are_as_files(form: Form, tmp_path: Path) -> None:
    content = encoded_av(sound(9), 48_000, *form)
    path = tmp_path / "clip"
    path.write_bytes(content)
    whole = decode(content)
    blocks = list(stream(io.BytesIO(content)))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    np.testing.assert_array_equal(decode(path), whole)


@every_format
@pytest.mark.parametrize("part", [(0.0, 1.0), (2.3215, 4.1), (5.0, 99.0)])
def test_a_part_is_the_slice_of_the_whole(form: Form, part: tuple[float, float]) -> None:
    content = encoded_av(sound(6), RATE, *form)
    rate = 48_000 if form[1] == "libopus" else RATE
    start, stop = (round(seconds * RATE) for seconds in part)
    wave, whole = decode(content, start_s=part[0], stop_s=part[1]), decode(content)[start:stop]
    assert len(wave) == pytest.approx(len(whole), abs=1)
    edge = 0 if rate == RATE else 200  # a part at another rate is resampled alone
    inner = slice(edge, min(len(wave), len(whole)) - edge)
    np.testing.assert_allclose(wave[inner], whole[inner], atol=1e-3 if edge else 1e-7)


def test_a_part_after_the_end_is_empty() -> None:
    with pytest.raises(AudioError, match="after 3 s") as caught:
        decode(encoded_av(sound(2)), start_s=3, stop_s=4)
    assert caught.value.code == "empty"


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s24be", "pcm_s32le", "pcm_f32le", "pcm_f64be", "pcm_mulaw"])
def test_every_sample_format_has_its_scale(codec: str) -> None:
    samples = sound(1)
    wave = decode(encoded_av(samples, RATE, "mov", codec))
    np.testing.assert_allclose(wave, samples, atol={"pcm_u8": 2**-6, "pcm_mulaw": 0.02}.get(codec, 1e-6))


@pytest.mark.parametrize(
    "form", [("ipod", "aac"), ("webm", "libopus"), ("mov", "pcm_s16le"), ("mp4", "flac")]
)
@pytest.mark.parametrize("channels", [2, 6, 8])
def test_channels_are_averaged(form: tuple[str, str], channels: int) -> None:
    """Also of eight: PyAV's own way to the samples of that many crashes."""
    if form[1] == "flac" and channels == 6:
        channels = 2
    samples = np.zeros((3 * 48_000, channels), dtype=np.float32)
    samples[:, 0] = sound(3, 48_000)
    wave = decode(encoded_av(samples, 48_000, *form))
    expected = soxr.resample(samples.mean(axis=1), 48_000, RATE, quality="HQ")
    assert correlation(wave[: len(expected)], expected) > 0.98
    assert np.std(wave) / np.std(expected) == pytest.approx(1, abs=0.1)


def test_the_sound_of_a_film_is_found() -> None:
    """With a picture track in front, which is not decoded, and a second sound track, which is not taken."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as film:
        picture = film.add_stream("mpeg4", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        tracks = [film.add_stream("aac", rate=RATE, layout="mono") for _ in range(2)]
        for number in range(25):
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            film.mux(picture.encode(image))
        for track, wave in zip(tracks, (sound(1), np.zeros(RATE, np.float32)), strict=True):
            frame = av.AudioFrame.from_ndarray(wave[None], format="flt", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            film.mux(track.encode(frame))
        for track in (picture, *tracks):
            film.mux(track.encode(None))
    wave = decode(file.getvalue())
    assert correlation(wave[:RATE], sound(1)) > 0.98


def test_a_tag_in_front_of_adts_is_passed() -> None:
    content = encoded_av(sound(1), RATE, "adts")
    tagged = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256) + content
    np.testing.assert_array_equal(decode(tagged), decode(content))


# --- limits ----------------------------------------------------------------------------------------


@every_format
def test_a_bomb_is_defused_and_memory_is_bounded(form: Form) -> None:
    content = encoded_av(np.zeros(90 * RATE, dtype=np.float32), RATE, *form)
    error = refusal(content, Limits(max_seconds=30))
    assert error.code == "too_long" and "30 s" in str(error)
    tracemalloc.start()
    try:
        samples = sum(len(block) for block in stream(content))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert samples >= 90 * RATE  # 5.8 MB of them
    assert peak < 3_000_000


@pytest.mark.parametrize("form", [("ipod", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("mov", "pcm_s16le")])
def test_limits_hold(form: tuple[str, str]) -> None:
    stereo = encoded_av(np.zeros((RATE, 2), dtype=np.float32), RATE, *form)
    assert refusal(stereo, Limits(max_channels=1)).code == "too_many_channels"
    assert refusal(stereo, Limits(max_rate=12_000)).code == "bad_rate"
    assert refusal(stereo, Limits(min_rate=96_000)).code == "bad_rate"


@pytest.mark.parametrize("worst", [np.nan, np.inf, 1e30, -1e300])
def test_samples_that_are_no_numbers(worst: float) -> None:
    content = bytearray(encoded_av(sound(1), RATE, "mov", "pcm_f64be"))
    content[50_000:50_008] = b"\0" * 8
    at = content.index(b"mdat") + 4 + 8 * 5_000
    content[at : at + 8] = np.array(worst, dtype=">f8").tobytes()
    assert refusal(bytes(content)).code == "bad_samples"


# --- where files are named ------------------------------------------------------------------------


def test_manifests_and_models_take_them(tmp_path: Path, tiny_artifact: Path) -> None:
    for name, form in (
        ("a.m4a", ("ipod", "aac")),
        ("b.webm", ("webm", "libopus")),
        ("c.aac", ("adts", "aac")),
    ):
        (tmp_path / name).write_bytes(encoded_av(sound(2.5), RATE, *form))
    scan = scan_folder(tmp_path)
    names = [utterance.path.name for utterance in scan.utterances]
    assert names == ["a.m4a", "b.webm", "c.aac"] and not scan.failures
    assert [utterance.duration_s for utterance in scan.utterances] == pytest.approx([2.5] * 3, abs=0.15)
    runtime = speech_ssl.load(str(tiny_artifact))
    for utterance in scan.utterances:
        frames = [runtime.encode([source])[0].frames for source in (utterance.path, decode(utterance.path))]
        np.testing.assert_array_equal(*frames)


# --- without the extra -----------------------------------------------------------------------------


def test_without_pyav_they_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "clip.m4a"
    path.write_bytes(encoded_av(sound(0.5)))
    code = """if True:
        import sys, json
        sys.modules["av"] = None  # as if it were not installed
        from speech_ssl import audio
        try:
            audio.decode(sys.argv[1])
        except audio.AudioError as error:
            print(json.dumps([error.code, str(error), audio.FORMATS]))
    """
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    refused, message, formats = json.loads(done.stdout)
    assert refused == "unsupported_format"
    assert "clip.m4a" in message and "pip install 'speech-ssl[av]'" in message and "WAV" in message
    assert not any("M4A" in name or "WebM" in name for name in formats)
    assert any("M4A" in name for name in audio.FORMATS) and any("WebM" in name for name in audio.FORMATS)


def test_pyav_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, speech_ssl.audio as a; a.sniff(b''); print('av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_decoding_leaks_nothing_that_counts() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def decode_all(times: int) -> None:
        for _ in range(times):
            for content in whole:
                decode(content)

    whole = [encoded_av(sound(0.6), RATE, *form) for form in FORMATS_AV]
    decode_all(10)
    before = resident()
    decode_all(60)
    assert resident() - before < 8 << 20

"""Recordings that were joined into one file are all heard; streams side by side are one."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from speech_ssl.audio import AudioError, Limits, decode
from tests.audio.hearing import heard
from tests.audio.ogg_pages import changed, page, pages_of
from tests.sounds import RATE, encoded, noise
from tests.sounds_av import sound

VORBIS = encoded(sound(2), RATE, "OGG", "VORBIS")
OPUS = encoded(sound(1.5, 48_000), 48_000, "OGG", "OPUS")
STEREO = encoded(np.stack([sound(1, 44_100), 0.5 * sound(1, 44_100)], axis=1), 44_100, "OGG", "VORBIS")


def joined(*contents: bytes) -> np.ndarray:
    return np.concatenate([decode(content) for content in contents])


@pytest.mark.parametrize("links", list(itertools.permutations([VORBIS, OPUS, STEREO])))
def test_every_link_of_a_chain_is_heard(links: tuple[bytes, ...]) -> None:
    wave, told = heard(b"".join(links))
    np.testing.assert_array_equal(wave, joined(*links))
    assert len(wave) == pytest.approx(4.5 * RATE, abs=2) and not told


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("MP3", "MPEG_LAYER_III"),
        ("WAV", "PCM_16"),
        ("WAV", "GSM610"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("NIST", "PCM_16"),
    ],
)
def test_files_written_one_behind_the_other_are_all_heard(kind: str, subtype: str) -> None:
    one, other = encoded(sound(2), RATE, kind, subtype), encoded(sound(1, 22_050), 22_050, kind, subtype)
    wave, told = heard(one + other)
    np.testing.assert_array_equal(wave, joined(one, other))
    assert not told


@pytest.mark.parametrize("container", ["adts", "amr", "mp4", "ogg-flac", "ogg-speex"])
def test_so_are_those_that_ffmpeg_reads(container: str) -> None:
    pytest.importorskip("av")
    from tests.audio.test_formats import RECORDINGS
    from tests.sounds_av import encoded_av

    if container == "ogg-speex":
        one = other = (RECORDINGS / "hello.spx").read_bytes()
    elif container == "amr":
        one = encoded_av(sound(2, 8_000), 8_000, "amr", "libopencore_amrnb")
        other = encoded_av(sound(1, 8_000), 8_000, "amr", "libopencore_amrnb")
    else:
        form = ("ogg", "flac") if container == "ogg-flac" else (container, "aac")
        one, other = encoded_av(sound(2), RATE, *form), encoded_av(sound(1, 48_000), 48_000, *form)
    wave, told = heard(one + other)
    np.testing.assert_array_equal(wave, joined(one, other))
    assert not told


@pytest.mark.parametrize("part", [(0.0, 1.0), (1.5, 2.25), (2.0, 3.0), (2.5, 3.75), (3.6, 99.0), (0.0, 99.0)])
def test_a_part_may_lie_anywhere_in_a_chain(part: tuple[float, float]) -> None:
    """Each recording is resampled alone, and so is each part."""
    content = VORBIS + OPUS + STEREO
    start, stop = (round(seconds * RATE) for seconds in part)
    wave, whole = decode(content, start_s=part[0], stop_s=part[1]), decode(content)[start:stop]
    assert len(wave) == pytest.approx(len(whole), abs=2)
    near = np.convolve(np.abs(wave[: len(whole)] - whole[: len(wave)]) > 1e-2, np.ones(400), "same") > 0
    assert near.mean() < 0.15, "only where a part begins or ends"
    with pytest.raises(AudioError, match="after 4.6 s"):
        decode(content, start_s=4.6)


def test_limits_hold_for_all_of_them_together() -> None:
    content = VORBIS * 3
    assert len(decode(content, limits=Limits(max_seconds=6))) == 6 * RATE
    with pytest.raises(AudioError) as caught:
        decode(content, limits=Limits(max_seconds=5.9))
    assert caught.value.code == "too_long"
    with pytest.raises(AudioError) as caught:
        decode(VORBIS + STEREO, limits=Limits(max_channels=1))
    assert caught.value.code == "too_many_channels"


def test_so_many_recordings_are_refused() -> None:
    small = encoded(noise(0.001), 8_000, "AU")
    with pytest.raises(AudioError, match="more than 10000 recordings"):
        decode(small * 10_001)


def test_a_link_that_cannot_be_read_ends_what_is_used() -> None:
    video = page(b"\x80theora" + bytes(30), flags=2, serial=9, number=0)
    wave, told = heard(VORBIS + video)
    np.testing.assert_array_equal(wave, decode(VORBIS))
    assert not told, "there is no sound in it"
    broken = pages_of(OPUS)
    wave, told = heard(VORBIS + broken[0] + broken[2])
    np.testing.assert_array_equal(wave, decode(VORBIS))
    assert told == ["truncated"]


# --- side by side ----------------------------------------------------------------------------------


def side_by_side(*streams: list[bytes]) -> bytes:
    """First pages first, the others as it comes."""
    streams = tuple(
        [changed(one, serial=number) for one in stream] for number, stream in enumerate(streams, 7)
    )
    rest, rng = [stream[1:] for stream in streams], random.Random(0)
    mixed = [stream[0] for stream in streams]
    while any(rest):
        mixed.append(rng.choice([stream for stream in rest if stream]).pop(0))
    return b"".join(mixed)


def test_of_streams_side_by_side_the_first_of_sound_is_heard() -> None:
    video = [page(b"\x80theora" + bytes(30), flags=2, serial=1, number=0)]
    video += [page(bytes(300), flags=0, serial=1, number=number) for number in range(1, 20)]
    vorbis, opus = pages_of(VORBIS), pages_of(OPUS)
    for streams, expected in (
        ((vorbis, opus), VORBIS),
        ((opus, vorbis), OPUS),
        ((video, vorbis), VORBIS),
        ((vorbis, video), VORBIS),
        ((video, opus, vorbis), OPUS),
    ):
        content = side_by_side(*streams)
        wave, told = heard(content)
        np.testing.assert_array_equal(wave, decode(expected))
        assert not told
        np.testing.assert_array_equal(decode(content + content), joined(expected, expected))


def test_ogg_without_sound_is_refused() -> None:
    for content in (page(b"\x80theora" + bytes(30), flags=2, serial=1, number=0), b"OggS" + bytes(100)):
        with pytest.raises(AudioError) as caught:
            decode(content)
        assert caught.value.code == "unsupported_format" and "Ogg Opus" in str(caught.value)

"""What is wrong with audio that is used all the same: told, once, by a code and in one line."""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest

from speech_ssl.audio import AudioError, AudioWarning, decode
from tests import sounds_av
from tests.audio.hearing import heard
from tests.audio.ogg_pages import changed, pages_of
from tests.sounds import FORMATS, RATE, encoded, noise, switchboard, timit
from tests.sounds_av import encoded_av, sound

needs_av = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="the extra `av` is not installed"
)


# --- cut off ---------------------------------------------------------------------------------------

NO_LENGTH = {"IRCAM"}
WHOLE = {
    "-".join(form): encoded(0.3 * noise(10), RATE, *form) for form in FORMATS if form[0] not in NO_LENGTH
} | {"timit": timit(noise(10)), "switchboard": switchboard(noise(10, 8_000))}
if importlib.util.find_spec("av"):
    for container, codec, options in sounds_av.FORMATS_AV:
        options = {"movflags": "faststart"} if container in ("mov", "mp4", "ipod") else options
        WHOLE[f"{container}-{codec}"] = encoded_av(0.3 * noise(10), RATE, container, codec, options)
    for container, codec, rate in sounds_av.MORE_AV:
        if container not in ("mp4", "mov", "3gp"):  # their index comes last
            rate = 48_000 if codec == "wavpack" else rate  # its blocks are long
            WHOLE[f"{container}-{codec}"] = encoded_av(0.3 * noise(10, rate), rate, container, codec)


@pytest.mark.parametrize("form", WHOLE)
def test_of_a_file_that_is_cut_off_what_is_left_is_used_and_it_is_told(form: str) -> None:
    whole = decode(WHOLE[form])
    for share in (0.3, 0.6, 0.9):
        wave, told = heard(WHOLE[form][: int(share * len(WHOLE[form]) / 2) * 2 + 1])
        assert told == ["truncated"]
        assert (share - 0.3) * len(whole) < len(wave) < (share + 0.15) * len(whole)
        # Of a lossy codec, what was lost overlaps with what is left.
        checked = len(wave) - 3_000
        np.testing.assert_allclose(wave[:checked], whole[:checked], atol=1e-5)


@pytest.mark.parametrize("form", WHOLE)
def test_parts_tell_what_concerns_them(form: str) -> None:
    content = WHOLE[form][: int(0.75 * len(WHOLE[form]))]
    whole = decode(content)
    told: list[AudioWarning] = []
    early = decode(content, start_s=1, stop_s=2, warn=told.append)
    assert len(early) == RATE and not told
    late = decode(content, start_s=3, stop_s=99, warn=told.append)
    assert len(late) == pytest.approx(len(whole) - 3 * RATE, abs=1)
    assert [warning.code for warning in told] == ["truncated"]
    said = re.search(r"after ([\d.]+) s", told[0].message)
    assert said and float(said[1]) == pytest.approx(len(whole) / RATE, abs=0.01), (
        "of the file, not of the part"
    )
    with pytest.raises(AudioError, match="after 9.9 s") as caught:
        decode(content, start_s=9.9, stop_s=99)
    assert caught.value.code == "empty"


def test_padding_and_tags_behind_the_sound_are_nothing_to_tell() -> None:
    id3_v1 = b"TAG" + bytes(125)
    ape = b"APETAGEX" + (2_000).to_bytes(4, "little").rjust(8, b"\0") + bytes(16 + 2_000)
    for subtype in ("VORBIS", "OPUS"):
        assert heard(encoded(sound(1), RATE, "OGG", subtype) + id3_v1)[1] == []
    mp3 = encoded(sound(1), RATE, "MP3", "MPEG_LAYER_III")
    for behind in (id3_v1, ape, bytes(500), ape + id3_v1):
        wave, told = heard(mp3 + behind)
        np.testing.assert_array_equal(wave, decode(mp3))
        assert not told
    assert heard(encoded(sound(1)) + bytes(900))[1] == []


def test_a_missing_mark_of_the_end_is_nothing_to_tell() -> None:
    """Phones do not write it."""
    pages = pages_of(encoded(sound(2), RATE, "OGG", "OPUS"))
    unmarked = b"".join([*pages[:-1], changed(pages[-1], flags=0)])
    wave, told = heard(unmarked)
    assert len(wave) > 1.9 * RATE and not told


# --- damaged ---------------------------------------------------------------------------------------


def dented(content: bytes, share: float, length: int) -> bytes:
    at = int(share * len(content))
    return content[:at] + bytes(byte ^ 0xA5 for byte in content[at : at + length]) + content[at + length :]


@pytest.mark.parametrize(
    ("kind", "subtype", "length"),
    [("FLAC", "PCM_16", 1), ("FLAC", "PCM_16", 9_000), ("OGG", "VORBIS", 1), ("OGG", "OPUS", 1)]
    + [("MP3", "MPEG_LAYER_III", 3_000)],
)
def test_of_a_damaged_file_what_comes_before_is_used(kind: str, subtype: str, length: int) -> None:
    content = encoded(0.3 * noise(12), RATE, kind, subtype)
    wave, told = heard(dented(content, 0.6, length), seen_without_decoding=False)
    assert told == ["truncated"]
    assert 5 * RATE < len(wave) < 8 * RATE
    np.testing.assert_allclose(wave[:-2_000], decode(content)[: len(wave) - 2_000], atol=1e-5)


@needs_av
@pytest.mark.parametrize(
    ("container", "codec", "length"),
    [("ipod", "alac", 8_000), ("mp4", "flac", 8_000), ("mp4", "flac", 1), ("adts", "aac", 3_000)]
    + [("ogg", "flac", 1), ("ac3", "ac3", 3_000), ("eac3", "eac3", 3_000), ("amr", "libopencore_amrnb", 99)]
    + [("matroska", "flac", 1), ("webm", "libopus", 20_000)],
)
def test_so_it_is_where_ffmpeg_decodes(container: str, codec: str, length: int) -> None:
    rate = 48_000 if "ac3" in codec else 8_000 if "amr" in codec else RATE
    content = encoded_av(0.3 * noise(12, rate), rate, container, codec)
    wave, told = heard(dented(content, 0.6, length), seen_without_decoding=False)
    assert told == ["truncated"]
    assert 4 * RATE < len(wave) < 8 * RATE
    np.testing.assert_allclose(wave[:-3_000], decode(content)[: len(wave) - 3_000], atol=1e-5)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_page_that_is_missing_is_damage(subtype: str) -> None:
    pages = pages_of(encoded(0.3 * noise(12), RATE, "OGG", subtype))
    whole = decode(b"".join(pages))
    gone = len(pages) // 2
    wave, told = heard(b"".join(pages[:gone] + pages[gone + 1 :]))
    assert told == ["truncated"] and 3 * RATE < len(wave) < 10 * RATE
    np.testing.assert_allclose(wave[:-2_000], whole[: len(wave) - 2_000], atol=1e-5)


def test_who_listens_in_to_radio_misses_nothing() -> None:
    """The header, and then pages from the middle."""
    pages = pages_of(encoded(0.3 * noise(8), RATE, "OGG", "OPUS"))
    wave, told = heard(b"".join(pages[:2] + pages[len(pages) // 2 :]))
    assert not told and len(wave) > 2 * RATE


# --- opposite phase --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("leak", [0.0, 0.05])
def test_channels_in_opposite_phase_are_told(offset: float, leak: float) -> None:
    left = noise(3, 48_000)
    stereo = np.stack([left, -(1 - leak) * left], axis=1) + np.float32(offset)
    assert heard(encoded(stereo, 48_000, subtype="FLOAT"))[1] == ["opposite_phase"]


def test_other_channels_are_nothing_to_tell() -> None:
    rng, left = np.random.default_rng(1), noise(3)
    for channels in (
        np.stack([left, left], axis=1),
        np.stack([left, 0 * left], axis=1),
        np.stack([left, np.roll(left, 8)], axis=1),
        rng.uniform(-0.3, 0.3, (32_000, 16)),  # nothing in common
        np.zeros((32_000, 2)),
        np.full((32_000, 2), 0.25),
        np.full((32_000, 2), 0.25) * [1, -1],
        left,
    ):
        assert not heard(encoded(channels.astype(np.float32), subtype="FLOAT"))[1]


def test_each_is_told_once_and_nobody_has_to_listen() -> None:
    left = noise(2)
    flac = encoded(np.stack([left, -left], axis=1), kind="FLAC")
    cut_off = flac[: len(flac) // 2]
    assert sorted(heard(cut_off)[1]) == ["opposite_phase", "truncated"]
    assert heard(encoded(np.stack([left, -left], axis=1)) * 2)[1] == ["opposite_phase"], "of two joined"
    decode(cut_off)

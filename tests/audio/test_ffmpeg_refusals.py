"""What FFmpeg is not to decode, or cannot: refused, with nothing but the file itself looked at."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")
import av

from speech_ssl import audio
from speech_ssl.audio import AudioError, Limits, decode, sniff
from tests.sounds import RATE, encoded
from tests.sounds_av import FORMATS_AV, NAMES, Form, encoded_av, referring_to, sound

NONE = Limits()
every_format = pytest.mark.parametrize("form", FORMATS_AV, ids=NAMES)


def refusal(source: audio.AudioSource, limits: Limits = NONE) -> AudioError:
    with pytest.raises(AudioError) as caught:
        decode(source, limits=limits)
    return caught.value


# --- what is refused -------------------------------------------------------------------------------


def test_a_file_elsewhere_is_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((10_000 * sound(2)).astype("<i2").tobytes())
    content = referring_to(secret, RATE)
    open_to_all = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(io.BytesIO(content), format="mov", container_options=open_to_all) as movie:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in movie.decode(audio=0)])
    assert len(heard) == RATE and heard.any()  # so the file would do what it is made for
    assert refusal(content).code in ("empty", "undecodable")


def test_options_each_forbid_what_they_should(tmp_path: Path) -> None:
    from speech_ssl.audio.ffmpeg import OPTIONS

    secret = tmp_path / "secret"
    secret.write_bytes(b"\1" * 2 * RATE)
    content = referring_to(secret, RATE)
    for allowed in ({"enable_drefs": "1", "use_absolute_path": "1"}, {"protocol_whitelist": "file"}):
        with av.open(io.BytesIO(content), format="mov", container_options=OPTIONS | allowed) as movie:
            assert not list(movie.decode(audio=0))


PLAYLISTS = {
    "hls": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    "dash": b'<?xml version="1.0"?><MPD type="static"></MPD>',
    "heic": b"\0\0\0\x20ftypheic" + bytes(100),
    "avif": b"\0\0\0\x20ftypavif" + bytes(100),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    "ebml": b"\x1a\x45\xdf\xa3\x8bB\x82\x88mischief" + bytes(100),
    "mpeg-ts": b"G@\0\x10" + bytes(184) + b"G@\0\x10",
    "flv": b"FLV\x01\x05\0\0\0\x09" + bytes(100),
    "loas": b"\x56\xe0\x20" + bytes(100),
    "one chance sync": b"\xff\xf1\x4c\x80\x02\x1f\xfc" + bytes(100),
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_nothing_else_reaches_ffmpeg(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "open", None)
    error = refusal(PLAYLISTS[name])
    assert error.code == "unsupported_format"
    assert all(known in str(error) for known in ("WAV", "M4A", "AAC", "WebM", "Matroska"))


@every_format
def test_sniff_knows_them(form: Form) -> None:
    kind = {"adts": "adts", "webm": "matroska", "matroska": "matroska"}.get(form[0], "mp4")
    assert sniff(encoded_av(sound(0.2), RATE, *form)[:64]) == kind


def test_adts_and_mp3_are_told_apart() -> None:
    mp3 = encoded(sound(1), kind="MP3", subtype="MPEG_LAYER_III")
    assert sniff(mp3[:64]) == "mp3"
    for first in range(0xE0, 0x100):
        for second in range(256):
            kind = sniff(bytes([0xFF, first, second, 0x80, 0x20, 0x1F, 0xFC]))
            assert kind != "mp3" or first & 0b110, "a layer"
            assert kind != "adts" or first & 0b11110110 == 0b11110000
    frame = encoded_av(sound(0.2), RATE, "adts")[:64]
    assert sniff(frame) == "adts"
    assert sniff(frame[:2] + b"\x7c" + frame[3:]) is None, "the sample rate 15"
    assert sniff(frame[:3] + bytes(3) + frame[6:]) is None, "no longer than nothing"


@pytest.mark.parametrize(("container", "codec"), [("matroska", "tta"), ("matroska", "real_144")])
def test_other_codecs_are_refused_by_name(container: str, codec: str) -> None:
    error = refusal(encoded_av(sound(1, 8_000), 8_000, container, codec))
    assert error.code == "unsupported_format" and "AAC, AC-3, ADPCM" in str(error)


def test_a_film_without_sound_is_empty() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as film:
        picture = film.add_stream("mpeg4", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        film.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
        film.mux(picture.encode(None))
    assert refusal(file.getvalue()).code == "empty"


def test_without_its_index_at_the_end_nothing_is_left() -> None:
    content = encoded_av(sound(3))
    at = content.index(b"moov")
    for end in (at - 1_000, at, at + 200):
        error = refusal(content[:end])
        assert error.code == "undecodable" and "cut off before" in str(error)


def test_where_nothing_can_be_decoded_it_is_not_called_empty() -> None:
    single = bytearray(encoded_av(sound(0.2), RATE, "ipod", "alac"))  # in one packet
    begin, end = single.index(b"mdat") + 20, single.index(b"moov") - 4
    single[begin:end] = bytes(end - begin)
    assert refusal(bytes(single)).code == "undecodable"


def test_names_that_are_not_unicode_do_not_matter() -> None:
    content = encoded_av(sound(1))
    assert content.count(b"Lavf") == 1  # the name of the program that wrote it
    np.testing.assert_array_equal(decode(content.replace(b"Lavf", b"\xff\xfe\xfd\xfc")), decode(content))


def test_what_the_decoder_still_holds_at_the_end_is_heard() -> None:
    """The narrow-band half of Opus runs a few samples behind."""
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as clip:
        track = clip.add_stream("libopus", rate=RATE, layout="mono", options={"application": "voip"})
        track.bit_rate = 8_000
        frame = av.AudioFrame.from_ndarray(sound(4)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        clip.mux(track.encode(frame))
        clip.mux(track.encode(None))
    assert len(decode(file.getvalue())) == 4 * RATE


# --- anything at all -------------------------------------------------------------------------------

WHOLE = [encoded_av(sound(0.6), RATE, *form) for form in FORMATS_AV]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.data(), st.booleans(), st.booleans())
def test_no_bytes_make_anything_but_audio_or_a_refusal(
    form: int, data: st.DataObject, cut: bool, header: bool
) -> None:
    """Of MP4 the header is mostly at the end."""
    content = bytearray(WHOLE[form])
    low = max(content.rfind(b"moov"), 0) if header else 0
    high = min(len(content), low + 1_000) if header else len(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(low, high - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
    if cut:
        content = content[: data.draw(st.integers(0, len(content)))]
    try:
        wave = decode(bytes(content), limits=Limits(max_seconds=5))
    except AudioError as error:
        assert error.code != "too_short"
    else:
        assert wave.size and np.isfinite(wave).all()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    for content in WHOLE:
        for size in range(8, len(content), 397):
            try:
                decode(content[:size])
            except AudioError:
                continue
    assert capfd.readouterr() == ("", "")

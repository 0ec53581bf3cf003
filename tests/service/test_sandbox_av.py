"""The formats of FFmpeg in the decoders' processes, and through the service."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("av")

from speech_ssl.audio import AudioError, Limits, decode
from speech_ssl.sandbox.pool import Sandbox
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, error_of, serving, tone
from tests.sounds_av import FORMATS_AV, encoded_av

LEAST_MEMORY = 256 << 20  # that the settings allow
WAV = encoded(tone(1.0))


class Box:
    def __init__(self, memory: int = 1 << 30) -> None:
        self.lost = 0
        self.sandbox = Sandbox(1, memory, 60.0, self.count)
        self.sandbox.start()

    def count(self, why: str) -> None:
        self.lost += 1

    def decode(self, data: bytes, limits: Limits | None = None) -> np.ndarray:
        return np.concatenate(list(self.sandbox.stream(data, limits=limits or Limits())))


@pytest.fixture(params=[LEAST_MEMORY, 1 << 30], ids=["least", "default"])
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    made = Box(request.param)
    yield made
    made.sandbox.stop()


def test_it_decodes_as_the_process_itself_would(box: Box) -> None:
    both = np.stack([tone(5.0, rate=48_000), tone(5.0, rate=48_000, frequency=600)], axis=1)
    for container, codec, options in FORMATS_AV:
        data = encoded_av(both, 48_000, container, codec, options)
        np.testing.assert_array_equal(box.decode(data), decode(data))
    assert box.lost == 0


def test_refusals_come_through_and_cost_no_decoder(box: Box) -> None:
    whole = encoded_av(tone(20.0))
    for data, limits, code in (
        (whole, Limits(max_seconds=10), "too_long"),
        (whole[: whole.index(b"moov")], Limits(), "undecodable"),
        (encoded_av(tone(1.0, rate=48_000), 48_000, "matroska", "tta"), Limits(), "unsupported_format"),
        (
            encoded_av(np.zeros((9_600, 8)), 48_000, "webm", "libopus"),
            Limits(max_channels=7),
            "too_many_channels",
        ),
    ):
        with pytest.raises(AudioError) as caught:
            box.decode(data, limits)
        assert caught.value.code == code
    assert len(box.decode(WAV)) == 16_000 and box.lost == 0


def test_whatever_was_done_to_a_file_it_is_audio_or_refused() -> None:
    """And nothing that FFmpeg prints gets between the messages: the answers would not be understood."""
    box, rng = Box(), random.Random(3)
    whole = [encoded_av(tone(0.5), 16_000, *form) for form in FORMATS_AV]
    refused = 0
    try:
        for number in range(300):
            data = bytearray(whole[number % len(whole)])
            begin = max(data.rfind(b"moov"), 0) if number % 3 else 0
            for _ in range(rng.choice((1, 4, 30))):
                data[rng.randrange(begin, min(len(data), begin + 1_200))] = rng.choice((0, 1, 127, 255))
            try:
                assert np.isfinite(box.decode(bytes(data), Limits(max_seconds=5))).all()
            except AudioError:
                refused += 1
        assert 50 < refused < 280 and box.lost == 0
        assert len(box.decode(WAV)) == 16_000
    finally:
        box.sandbox.stop()


def test_the_service_reads_them_whatever_they_are_called() -> None:
    with serving(FakeRuntime(), decode_threads=1) as client:
        for form in FORMATS_AV:
            data = encoded_av(tone(2.0), 16_000, *form)
            answer = client.post("/v1/embeddings", files={"file": ("clip.wav", data, "audio/wav")})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["seconds"] == pytest.approx(2.0, abs=0.15)
        refused = client.post("/v1/embeddings", content=b"#EXTM3U\nfile:///etc/passwd\n", headers=AUDIO)
        error = error_of(refused)
        assert refused.status_code == 415 and "MP4 (M4A, MOV, 3GP)" in str(error["message"])


AUDIO = {"content-type": "audio/mp4"}

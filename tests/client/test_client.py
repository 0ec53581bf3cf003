"""The client against the real application on a real socket."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile

from service.app import create_app
from service.auth import made
from service.models.registry import DEFAULT, ModelSource
from service.settings import Settings
from speech_ssl.client import (
    Audio,
    BadAudio,
    Client,
    Refused,
    TimedOut,
    Unauthorized,
)
from speech_ssl.client.inputs import wav
from speech_ssl.inference import Runtime
from tests.client.scripted import ONCE
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, serving, serving_app, tone, until

WAVE = tone(1.5)


def nearly(item: Any) -> dict[str, Any]:
    """Other batches round otherwise."""
    return {k: pytest.approx(v, abs=1e-5) if isinstance(v, float) else v for k, v in asdict(item).items()}


# One clip


def test_every_kind_of_audio_gives_the_same_vector(client: Client, tmp_path: Path) -> None:
    data = encoded(WAVE)
    path = tmp_path / "ü \udc80.wav"
    path.write_bytes(data)
    expected = FakeRuntime.frames(WAVE, 3).mean(axis=0)
    with path.open("rb") as file:
        kinds: list[Audio] = [path, str(path), data, file, io.BytesIO(data), WAVE, WAVE[::-1][::-1]]
        for audio in kinds:
            found = client.embed(audio)
            np.testing.assert_allclose(found.vector, expected, rtol=1e-5, atol=1e-6)
            assert (found.model, found.seconds) == ("fake", 1.5)


def test_samples_become_a_wav_file_of_the_same_samples() -> None:
    data = wav(WAVE)
    rate, samples = scipy.io.wavfile.read(io.BytesIO(data))
    assert rate == 16_000 and samples.dtype == np.float32 and np.array_equal(samples, WAVE)
    assert int.from_bytes(data[4:8], "little") == len(data) - 8


def test_frames_are_exact(client: Client) -> None:
    found = client.embed(WAVE, pooling="none", layer=2)
    np.testing.assert_array_equal(found.frames, FakeRuntime.frames(WAVE, 2))
    assert found.frames.dtype == np.float32 and found.frames.flags.writeable
    with pytest.raises(ValueError, match="ask for 'mean'"):
        _ = found.vector
    with pytest.raises(ValueError, match="pooling='none'"):
        _ = client.embed(WAVE).frames


def test_a_transcript_is_that_of_python(answering: Client, runtime: Runtime, clip: Path) -> None:
    (said,) = runtime.transcribe([clip])
    found = answering.transcribe(clip)
    assert found.text == said.text and found.seconds == pytest.approx(said.duration_s)
    assert [asdict(word) for word in found.words] == [nearly(word) for word in said.words]
    assert " ".join(segment.text for segment in found.segments) == said.text
    with pytest.raises(FrozenInstanceError):
        found.text = ""  # type: ignore[misc]


def test_streamed_deltas_are_the_text(answering: Client, runtime: Runtime, clip: Path) -> None:
    deltas = list(answering.transcribe_stream(clip))
    assert "".join(deltas) == runtime.transcribe([clip])[0].text and len(deltas) > 1
    stream = answering.transcribe_stream(clip)
    assert next(stream) == deltas[0]
    stream.close()  # with the rest unread


def test_sounds_are_those_of_python(answering: Client, runtime: Runtime, clip: Path) -> None:
    (heard,) = runtime.classify([clip], head="sounds", top_k=2, threshold=0.3)
    found = answering.classify(clip, head="sounds", top_k=2, threshold=0.3)
    assert [asdict(label) for label in found.labels] == [nearly(label) for label in heard.labels]
    assert [asdict(event) for event in found.events] == [nearly(event) for event in heard.events]
    assert found.model == runtime.name


def test_an_analysis_has_what_was_asked_for(answering: Client, runtime: Runtime, clip: Path) -> None:
    found = answering.analyze(clip, tasks=["embedding", "transcription"])
    assert found.embedding is not None and found.transcription is not None and found.classification is None
    np.testing.assert_allclose(found.embedding, answering.embed(clip).vector, rtol=1e-5, atol=1e-5)
    assert found.transcription.text == runtime.transcribe([clip])[0].text
    every = answering.analyze(clip, sounds_head="moods", top_k=1)
    assert every.classification is not None and len(every.classification.labels) == 1


def test_answers_have_the_warnings_of_the_file(answering: Client, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 32_000).astype(np.float32)
    data = encoded(np.stack([noise, -0.95 * noise], axis=1))
    for ask in (answering.embed, answering.transcribe, answering.classify, answering.analyze):
        (warning,) = ask(data).warnings
        assert warning.code == "opposite_phase" and "opposite phase" in warning.message
        assert ask(WAVE).warnings == ()
    list(answering.transcribe_stream(data))  # it has text alone
    assert "opposite phase" in caplog.text


def test_models_tell_their_heads(answering: Client, runtime: Runtime) -> None:
    (model,) = answering.models()
    assert (model.id, model.layers, model.width) == (runtime.name, runtime.num_layers, runtime.width)
    assert {head.name: head.task for head in model.heads} == {
        "ctc": "transcription",
        "sounds": "classification",
        "moods": "classification",
    }


def test_models_that_are_not_loaded_are_told_too(fake: FakeRuntime) -> None:
    sources = {DEFAULT: ModelSource(lambda: fake), "other": ModelSource(FakeRuntime, preload=False)}
    with serving_app(create_app(Settings(), sources)) as http, Client(str(http.base_url)) as client:
        until(lambda: http.get("/health/ready").status_code == 200)
        loaded, other = client.models()
        assert (loaded.id, loaded.loaded, loaded.layers, loaded.width) == ("fake", True, 3, 5)
        assert (other.id, other.loaded, other.layers, other.heads) == ("other", False, None, ())
        client.embed(WAVE, model="other")
        assert [model.layers for model in client.models()] == [3, 3]


# What is wrong


def test_refusals_say_what_is_wrong(client: Client) -> None:
    refusals: list[tuple[Callable[[], object], type[Refused], str]] = [
        (lambda: client.embed(b"RIFF nothing"), BadAudio, "file[0]"),
        (lambda: client.embed(b""), BadAudio, "file[0]"),
        (lambda: client.embed(WAVE[:10]), BadAudio, "file[0]"),
        (lambda: client.embed(WAVE, layer=99), Refused, "layer"),
        (lambda: client.embed(WAVE, model="another"), Refused, "model"),
        (lambda: client.transcribe(WAVE), Refused, "model"),
        (lambda: list(client.transcribe_stream(WAVE)), Refused, "model"),
    ]
    for ask, kind, param in refusals:
        with pytest.raises(kind) as caught:
            ask()
        assert caught.value.param == param and caught.value.status in (400, 404, 415, 422)
        assert caught.value.request_id and type(caught.value) is kind


def test_mistakes_on_this_side_are_python_errors(client: Client, tmp_path: Path) -> None:
    wrong: list[tuple[Any, type[Exception]]] = [
        (tmp_path / "missing.wav", FileNotFoundError),
        (tmp_path, IsADirectoryError),
        (np.zeros((2, 16_000), np.float32), ValueError),
        (np.zeros(16_000), ValueError),
        (io.StringIO("text"), ValueError),
        (None, TypeError),
    ]
    for audio, kind in wrong:
        with pytest.raises(kind):
            client.embed(audio)
    with pytest.raises(TypeError, match="'timout' is no option here: choose from layer, model"):
        client.embed(WAVE, timout=3)  # type: ignore[call-arg]
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            client.embed(WAVE, timeout=seconds)
    with pytest.raises(ValueError, match="one file"):
        client.submit("embedding")


def test_a_body_that_is_too_large(fake: FakeRuntime) -> None:
    """The service answers and hangs up while the file is still on its way."""
    with (
        serving(fake, max_body_bytes=100_000) as http,
        Client(str(http.base_url), retrying=ONCE) as client,
        pytest.raises(BadAudio) as caught,
    ):
        client.embed(bytes(50_000_000))
    assert caught.value.code == "body_too_large"


def test_a_deadline_ends_a_call_and_leaves_the_client_usable(client: Client, fake: FakeRuntime) -> None:
    fake.open_gate.clear()
    with pytest.raises(TimedOut):
        client.embed(WAVE, timeout=0.5)
    fake.open_gate.set()
    assert client.embed(WAVE).vector.shape == (5,)


def test_keys(fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, line = made("anna")
    keys = tmp_path / "keys"
    keys.write_text(line)
    with serving(fake, api_keys=keys) as http:
        url = str(http.base_url)
        with Client(url, api_key="wrong") as client:
            with pytest.raises(Unauthorized, match="not known"):
                client.models()
            with pytest.raises(Unauthorized):  # as it would be for every clip
                list(client.embed_many([WAVE] * 3))
        with Client(url, api_key=key) as client:
            assert client.models()
        monkeypatch.setenv("SPEECH_SSL_URL", url)
        monkeypatch.setenv("SPEECH_SSL_API_KEY", key)
        with Client() as client:
            assert client.models() and client.url == url


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "/v1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        Client(url)


@pytest.mark.parametrize("key", ["secret\nkey", "schlüssel", "secret "])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        Client("http://localhost", api_key=key)
    assert key.strip() not in str(caught.value)

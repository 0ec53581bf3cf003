"""The official `openai` package against this service, as its users would point it here."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

import speech_ssl
from speech_ssl.inference import Runtime
from tests.service.support import serving


@pytest.fixture(scope="module")
def runtime(answering_artifact: Path) -> Runtime:
    return speech_ssl.load(answering_artifact)


@pytest.fixture(scope="module")
def client(runtime: Runtime) -> Iterator[openai.OpenAI]:
    with (
        serving(runtime) as http,
        openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def clip(prompts: Path) -> Path:
    return max((prompts / "audio").glob("*.flac"), key=lambda path: path.stat().st_size)


def test_transcriptions_in_each_form(client: openai.OpenAI, runtime: Runtime, clip: Path) -> None:
    (said,) = runtime.transcribe([clip])
    create = client.audio.transcriptions.create
    assert create(file=clip, model="default").text == said.text
    assert create(file=clip, model="default", response_format="text") == said.text + "\n"
    assert create(file=clip, model="default", response_format="vtt").startswith("WEBVTT")
    verbose = create(
        file=clip,
        model=runtime.name,
        language="en",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        temperature=0,
    )
    assert verbose.words and [word.word for word in verbose.words] == [word.word for word in said.words]
    assert verbose.segments and verbose.segments[0].start == pytest.approx(said.words[0].start, abs=1e-5)
    assert float(verbose.duration) == pytest.approx(said.duration_s)


def test_streaming(client: openai.OpenAI, runtime: Runtime, clip: Path) -> None:
    stream = client.audio.transcriptions.create(file=clip, model="default", stream=True)
    deltas = []
    for event in stream:
        if event.type == "transcript.text.delta":
            deltas.append(event.delta)
        else:
            assert event.type == "transcript.text.done"
            done = event.text
    assert "".join(deltas) == done == runtime.transcribe([clip])[0].text


def test_embeddings_take_audio_where_text_would_be(
    client: openai.OpenAI, runtime: Runtime, clip: Path
) -> None:
    audio = base64.b64encode(clip.read_bytes()).decode()
    answer = client.embeddings.create(input=[audio], model="default")  # asks for base64, gives floats
    expected = runtime.encode([clip])[0].pooled("mean")
    np.testing.assert_allclose(answer.data[0].embedding, expected, rtol=1e-5, atol=1e-5)


def test_models_and_errors(client: openai.OpenAI, runtime: Runtime, clip: Path) -> None:
    assert [model.id for model in client.models.list()] == [runtime.name]
    with pytest.raises(openai.NotFoundError, match="no model 'whisper-1' here"):
        client.audio.transcriptions.create(file=clip, model="whisper-1")
    with pytest.raises(openai.UnprocessableEntityError):
        client.audio.transcriptions.create(file=("a.flac", clip.read_bytes()[:200]), model="default")

"""The official `openai` package against this service, as its users would point it here."""

from __future__ import annotations

import base64
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def test_log_probabilities_are_those_of_the_words(
    client: openai.OpenAI, runtime: Runtime, clip: Path
) -> None:
    (said,) = runtime.transcribe([clip])
    whole = client.audio.transcriptions.create(file=clip, model="default", include=["logprobs"])
    assert whole.logprobs and "".join(token.token or "" for token in whole.logprobs) == said.text
    assert [bytes(map(int, token.bytes or [])).decode() for token in whole.logprobs] == [
        token.token for token in whole.logprobs
    ]
    scores = [math.exp(token.logprob or 0) for token in whole.logprobs]
    assert scores == pytest.approx([word.score for word in said.words], rel=1e-3)
    stream = client.audio.transcriptions.create(file=clip, model="default", include=["logprobs"], stream=True)
    *deltas, done = list(stream)
    pieces = [token for event in deltas for token in getattr(event, "logprobs", None) or []]
    assert done.type == "transcript.text.done" and done.logprobs and done.usage is None
    for tokens in (pieces, done.logprobs):
        assert [token.token for token in tokens] == [token.token for token in whole.logprobs]
        assert [token.logprob for token in tokens] == pytest.approx(
            [token.logprob for token in whole.logprobs], rel=1e-3
        )


SAMPLE = "data:audio/wav;base64," + "A" * 100_000
DOCUMENTED: dict[str, list[Any]] = {
    "chunking_strategy": ["auto", {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 200}],
    "include": [["logprobs"]],
    "keywords": [["Kyoto, Japan", "word " * 2000]],
    "known_speaker_names": [["Anna", "Bo"]],
    "known_speaker_references": [[SAMPLE, SAMPLE]],
    "language": ["en"],
    "languages": [["en", "ja"]],
    "model": [
        "default",
        "whisper-1",
        "gpt-transcribe",
        "gpt-4o-transcribe",
        "gpt-4o-mini-transcribe",
    ],
    "prompt": ["word " * 2000],
    "response_format": ["json"],
    "stream": [False],
    "temperature": [0.2],
    "timestamp_granularities": [["word"], ["word", "segment"]],
}


def test_all_that_is_documented_is_taken(client: openai.OpenAI, runtime: Runtime, clip: Path) -> None:
    create = client.audio.transcriptions.create
    own = {"self", "file", "extra_headers", "extra_query", "extra_body", "timeout"}
    documented = inspect.signature(create).parameters.keys() - own
    (said,) = runtime.transcribe([clip])
    for name in documented:
        for value in DOCUMENTED[name]:
            answer = create(**{"file": clip, "model": "default", name: value})
            assert answer.text == said.text, (name, value)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"response_format": "diarized_json"}, "response_format: who says what"),
        ({"response_format": "srt", "include": ["logprobs"]}, "include: log-probabilities are told in json"),
        ({"include": ["tokens"]}, "include: "),
        ({"chunking_strategy": "fast"}, "chunking_strategy: "),
        ({"chunking_strategy": {"type": "server_vad", "thresold": 0.5}}, "chunking_strategy: "),
        ({"extra_body": {"colour": "red"}}, "colour: "),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, clip: Path, wrong: dict[str, Any], why: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=why):
        client.audio.transcriptions.create(file=clip, model="default", **wrong)


def test_embeddings_take_audio_where_text_would_be(
    client: openai.OpenAI, runtime: Runtime, clip: Path
) -> None:
    audio = base64.b64encode(clip.read_bytes()).decode()
    answer = client.embeddings.create(input=[audio], model="default")  # asks for base64, gives floats
    expected = runtime.encode([clip])[0].pooled("mean")
    np.testing.assert_allclose(answer.data[0].embedding, expected, rtol=1e-5, atol=1e-5)
    all_of_it = client.embeddings.create(
        input=audio, model="default", dimensions=runtime.width, encoding_format="float", user="anna"
    )
    np.testing.assert_allclose(all_of_it.data[0].embedding, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(openai.BadRequestError, match=f"have {runtime.width} numbers"):
        client.embeddings.create(input=audio, model="default", dimensions=8)


def test_models_and_errors(client: openai.OpenAI, runtime: Runtime, clip: Path) -> None:
    assert [model.id for model in client.models.list()] == [runtime.name]
    assert client.models.retrieve("whisper-1").id == runtime.name
    with pytest.raises(openai.NotFoundError, match="no model 'text-embedding-3-small' here"):
        client.embeddings.create(input="AAAA", model="text-embedding-3-small")
    with pytest.raises(openai.UnprocessableEntityError):
        client.audio.transcriptions.create(file=("a.flac", clip.read_bytes()[:200]), model="default")

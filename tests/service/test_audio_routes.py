"""Transcriptions, classifications and analyses over a real socket: what they say is what Python says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.models.clips import WindowTask
from service.models.model import _run
from service.v1.partial_text import Settling
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime
from speech_ssl.inference.outputs import WindowOutput
from tests.service.fakes import FakeRuntime
from tests.service.support import error_of, serving, until

TRANSCRIPTIONS, CLASSIFICATIONS, ANALYSES = (
    f"/v1/audio/{name}" for name in ("transcriptions", "classifications", "analyses")
)


@pytest.fixture(scope="module")
def runtime(answering_artifact: Path) -> Runtime:
    """With windows of two seconds, so that short clips have several."""
    artifact = load_artifact(answering_artifact)
    return Runtime(artifact, window_s=2.0, context_s=0.5)


@pytest.fixture(scope="module")
def client(runtime: Runtime) -> Iterator[httpx.Client]:
    with serving(runtime) as client:
        yield client


@pytest.fixture(scope="module")
def clips(prompts: Path) -> list[Path]:
    found = sorted((prompts / "audio").glob("*.flac"), key=lambda path: path.stat().st_size)
    return [found[len(found) // 2], found[-1]]  # one window, and several


def ask(client: httpx.Client, route: str, clip: Path, **fields: Any) -> httpx.Response:
    answer = client.post(route, files={"file": (clip.name, clip.read_bytes())}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer


def nearly(items: Sequence[Any]) -> list[Any]:
    """Other batches round otherwise."""
    rows = [asdict(item) for item in items]
    return [
        {k: pytest.approx(v, abs=1e-5) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]


def test_a_transcript_is_that_of_python(client: httpx.Client, runtime: Runtime, clips: list[Path]) -> None:
    for clip, said in zip(clips, runtime.transcribe(clips), strict=True):
        plain = ask(client, TRANSCRIPTIONS, clip)
        usage = {"type": "duration", "seconds": pytest.approx(said.duration_s)}
        assert plain.json() == {"text": said.text, "usage": usage}
        assert {"X-Queue-Time", "X-Inference-Time"} <= {name.title() for name in plain.headers}
        fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
        verbose = ask(client, TRANSCRIPTIONS, clip, **fields, language="en").json()
        assert verbose["words"] == nearly(said.words)
        assert " ".join(segment["text"] for segment in verbose["segments"]) == said.text
        assert (verbose["language"], verbose["duration"]) == ("en", said.duration_s)
        assert ask(client, TRANSCRIPTIONS, clip, response_format="text").text == said.text + "\n"


def test_captions_hold_every_word_in_order(client: httpx.Client, runtime: Runtime, clips: list[Path]) -> None:
    (said,) = runtime.transcribe(clips[1:])
    srt = ask(client, TRANSCRIPTIONS, clips[1], response_format="srt")
    blocks = [block.split("\n") for block in srt.text.strip().split("\n\n")]
    assert [block[0] for block in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    assert " ".join(block[2] for block in blocks) == said.text
    vtt = ask(client, TRANSCRIPTIONS, clips[1], response_format="vtt")
    assert vtt.text.startswith("WEBVTT\n\n") and vtt.headers["content-type"].startswith("text/vtt")


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_streamed_deltas_are_the_text(client: httpx.Client, runtime: Runtime, clips: list[Path]) -> None:
    for clip, said in zip(clips, runtime.transcribe(clips), strict=True):
        *deltas, done = events(ask(client, TRANSCRIPTIONS, clip, stream="true"))
        assert {delta["type"] for delta in deltas} == {"transcript.text.delta"}
        assert "".join(delta["delta"] for delta in deltas) == said.text
        assert done == {"type": "transcript.text.done", "text": said.text}
    assert len(deltas) > 1, "a clip of several windows is told in pieces"


def test_a_stream_that_fails_midway_is_told_logged_and_counted(
    client: httpx.Client, clips: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    more, calls = Settling.more, []

    async def failing(self: Settling, *parts: Any, **options: Any) -> Any:
        calls.append(parts)
        if len(calls) > 1:
            raise [RuntimeError("lost midway"), TimeoutError()][len(calls) > 2]
        return await more(self, *parts, **options)

    def counted(outcome: int) -> bool:
        labels = f'{{outcome="{outcome}",route="{TRANSCRIPTIONS}"}}'
        return f"speech_ssl_requests_total{labels} 1.0" in client.get("/metrics").text

    monkeypatch.setattr(Settling, "more", failing)
    last = events(ask(client, TRANSCRIPTIONS, clips[1], stream="true"))[-1]
    assert last["error"]["code"] == "internal_error" and "midway" not in last["error"]["message"]
    until(lambda: counted(500))
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info and "lost midway" in str(record.exc_info[1])
    (late,) = events(ask(client, TRANSCRIPTIONS, clips[1], stream="true"))
    assert late["error"]["code"] == "deadline_exceeded"
    until(lambda: counted(504))
    assert [record for record in caplog.records if record.exc_info] == [record]


def test_log_probabilities_come_in_pieces_that_join(
    client: httpx.Client, runtime: Runtime, clips: list[Path]
) -> None:
    fields = {"stream": "true", "include[]": "logprobs"}
    *deltas, done = events(ask(client, TRANSCRIPTIONS, clips[1], **fields))
    assert len(deltas) > 1
    for told in (*deltas, done):
        text = told.get("delta", told.get("text"))
        assert "".join(token["token"] for token in told["logprobs"]) == text
    (said,) = runtime.transcribe(clips[1:])
    assert [math.exp(token["logprob"]) for token in done["logprobs"]] == pytest.approx(
        [word.score for word in said.words], rel=1e-3
    )
    assert sum((told["logprobs"] for told in deltas), []) == done["logprobs"]
    fields = {"response_format": "verbose_json", "include": "logprobs"}
    verbose = ask(client, TRANSCRIPTIONS, clips[1], **fields).json()["logprobs"]
    assert [token["token"] for token in verbose] == [token["token"] for token in done["logprobs"]]


def test_sounds_are_those_of_python(client: httpx.Client, runtime: Runtime, clips: list[Path]) -> None:
    for head in ("sounds", "moods"):
        heard = runtime.classify(clips, head=head, top_k=2, threshold=0.3)
        for clip, expected in zip(clips, heard, strict=True):
            found = ask(client, CLASSIFICATIONS, clip, head=head, top_k=2, threshold=0.3).json()
            assert found["labels"] == nearly(expected.labels)
            assert found["events"] == nearly(expected.events)
            assert found["model"] == runtime.name and found["usage"]["type"] == "duration"


def test_windows_of_a_clip_join_whoever_shared_their_passes(runtime: Runtime) -> None:
    """Vectors of a long clip, while others are transcribed: 500, once."""
    wave = np.linspace(-1, 1, 16_000, dtype=np.float32)
    silent, heard = WindowTask(wave, 1, ()), WindowTask(wave, None, ("ctc",))
    alone, (shared, other) = _run(runtime, [silent])[0], _run(runtime, [silent, heard])
    joined = WindowOutput.joined([alone, shared, alone])
    assert len(joined.frames) == 3 * len(alone.frames) and not joined.heads
    assert len(other.loudness) == len(other.heads["ctc"]) == len(alone.frames)


def passes(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("speech_ssl_run_seconds_count")).split()[1])


def test_an_analysis_is_all_answers_from_one_pass(
    client: httpx.Client, runtime: Runtime, clips: list[Path]
) -> None:
    (expected,) = runtime.analyze(clips[:1], sounds_head="moods")
    before = passes(client)
    found = ask(client, ANALYSES, clips[0], sounds_head="moods").json()
    until(lambda: passes(client) > before)  # it is counted after the answer is out
    assert passes(client) == before + 1
    vector = np.array(found["embedding"]["embedding"], dtype=np.float32)
    assert expected.features and expected.transcript and expected.classification
    np.testing.assert_allclose(vector, expected.features.pooled("mean"), rtol=1e-5, atol=1e-6)
    assert found["transcription"]["text"] == expected.transcript.text
    assert found["transcription"]["words"] == nearly(expected.transcript.words)
    assert found["classification"]["labels"] == nearly(expected.classification.labels)
    both = ask(client, ANALYSES, clips[0], tasks="transcription, classification").json()
    assert "embedding" not in both and both["classification"]["labels"][0]["label"] in ("bell", "dog", "rain")
    listed = client.post(
        ANALYSES, params=[("tasks[]", "embedding"), ("pooling", "max")], content=clips[0].read_bytes(),
        headers={"content-type": "audio/flac"},
    ).json()  # fmt: skip
    assert listed.keys() == {"model", "usage", "embedding"}
    (features,) = runtime.encode(clips[:1])
    np.testing.assert_allclose(listed["embedding"]["embedding"], features.pooled("max"), rtol=1e-4, atol=1e-4)


REFUSALS: list[tuple[str, dict[str, str], int, str | None]] = [
    (TRANSCRIPTIONS, {"head": "sounds"}, 400, "head"),
    (TRANSCRIPTIONS, {"response_format": "docx"}, 400, "response_format"),
    (TRANSCRIPTIONS, {"stream": "true", "response_format": "srt"}, 400, "response_format"),
    (TRANSCRIPTIONS, {"timestamp_granularities[]": "minute"}, 400, "timestamp_granularities"),
    (TRANSCRIPTIONS, {"colour": "red"}, 400, "colour"),
    (TRANSCRIPTIONS, {"model": "another"}, 404, "model"),
    (CLASSIFICATIONS, {"threshold": "0"}, 400, "threshold"),
    (CLASSIFICATIONS, {"top_k": "0"}, 400, "top_k"),
    (ANALYSES, {"tasks": "embedding,singing"}, 400, "tasks"),
    (ANALYSES, {"layer": "99"}, 400, "layer"),
    (ANALYSES, {"pooling": "none"}, 400, "pooling"),
]


@pytest.mark.parametrize(("route", "fields", "status", "param"), REFUSALS)
def test_a_wrong_option_is_named(
    client: httpx.Client, clips: list[Path], route: str, fields: dict[str, str], status: int, param: str
) -> None:
    answer = client.post(route, files={"file": clips[0].read_bytes()}, data=fields)
    assert answer.status_code == status and error_of(answer)["param"] == param


def test_an_option_in_two_forms_is_refused(client: httpx.Client, clips: list[Path]) -> None:
    data = clips[0].read_bytes()
    for fields in (
        "tasks=embedding&tasks[]=transcription",
        "tasks[]=embedding&tasks[a]=b",
        "tasks[a]=b&tasks=c",
    ):
        answer = client.post(f"{ANALYSES}?{fields}", files={"file": data})
        assert answer.status_code == 400 and "more than once" in str(error_of(answer)["message"])


@pytest.mark.parametrize("route", [TRANSCRIPTIONS, CLASSIFICATIONS, ANALYSES])
def test_what_is_no_single_clip_is_refused(client: httpx.Client, clips: list[Path], route: str) -> None:
    data = clips[0].read_bytes()
    two = client.post(route, files=[("file", ("a", data)), ("file", ("b", data))])
    assert two.status_code == 400 and error_of(two)["code"] == "malformed_form"
    broken = client.post(route, files={"file": data[:100]})
    assert broken.status_code == 422
    as_json = client.post(route, json={"input": "AAAA"})
    assert as_json.status_code == 415 and "multipart/form-data" in str(error_of(as_json)["message"])
    short = client.post(route, content=b"", headers={"content-type": "audio/wav"})
    assert short.status_code == 400


def test_a_model_without_heads_says_what_it_lacks() -> None:
    with serving(FakeRuntime()) as client:
        for route in (TRANSCRIPTIONS, CLASSIFICATIONS):
            answer = client.post(route, files={"file": b"RIFF"})
            assert answer.status_code == 400 and error_of(answer)["code"] == "unsupported_task"


def test_models_tell_their_heads(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert {head["name"]: head["task"] for head in model["heads"]} == {
        "ctc": "transcription",
        "sounds": "classification",
        "moods": "classification",
    }
    assert next(head for head in model["heads"] if head["name"] == "ctc")["labels"] is None

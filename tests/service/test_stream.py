"""Audio over a WebSocket: the final answer is that of the finished file, whatever the pieces were."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.auth import made
from service.stream import live, routes
from speech_ssl import audio
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, serving, until

PATH = "/v1/audio/stream"
END = json.dumps({"type": "end"})


@pytest.fixture(scope="module")
def client(answering_artifact: Path) -> Iterator[httpx.Client]:
    """With windows of two seconds, so that short clips have several."""
    with serving(Runtime(load_artifact(answering_artifact), window_s=2.0, context_s=0.5)) as client:
        yield client


@pytest.fixture(scope="module")
def speech(prompts: Path) -> np.ndarray:
    """Some prompts as 16-bit samples, eleven seconds or so."""
    paths = sorted((prompts / "audio").glob("*.flac"))
    wave = np.concatenate([audio.decode(path) for path in paths[:12]])[: 11 * 16_000]
    return np.round(wave * 32767).astype("<i2")


@contextmanager
def opened(client: httpx.Client, query: str = "", **options: Any) -> Iterator[ClientConnection]:
    address = str(client.base_url).replace("http", "ws", 1).rstrip("/") + PATH + query
    with connect(address, max_size=None, proxy=None, **options) as stream:
        yield stream


def told(stream: ClientConnection, *, until_kind: str = "final") -> list[dict[str, Any]]:
    """All messages up to the last, after which the service closes."""
    messages = []
    while not messages or messages[-1]["type"] not in (until_kind, "error"):
        messages.append(json.loads(stream.recv(timeout=60)))
    with pytest.raises(ConnectionClosed) as closing:
        stream.recv(timeout=60)
    messages[-1]["closed"] = closing.value.rcvd.code if closing.value.rcvd else None
    return messages


def asked(client: httpx.Client, route: str, data: bytes, **fields: Any) -> Any:
    answer = client.post(f"/v1/audio/{route}", files={"file": ("a.wav", data)}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def nearly(value: Any) -> Any:
    """Other batches round otherwise."""
    if isinstance(value, dict):
        return {key: nearly(each) for key, each in value.items()}
    if isinstance(value, list):
        return [nearly(each) for each in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("rate", "piece"), [(16_000, 1_600), (16_000, 40_001), (16_000, 10**6), (44_100, 7_777)]
)
def test_the_final_answer_is_that_of_the_file(
    client: httpx.Client, speech: np.ndarray, rate: int, piece: int
) -> None:
    with opened(client, f"?sample_rate={rate}&top_k=2&threshold=0.2&sounds_head=sounds") as stream:
        for start in range(0, len(speech), piece):
            stream.send(speech[start : start + piece].tobytes())
        stream.send(END)
        first, *_, final = messages = told(stream)
    file = encoded(speech, rate=rate, subtype="PCM_16")
    said = asked(
        client,
        "transcriptions",
        file,
        response_format="verbose_json",
        **{"timestamp_granularities[]": "word"},
    )
    heard = asked(client, "classifications", file, head="sounds", top_k=2, threshold=0.2)
    assert first == {"type": "ready", "model": heard["model"], "sample_rate": rate}
    assert final["closed"] == 1000
    assert final["text"] == said["text"] and len(final["words"]) > 1
    assert final["words"] == nearly(said["words"])
    assert final["labels"] == nearly(heard["labels"]) and final["events"] == nearly(heard["events"])
    assert final["usage"] == nearly(heard["usage"])
    assert "".join(m["text"] for m in messages if m["type"] == "delta") == said["text"]


def louder(speech: np.ndarray) -> np.ndarray:
    """The first half 30 dB lower."""
    half = len(speech) // 2
    return np.concatenate([np.round(speech[:half] * 10 ** (-30 / 20)).astype("<i2"), speech[half:]])


def answers_of(client: httpx.Client, samples: np.ndarray) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Final answers to a stream of half seconds and to a file of the same, and the deltas of the stream."""
    with opened(client, "?sounds_head=moods") as stream:
        for start in range(0, len(samples), 8_000):
            stream.send(samples[start : start + 8_000].tobytes())
        stream.send(END)
        *before, final = told(stream)
    file = encoded(samples, subtype="PCM_16")
    words = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    said = asked(client, "transcriptions", file, **words)
    heard = asked(client, "classifications", file, head="moods")
    whole = {name: said[name] for name in ("text", "words")}
    whole |= {name: heard[name] for name in ("labels", "events")}
    return {name: final[name] for name in whole}, whole, [m["text"] for m in before if m["type"] == "delta"]


def test_what_was_heard_before_the_level_was_known_is_heard_again(
    client: httpx.Client, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model normalises a clip by all of it, which nobody knows while it is being said."""
    monkeypatch.setattr(live, "SETTLED_S", 3.0)
    monkeypatch.setattr(live, "IN_MEMORY", 100_000)
    final, whole, deltas = answers_of(client, louder(speech))
    assert final == nearly(whole)
    assert len(deltas) > 1 and "".join(deltas) != whole["text"]


def test_what_is_not_heard_again_in_time_stays_near(
    client: httpx.Client, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SETTLED_S", 5.0)
    monkeypatch.setattr(routes, "AGAIN_PART", 0.0)
    final, whole, deltas = answers_of(client, speech)
    assert final["text"] == "".join(deltas) != whole["text"]
    for near, label in zip(final["labels"], whole["labels"], strict=True):
        assert near["label"] == label["label"] and near["score"] == pytest.approx(label["score"], abs=0.05)


def test_a_full_disk_costs_what_would_be_heard_again(
    client: httpx.Client, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(live, "SETTLED_S", 3.0)
    monkeypatch.setattr(live, "SpooledTemporaryFile", lambda max_size: Full())
    final, whole, deltas = answers_of(client, speech)
    assert final["text"] == "".join(deltas) != whole["text"]


def test_partial_answers_come_while_it_is_being_said(client: httpx.Client, speech: np.ndarray) -> None:
    """What is certain and what is not, joined, is what would be said of the clip up to there."""
    with opened(client, "?tasks=transcription") as stream:
        assert json.loads(stream.recv())["type"] == "ready"
        stream.send(speech[: 5 * 16_000].tobytes())
        messages = []
        while not messages or messages[-1]["type"] != "partial":
            messages.append(json.loads(stream.recv(timeout=60)))
        stream.send(END)
        assert told(stream)[-1]["type"] == "final"
    partial = messages[-1]
    assert set(partial) == {"type", "seconds", "text"}
    whole = asked(client, "transcriptions", encoded(speech[: 5 * 16_000], subtype="PCM_16"))["text"]
    certain = "".join(m["text"] for m in messages if m["type"] == "delta")
    assert " ".join(filter(None, (certain, partial["text"]))) == whole


def test_one_task_and_not_the_other(client: httpx.Client, speech: np.ndarray) -> None:
    with opened(client, "?tasks=classification&sounds_head=moods") as stream:
        stream.send(speech[:32_000].tobytes())
        stream.send(END)
        final = told(stream)[-1]
    assert "text" not in final and {label["label"] for label in final["labels"]} == {"calm", "tense"}


@pytest.mark.parametrize(
    ("query", "sent", "code", "closed"),
    [
        ("?model=none", [], "model_not_found", 1008),
        ("?speed=2", [], "invalid_value", 1008),
        ("?sample_rate=100", [], "invalid_value", 1008),
        ("?speech_head=sounds", [], "unsupported_task", 1008),
        ("", [b"abc"], "malformed_pcm", 1008),
        ("", ["stop"], "malformed_message", 1008),
        ("", ["[" * 100_000], "malformed_message", 1008),
        ("", [END + " " * 10_000], "malformed_message", 1008),
        ("", ['{"type": "end", "type": "end"}'], "malformed_message", 1008),
        ("", ['{"type": "end", "at": [' + "0," * 200 + "0]}"], "malformed_message", 1008),
        ("", [bytes(20), END], "too_short", 1008),
        ("", [END], "too_short", 1008),
    ],
)
def test_mistakes_are_told_before_it_is_closed(
    client: httpx.Client, query: str, sent: list[bytes | str], code: str, closed: int
) -> None:
    with opened(client, query) as stream:
        for message in sent:
            stream.send(message)
        last = told(stream)[-1]
    assert (last["type"], last["error"]["code"], last["closed"]) == ("error", code, closed)
    assert last["error"]["message"]


def test_a_failure_of_the_service_leaves_a_traceback(
    client: httpx.Client,
    speech: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("lost midway")

    monkeypatch.setattr(routes.Settling, "more", failing)
    with opened(client) as stream:
        stream.send(speech.tobytes())
        stream.send(END)
        last = told(stream)[-1]
    assert (last["error"]["code"], last["closed"]) == ("internal_error", 1011)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info and "lost midway" in str(record.exc_info[1])


def test_limits(answering_artifact: Path) -> None:
    second = np.zeros(16_000, dtype="<i2").tobytes()
    limits = {"max_clip_s": 3.0, "upload_idle_timeout_s": 0.3, "max_queue_s": 20.0}
    runtime = Runtime(load_artifact(answering_artifact))
    with serving(runtime, **limits) as client:
        with opened(client) as stream:
            stream.send(4 * second)
            assert told(stream)[-1]["error"]["code"] == "too_long"
        with opened(client) as stream:
            stream.send(second)
            last = told(stream)[-1]
            assert (last["error"]["code"], last["closed"]) == ("upload_stalled", 1008)
        until(lambda: "speech_ssl_queued_audio_seconds 0.0" in client.get("/metrics").text, 20)


def test_streams_have_places_of_their_own_and_a_minimum_rate(answering_artifact: Path) -> None:
    runtime = Runtime(load_artifact(answering_artifact))
    with serving(runtime, max_requests=1, max_streams=2) as client:
        with opened(client) as one, opened(client) as other:
            for stream in (one, other):
                assert json.loads(stream.recv())["type"] == "ready"
            assert asked(client, "transcriptions", encoded(np.zeros(16_000, np.int16)))["text"] is not None
            with opened(client) as third:
                last = told(third)[-1]
                assert (last["error"]["code"], last["closed"]) == ("overloaded", 1013)
        until(lambda: "speech_ssl_live_streams 0.0" in client.get("/metrics").text, 20)
    slow = {"upload_idle_timeout_s": 0.5, "min_upload_rate": 4_000}
    with serving(runtime, **slow) as client, opened(client) as stream:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(2000):  # a sample now and then is no pause, and yet too little
                stream.send(bytes(2))
                time.sleep(0.02)
        assert told(stream)[-1]["error"]["code"] == "upload_stalled"


def test_what_streams_have_heard_is_held_within_a_limit(answering_artifact: Path) -> None:
    runtime = Runtime(load_artifact(answering_artifact), window_s=2.0, context_s=0.5)
    with serving(runtime, max_answer_bytes=200_000) as client, opened(client) as stream:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                stream.send(np.zeros(16_000, dtype="<i2").tobytes())
        assert told(stream)[-1]["error"]["code"] == "too_long"
        until(lambda: "speech_ssl_held_bytes 0.0" in client.get("/metrics").text, 20)


def test_a_full_queue_refuses_a_stream_and_one_that_is_left_gives_its_room_back(
    answering_artifact: Path,
) -> None:
    runtime = Runtime(load_artifact(answering_artifact))
    with serving(runtime, max_queue_s=20.0) as client:
        with opened(client) as first:
            first.send(np.zeros(19 * 16_000, dtype="<i2").tobytes())
            until(lambda: "speech_ssl_queued_audio_seconds 19" in client.get("/metrics").text, 20)
            with opened(client) as second:
                second.send(np.zeros(2 * 16_000, dtype="<i2").tobytes())
                last = told(second)[-1]
                assert (last["error"]["code"], last["closed"]) == ("overloaded", 1013)
            first.socket.shutdown(socket.SHUT_RDWR)  # without a word
        until(lambda: "speech_ssl_queued_audio_seconds 0.0" in client.get("/metrics").text, 20)
        until(lambda: "speech_ssl_in_flight_requests 0.0" in client.get("/metrics").text, 20)


def test_pages_of_other_sites_open_no_stream(client: httpx.Client) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(client, origin="http://elsewhere.example"):
        pass
    assert refused.value.response.status_code == 403
    own = f"http://{client.base_url.host}:{client.base_url.port}"
    with opened(client, origin=own) as stream:
        assert json.loads(stream.recv())["type"] == "ready"


def test_what_nobody_waits_for_is_not_run(answering_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the end on there is a deadline, and what it catches waiting is not run any more."""
    runtime = Runtime(load_artifact(answering_artifact))
    may_go_on, run = threading.Event(), runtime.run_windows
    passes: list[int] = []

    def held(waves: Any, *rest: Any) -> Any:
        passes.append(len(waves))
        assert may_go_on.wait(60)
        return run(waves, *rest)

    may_go_on.set()
    monkeypatch.setattr(runtime, "run_windows", held)
    with serving(runtime, request_timeout_s=1.0) as client:
        may_go_on.clear()
        with opened(client) as stream:
            stream.send(np.zeros(32 * 16_000, dtype="<i2").tobytes())
            stream.send(END)
            last = told(stream)[-1]
            assert (last["error"]["code"], last["closed"]) == ("deadline_exceeded", 1013)
        may_go_on.set()
        until(lambda: "speech_ssl_queued_audio_seconds 0.0" in client.get("/metrics").text, 20)
        assert passes == [1, 1], "the warm-up, and the window that was running"


def test_a_model_without_heads_has_nothing_to_tell() -> None:
    with serving(FakeRuntime()) as client, opened(client) as stream:
        assert told(stream)[-1]["error"]["code"] == "unsupported_task"


def test_keys_are_asked_for(tmp_path: Path) -> None:
    key, line = made("anna")
    (tmp_path / "keys").write_text(line)
    with serving(FakeRuntime(), api_keys=tmp_path / "keys") as client:
        with pytest.raises(InvalidStatus) as refused, opened(client):
            pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == "missing_api_key"
        with opened(client, additional_headers={"Authorization": f"Bearer {key}"}) as stream:
            assert told(stream)[-1]["error"]["code"] == "unsupported_task"

"""The Open Inference Protocol: tensors in and out, the same answers as the other routes, from one pass."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.auth import made
from service.models.model import ModelSource
from service.open_inference.tensors import PIECE, Tensor
from service.settings import Settings
from speech_ssl import audio
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime
from speech_ssl.inference.outputs import WindowOutput
from speech_ssl.types import Levels
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, serving, serving_app, tone, until
from tests.service.tensors import ask, files, refused, samples, tensors

ALL = ("embedding", "transcription", "classification", "frames")


class Counted(Runtime):
    """Knows how many windows each of its passes had."""

    passes: list[int]

    def run_windows(
        self,
        waves: Sequence[Any],
        layers: Sequence[int | None],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
    ) -> list[WindowOutput]:
        self.passes = [*getattr(self, "passes", []), len(waves)]
        return super().run_windows(waves, layers, heads, levels)


@pytest.fixture(scope="module")
def runtime(answering_artifact: Path) -> Counted:
    return Counted(load_artifact(answering_artifact), window_s=6.0, context_s=0.5)


@pytest.fixture(scope="module")
def client(runtime: Counted) -> Iterator[httpx.Client]:
    with serving(runtime, max_files=4) as client:
        yield client


@pytest.fixture(scope="module")
def fake() -> Iterator[httpx.Client]:
    with serving(FakeRuntime()) as client:
        yield client


@pytest.fixture(scope="module")
def speech(prompts: Path) -> np.ndarray:
    paths = sorted((prompts / "audio").glob("*.flac"))
    return np.concatenate([audio.decode(path) for path in paths[:12]])[: 5 * 16_000]


def v1(client: httpx.Client, route: str, data: bytes, **fields: Any) -> Any:
    answer = client.post(f"/v1/{route}", files={"file": ("a.wav", data)}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_server_and_models(client: httpx.Client) -> None:
    server = client.get("/v2").json()
    assert server["name"] == "speech-ssl" and server["version"] and server["extensions"] == []
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/default", "/v2/models/default/versions/1"):
        assert client.get(f"{path}/ready").json() == {"name": "default", "ready": True}
        described = client.get(path).json()
        width = client.get("/v1/models/default").json()["width"]
        assert described == {
            "name": "default",
            "versions": ["1"],
            "platform": "speech_ssl",
            "inputs": [{"name": "audio", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": "embedding", "datatype": "FP32", "shape": [-1, width]},
                {"name": "transcription", "datatype": "BYTES", "shape": [-1]},
                {
                    "name": "classification",
                    "datatype": "FP32",
                    "shape": [-1, 3],
                    "parameters": {"labels": ["dog", "rain", "siren"]},
                },
                {"name": "frames", "datatype": "FP32", "shape": [-1, width]},
            ],
        }
    for name in ("tiny-random", "default"):
        assert client.get(f"/v2/models/{name}/ready").json()["name"] == name


@pytest.mark.parametrize(
    ("path", "code", "param"),
    [("none", "model_not_found", "model"), ("default/versions/2", "version_not_found", "version")],
)
def test_other_models_and_versions_are_not_there(
    client: httpx.Client, path: str, code: str, param: str
) -> None:
    refused(client.get(f"/v2/models/{path}"), 404, code, param)
    refused(client.get(f"/v2/models/{path}/ready"), 404, code, param)
    refused(ask(client, files(b"x"), url=f"/v2/models/{path}/infer"), 404, code, param)


def test_while_the_model_is_being_loaded() -> None:
    gate = threading.Event()

    def load() -> FakeRuntime:
        assert gate.wait(60)
        return FakeRuntime()

    with serving(load) as client:
        assert client.get("/v2").status_code == client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/default", "/v2/models/default/ready"):
            refused(client.get(path), 503, "loading", None)
        refused(ask(client, files(b"x")), 503, "loading", None)
        gate.set()
        until(lambda: client.get("/v2/health/ready").json() == {"ready": True})


def test_a_model_is_loaded_by_who_asks_for_it() -> None:
    models = {"default": ModelSource(FakeRuntime), "other": ModelSource(FakeRuntime, preload=False)}
    with serving_app(create_app(Settings(), models)) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        assert client.get("/v2/models/other/ready").json() == {"name": "other", "ready": True}
        assert client.get("/v1/models/other").json()["loaded"] is False
        assert [each["name"] for each in client.get("/v2/models/other").json()["outputs"]] == [
            "embedding",
            "frames",
        ]
        assert client.get("/v1/models/other").json()["loaded"] is True
        answer = ask(client, samples(tone(1.0)), url="/v2/models/other/versions/1/infer")
        assert answer.json()["model_name"] == "other"


def test_keys_are_asked_for_but_by_the_probes(tmp_path: Path) -> None:
    key, line = made("anna")
    (tmp_path / "keys").write_text(line)
    with serving(FakeRuntime(), api_keys=tmp_path / "keys") as client:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for path in ("/v2", "/v2/models/default", "/v2/models/default/ready"):
            refused(client.get(path), 401, "missing_api_key", None)
        refused(ask(client, files(encoded(tone(1.0)))), 401, "missing_api_key", None)
        client.headers["X-API-Key"] = key
        assert ask(client, files(encoded(tone(1.0)))).status_code == 200


@pytest.mark.parametrize("form", ["file", "flat", "nested", "a batch of one"])
def test_the_answers_are_those_of_the_other_routes(
    client: httpx.Client, speech: np.ndarray, form: str
) -> None:
    wav = encoded(speech)
    tensor = {
        "file": files(wav),
        "flat": samples(speech),
        "nested": samples(speech[None]),
        "a batch of one": samples(speech[None], nested=False),
    }[form]
    found = tensors(ask(client, tensor, *ALL, layer=1, pooling="max"))
    assert tuple(found) == ALL
    vector = v1(client, "embeddings", wav, layer=1, pooling="max")["data"][0]["embedding"]
    frames = v1(client, "embeddings", wav, layer=1, pooling="none")["data"][0]["embedding"]
    said = v1(client, "audio/transcriptions", wav)["text"]
    np.testing.assert_allclose(found["embedding"], [vector], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["frames"], frames, rtol=1e-5, atol=1e-6)
    assert found["transcription"] == [said] and said
    for head, labels in (("moods", ("calm", "tense")), ("sounds", ("dog", "rain", "siren"))):
        heard = v1(client, "audio/classifications", wav, head=head)["labels"]
        scores = {each["label"]: each["score"] for each in heard}
        row = tensors(ask(client, tensor, "classification", sounds_head=head))["classification"][0]
        np.testing.assert_allclose(row, [scores[label] for label in labels], rtol=1e-5)
    np.testing.assert_allclose(found["classification"], [row], rtol=1e-5)


def test_all_outputs_of_several_clips_from_one_pass(
    client: httpx.Client, runtime: Counted, speech: np.ndarray
) -> None:
    waves = np.stack([speech[start : start + 32_000] for start in (0, 20_000, 48_000)])
    before = len(runtime.passes)
    found = tensors(ask(client, samples(waves)))
    # a clip is queued while the ones before it run, so that they may be in several batches: each goes once
    assert sum(runtime.passes[before:]) == 3
    assert list(found) == ["embedding", "transcription", "classification"]
    for index, wave in enumerate(waves):
        alone = len(runtime.passes)
        one = tensors(ask(client, files(encoded(wave)), *ALL))
        assert runtime.passes[alone:] == [1]
        np.testing.assert_allclose(found["embedding"][index], one["embedding"][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one["embedding"][0], one["frames"].mean(axis=0), rtol=1e-4, atol=1e-5)
        assert found["transcription"][index] == one["transcription"][0]
        np.testing.assert_allclose(
            found["classification"][index], one["classification"][0], rtol=1e-4, atol=1e-6
        )


def test_files_of_any_kind_and_length_in_one_tensor(fake: httpx.Client) -> None:
    waves = [tone(1.0), tone(2.5, rate=44_100)]
    tensor = files(encoded(waves[0], format="FLAC", subtype="PCM_24"), encoded(waves[1], rate=44_100))
    found = tensors(ask(fake, tensor, "embedding", layer=0))["embedding"]
    np.testing.assert_allclose(found[0], FakeRuntime.frames(waves[0], 0).mean(axis=0), rtol=1e-4, atol=1e-4)
    assert found.shape == (2, 5)


def test_numbers_are_the_shortest_that_are_the_same(fake: httpx.Client) -> None:
    wave = tone(7.0)
    answer = ask(fake, samples(wave), "frames", "embedding")
    frames, embedding = json.loads(answer.text, parse_float=str)["outputs"]
    expected = FakeRuntime.frames(wave, 3)
    assert frames["shape"] == list(expected.shape)
    assert frames["data"] == [str(value) for value in expected.reshape(-1)]
    assert embedding["data"] == [str(v) for v in expected.mean(axis=0, dtype=np.float64).astype(np.float32)]


def test_pieces_join() -> None:
    values = np.random.default_rng(0).normal(size=(PIECE // 2 + 1, 3)).astype(np.float32)
    text = "".join(Tensor("frames", values).text())
    np.testing.assert_array_equal(np.array(json.loads(text)["data"], np.float32), values.reshape(-1))


@pytest.mark.parametrize("given_id", ["42", "", "ü\ud800", None])
def test_the_id_comes_back(fake: httpx.Client, given_id: str | None) -> None:
    body = json.dumps({"id": given_id, "inputs": [samples(tone(0.5))], "outputs": []})
    answer = fake.post("/v2/models/fake/versions/1/infer", content=body)
    assert answer.json().get("id") == given_id and ("id" in answer.json()) == (given_id is not None)
    assert (answer.json()["model_name"], answer.json()["model_version"]) == ("fake", "1")
    assert float(answer.headers["x-inference-time"]) > 0


def test_a_full_queue_refuses_samples_as_it_does_files() -> None:
    runtime = FakeRuntime()
    with serving(runtime, max_queue_s=5.0) as client:
        runtime.open_gate.clear()
        held = threading.Thread(target=ask, args=(client, samples(tone(4.0))))
        held.start()
        until(lambda: "speech_ssl_queued_audio_seconds 4.0" in client.get("/metrics").text)
        answer = ask(client, samples(tone(2.0)))
        refused(answer, 429, "overloaded", None)
        assert int(answer.headers["retry-after"]) >= 1
        runtime.open_gate.set()
        held.join(60)
        until(lambda: "speech_ssl_queued_audio_seconds 0.0" in client.get("/metrics").text)


def test_the_document_is_complete(fake: httpx.Client) -> None:
    document = fake.get("/openapi.json").json()
    paths = {path: each for path, each in document["paths"].items() if path.startswith("/v2")}
    of_a_model = ["", "/infer", "/ready", "/versions/{version}", "/versions/{version}/infer"]
    assert set(paths) == {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{model}/versions/{version}/ready",
        *(f"/v2/models/{{model}}{rest}" for rest in of_a_model),
    }
    for path, operations in paths.items():
        for operation in operations.values():
            named = [each["name"] for each in operation.get("parameters", []) if each["in"] == "path"]
            assert named == [name for name in ("model", "version") if f"{{{name}}}" in path]
            if path.endswith("/infer"):
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                assert set(schema["properties"]) == {"id", "parameters", "inputs", "outputs"}
                assert "$" not in json.dumps(schema)
                one = schema["properties"]["inputs"]["items"]
                assert one["required"] == ["name", "shape", "datatype", "data"]
                assert one["properties"]["datatype"]["enum"] == ["BYTES", "FP32"]
                assert set(operation["responses"]) >= {"200", "400", "404", "413", "422", "429", "503", "504"}
    assert len({o["operationId"] for each in paths.values() for o in each.values()}) == len(paths)

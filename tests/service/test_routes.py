"""The HTTP contract, through a real socket, with a model that is small but not blind."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import pytest

from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, error_of, serving, tone

CLIP = tone(1.5)
WAV = encoded(CLIP)
URL = "/v1/embeddings"
RAW = {"content-type": "audio/wav"}


@pytest.fixture(scope="module")
def client():
    with serving(FakeRuntime(), max_files=3, max_frames_s=20.0, max_clip_s=30.0) as client:
        yield client


def vectors(response: httpx.Response) -> list[np.ndarray]:
    assert response.status_code == 200, response.text
    return [np.array(item["embedding"], dtype=np.float32) for item in response.json()["data"]]


def post(client: httpx.Client, data: bytes = WAV, **options: object) -> httpx.Response:
    return client.post(URL, params=options, content=data, headers=RAW)


def as_json(client: httpx.Client, body: object) -> httpx.Response:
    text = body if isinstance(body, str) else json.dumps(body)
    return client.post(URL, content=text, headers={"content-type": "application/json"})


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def expected(layer: int = 3, how: str = "mean") -> np.ndarray:
    frames = FakeRuntime.frames(CLIP, layer)
    return frames.max(axis=0) if how == "max" else frames.astype(np.float64).mean(axis=0).astype(np.float32)


def test_the_three_forms_give_the_same_answer(client):
    answers = [
        client.post(URL, files={"file": ("clip.wav", WAV)}),
        post(client),
        client.post(URL, content=WAV, headers={"content-type": "application/octet-stream"}),
        as_json(client, {"input": b64(WAV), "modality": "audio"}),
        as_json(client, {"input": f"data:audio/wav;base64,{b64(WAV)}"}),
        as_json(client, {"input": base64.encodebytes(WAV).decode()}),
        as_json(client, {"input": [f"data:;base64,{b64(WAV)}"], "model": "fake"}),
    ]
    for answer in answers:
        assert answer.json() == {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": answer.json()["data"][0]["embedding"]}],
            "model": "fake",
            "usage": {"type": "duration", "seconds": 1.5},
        }
        np.testing.assert_array_equal(vectors(answer)[0], expected())


def test_several_files_in_one_request(client):
    clips = [tone(seconds, frequency=300) for seconds in (0.5, 2.0, 1.0)]
    files = [("file", (f"{i}.wav", encoded(clip))) for i, clip in enumerate(clips)]
    form = client.post(URL, files=files)
    listed = as_json(client, {"input": [b64(encoded(clip)) for clip in clips]})
    assert form.json() == listed.json()
    assert [item["index"] for item in form.json()["data"]] == [0, 1, 2]
    assert form.json()["usage"] == {"type": "duration", "seconds": 3.5}
    for clip, vector in zip(clips, vectors(form), strict=True):
        frames = FakeRuntime.frames(clip, 3).astype(np.float64)
        np.testing.assert_array_equal(vector, frames.mean(axis=0).astype(np.float32))


@pytest.mark.parametrize(("layer", "index"), [(0, 0), (2, 2), (3, 3), (-1, 3), (-4, 0)])
def test_layers(client, layer, index):
    np.testing.assert_array_equal(vectors(post(client, layer=layer))[0], expected(index))


@pytest.mark.parametrize("how", ["query", "form", "json"])
def test_options_are_read_wherever_they_are(client, how):
    options = {"layer": "1", "pooling": "max", "encoding_format": "float", "model": "fake", "user": "me"}
    if how == "query":
        response = post(client, **options)
    elif how == "form":
        response = client.post(URL, data=options, files={"file": ("a", WAV)}, params={"layer": "2"})
    else:
        response = as_json(client, {"input": b64(WAV), **options, "layer": 1})
    np.testing.assert_array_equal(vectors(response)[0], expected(1, "max"))


@pytest.mark.parametrize("seconds", [1.5, 11.0])  # one window, and several
def test_frames_as_lists_and_as_base64(client, seconds):
    clip = tone(seconds)
    frames = FakeRuntime.frames(clip, 3)
    listed = post(client, encoded(clip), pooling="none").json()["data"][0]
    assert listed["shape"] == list(frames.shape)
    np.testing.assert_array_equal(np.array(listed["embedding"], dtype=np.float32), frames)
    packed = post(client, encoded(clip), pooling="none", encoding_format="base64").json()["data"][0]
    assert packed["shape"] == list(frames.shape)
    data = base64.b64decode(packed["embedding"], validate=True)
    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(packed["shape"]), frames)


def test_pooled_base64_is_little_endian_float32(client):
    item = post(client, encoding_format="base64").json()["data"][0]
    assert "shape" not in item
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), expected())


def test_a_long_clip_is_pooled_over_all_its_windows(client):
    clip = tone(29.0)
    for how in ("mean", "max"):
        frames = FakeRuntime.frames(clip, 3).astype(np.float64)
        whole = frames.mean(axis=0) if how == "mean" else frames.max(axis=0)
        np.testing.assert_allclose(vectors(post(client, encoded(clip), pooling=how))[0], whole, rtol=1e-6)


def test_other_rates_channels_and_formats(client):
    stereo = np.stack([tone(1.0, rate=44_100), np.zeros(44_100, np.float32)], axis=1)
    for format, subtype in [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)]:
        data = encoded(stereo, rate=44_100, format=format, subtype=subtype)
        response = post(client, data)
        assert vectors(response)[0].shape == (5,)
        assert response.json()["usage"]["seconds"] == pytest.approx(1.0, abs=0.06), format


OPTION_MISTAKES = [
    ({"layer": "4"}, "layer"),
    ({"layer": "-5"}, "layer"),
    ({"layer": "nan"}, "layer"),
    ({"layer": "1e400"}, "layer"),
    ({"layer": "1.5"}, "layer"),
    ({"layer": "9" * 4000}, "layer"),
    ({"layer": ""}, "layer"),
    ({"pooling": "nan"}, "pooling"),
    ({"pooling": "median"}, "pooling"),
    ({"encoding_format": "hex"}, "encoding_format"),
    ({"modality": "text"}, "modality"),
    ({"dimensions": "64"}, "dimensions"),
]


@pytest.mark.parametrize(("options", "param"), OPTION_MISTAKES)
def test_wrong_options(client, options, param):
    answers = [
        post(client, **options),
        client.post(URL, data=options, files={"file": ("a", WAV)}),
        as_json(client, {"input": b64(WAV), **options}),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param
        assert error_of(answer)["type"] == "invalid_request_error"
        assert len(answer.content) < 1000


JSON_MISTAKES = [
    ("", 400, "empty", None),
    ("{", 400, "malformed_json", None),
    ("[" * 100_000, 400, "malformed_json", None),
    ("[]", 400, "malformed_json", None),
    ('{"input": NaN}', 400, "invalid_value", "input"),
    ('{"layer": Infinity, "input": "AAAA"}', 400, "invalid_value", "layer"),
    ("{}", 400, "invalid_value", "input"),
    ('{"input": []}', 400, "invalid_value", "input"),
    ('{"input": [1]}', 400, "invalid_value", "input"),
    ('{"input": [""]}', 400, "empty", "input[0]"),
    ('{"input": "AAA"}', 400, "malformed_base64", "input[0]"),
    ('{"input": "AA=A"}', 400, "malformed_base64", "input[0]"),
    ('{"input": "AAA*\\n"}', 400, "malformed_base64", "input[0]"),
    ('{"input": "\\ud800"}', 400, "malformed_base64", "input[0]"),
    ('{"model": "\\ud800", "input": "AAAA"}', 404, "model_not_found", "model"),
    ('{"\\ud800": 1, "input": "AAAA"}', 400, "invalid_value", None),
    ('{"input": "data:audio/wav,AAAA"}', 400, "invalid_value", "input[0]"),
    ('{"input": "https://example.org/a.wav"}', 400, "invalid_value", "input[0]"),
    ('{"input": "file:///etc/passwd"}', 400, "invalid_value", "input[0]"),
    ('{"input": ["AAAA", "AAAA", "AAAA", "AAAA"]}', 400, "invalid_value", "input"),
    ('{"input": "UklGRgAA"}', 422, "undecodable", "input[0]"),
    ('{"input": "AAAA"}', 415, "unsupported_format", "input[0]"),
    ('{"input": "' + "A" * 40_000 + '"}', 415, "unsupported_format", "input[0]"),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), JSON_MISTAKES)
def test_wrong_json(client, body, status, code, param):
    answer = as_json(client, body)
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert len(answer.content) < 1000


def form(*parts: bytes, end: bytes = b"--x--\r\n", kind: str = "multipart/form-data; boundary=x") -> dict:
    return {"content": b"".join(parts) + end, "headers": {"content-type": kind}}


def part(disposition: bytes, data: bytes) -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + data + b"\r\n"


FILE = part(b'name="file"; filename="a.wav"', WAV)
FORM_MISTAKES = [
    (form(), "empty"),
    (form(kind="multipart/form-data"), "malformed_form"),
    (form(kind="multipart/form-data; boundary=" + "x" * 500), "malformed_form"),
    (form(FILE[:-100], end=b""), "malformed_form"),
    (form(FILE, part(b'name="file"; filename="b.wav"', WAV)[:500], end=b""), "malformed_form"),
    (form(FILE, end=b""), "malformed_form"),
    (form(b"garbage"), "malformed_form"),
    (form(part(b'filename="a.wav"', WAV)), "malformed_form"),
    (form(part(b'name="file"', WAV)), "malformed_form"),  # a field this long cannot be text
    (form(part(b'name="file"', b"clip.wav")), "invalid_value"),
    (form(part(b'name="audio"; filename="a.wav"', WAV)), "invalid_value"),
    (form(part(b'name="file"; filename="a.wav"', b"")), "empty"),
    (form(*[FILE] * 4), "malformed_form"),
    (form(FILE, *[part(b'name="user"', b"me")] * 257), "malformed_form"),
    (form(FILE, part(b'name="layer"', b"1"), part(b'name="layer"', b"2")), "invalid_value"),
    (form(FILE, part(b'name="\xff\xfe"', b"1")), "invalid_value"),
]


@pytest.mark.parametrize(("request_", "code"), FORM_MISTAKES)
def test_wrong_forms(client, request_, code):
    answer = client.post(URL, **request_)
    assert (answer.status_code, error_of(answer)["code"]) == (400, code), answer.text


def test_a_typing_error_in_an_option_is_named(client):
    answer = post(client, layr=1)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "layr")
    assert error_of(answer)["message"] == "layr: not permitted: there is no option of this name"


def test_an_unknown_model_and_its_default_name(client):
    for answer in (post(client, model="whisper"), as_json(client, {"input": b64(WAV), "model": "x" * 9999})):
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "model_not_found"
        assert error_of(answer)["param"] == "model"
        assert len(answer.content) < 1000
    assert post(client, model="default").json()["model"] == "fake"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "video/mp4", "é"])
def test_other_content_types(client, kind):
    headers = {"content-type": kind.encode()} if kind else {}
    answer = client.post(URL, content=WAV, headers=headers)
    assert answer.status_code == 415
    assert "FLAC" in str(error_of(answer)["message"])


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty"),
        (b"not audio at all", 415, "unsupported_format"),
        (WAV[:30], 422, "undecodable"),
        (encoded(tone(0.02)), 422, "too_short"),
        (encoded(tone(31.0, rate=8000), rate=8000), 422, "too_long"),
        (encoded(np.full(16_000, np.nan, np.float32)), 422, "bad_samples"),
        (encoded(np.zeros((1600, 17), np.float32)), 422, "too_many_channels"),
        (encoded(tone(1.0, rate=2000), rate=2000), 422, "bad_rate"),
    ],
)
def test_audio_that_is_refused(client, data, status, code):
    answer = post(client, data)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text
    if data:
        files = [("file", ("good.wav", WAV)), ("file", ("bad.wav", data))]
        among = client.post(URL, files=files)
        assert (among.status_code, error_of(among)["code"]) == (status, code)
        assert error_of(among)["param"] == "file[1]"


def test_frames_of_too_much_audio(client):
    answer = post(client, encoded(tone(21.0)), pooling="none")
    assert (answer.status_code, error_of(answer)["code"]) == (422, "too_long")
    assert vectors(post(client, encoded(tone(21.0))))[0].shape == (5,)


def test_the_frameworks_own_errors_have_the_shape(client):
    unknown, method = client.get("/v1/nothing"), client.get(URL)
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "not_found")
    assert (method.status_code, error_of(method)["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"


def test_models_health_and_docs(client):
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert {key: models["data"][0][key] for key in ("id", "object", "layers", "width", "sample_rate")} == {
        "id": "fake",
        "object": "model",
        "layers": 3,
        "width": 5,
        "sample_rate": 16_000,
    }
    assert client.get("/health/live").json() == client.get("/health/ready").json() == {"status": "ok"}
    assert "openapi.json" in client.get("/docs").text and client.get("/openapi.json").status_code == 200
    operation = client.get("/openapi.json").json()["paths"][URL]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "audio/*", "application/json"}
    assert {"200", "400", "404", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
    assert "422" not in client.get("/openapi.json").json()["paths"]["/v1/models"]["get"]["responses"]


def test_request_ids_and_times(client):
    answer = post(client)
    assert len(answer.headers["x-request-id"]) == 32
    waited, ran, total = (float(answer.headers[f"x-{name}-time"]) for name in ("queue", "inference", "total"))
    assert 0 <= waited < total and 0 < ran < total
    named = client.get("/nothing", headers={"x-request-id": "trace-7.a"})
    assert named.headers["x-request-id"] == "trace-7.a"
    unfit = client.get("/nothing", headers={"x-request-id": "a b<script>"})
    assert len(unfit.headers["x-request-id"]) == 32


def test_metrics():
    with serving(FakeRuntime()) as client:
        post(client)
        post(client, b"not audio at all")
        client.get("/nothing")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'speech_ssl_requests_total{outcome="200",route="/v1/embeddings"} 1.0' in lines
    assert 'speech_ssl_requests_total{outcome="415",route="/v1/embeddings"} 1.0' in lines
    assert 'speech_ssl_requests_total{outcome="404",route="unmatched"} 1.0' in lines
    assert 'speech_ssl_decode_failures_total{code="unsupported_format"} 1.0' in lines
    assert "speech_ssl_audio_seconds_total 1.5" in lines
    assert "speech_ssl_queued_audio_seconds 0.0" in lines
    assert "speech_ssl_wait_seconds_count 1.0" in lines
    assert "speech_ssl_batch_padding_ratio_count 1.0" in lines
    assert "speech_ssl_ready 1.0" in lines

"""Tensors that are not as they should be: each is refused by its name, and none breaks the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime
from tests.service.fakes import FakeRuntime
from tests.service.support import encoded, error_of, serving, tone
from tests.service.tensors import INFER, ask, files, refused, samples


@pytest.fixture(scope="module")
def fake() -> Iterator[httpx.Client]:
    with serving(FakeRuntime(), max_files=3, max_clip_s=30.0, max_frames_s=20.0, max_queue_s=50.0) as client:
        yield client


SHORT = files(b"abc")
AUDIO = samples(np.zeros((2, 3)))
MISTAKES: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, "inputs", "required"),
    ({"inputs": []}, "inputs", "at least 1"),
    ({"inputs": [AUDIO, AUDIO]}, "inputs", "at most 1"),
    ({"inputs": [AUDIO | {"name": "sound"}]}, "inputs[0].name", "'audio'"),
    ({"inputs": [AUDIO | {"datatype": "FP64"}]}, "inputs[0].datatype", "'BYTES' or 'FP32'"),
    ({"inputs": [AUDIO | {"shape": [-1, 3]}]}, "inputs[0].shape[0]", "greater than or equal to 0"),
    ({"inputs": [AUDIO | {"shape": [2.0, 3]}]}, "inputs[0].shape[0]", "valid integer"),
    ({"inputs": [AUDIO | {"shape": [2**64, 3]}]}, "inputs[0].shape[0]", "less than"),
    ({"inputs": [AUDIO | {"shape": []}]}, "inputs[0].shape", "at least 1"),
    ({"inputs": [AUDIO | {"shape": [1, 2, 3]}]}, "inputs[0].shape", "at most 2"),
    ({"inputs": [AUDIO | {"data": "AAAA"}]}, "inputs[0].data", "valid list"),
    ({"inputs": [AUDIO | {"parameters": {"binary_data_size": 9}}]}, "inputs[0].parameters", "not served"),
    ({"inputs": [AUDIO | {"parameters": {"speed": 9}}]}, "inputs[0].parameters.speed", "not permitted"),
    ({"inputs": [AUDIO | {"shape": [0, 3], "data": []}]}, "audio", "1 to 3 clips"),
    ({"inputs": [AUDIO | {"shape": [4, 3]}]}, "audio", "1 to 3 clips"),
    ({"inputs": [AUDIO | {"shape": [3, 3]}]}, "audio", "its data has 2 rows"),
    ({"inputs": [AUDIO | {"shape": [2, 2]}]}, "audio", "not rows of 2"),
    ({"inputs": [AUDIO | {"shape": [2, 3], "data": [0] * 5}]}, "audio", "6 numbers, its data has 5"),
    ({"inputs": [AUDIO | {"shape": [2**63, 2**63]}]}, "audio", "1 to 3 clips"),
    ({"inputs": [AUDIO | {"shape": [5]}]}, "audio", "5 numbers, its data has 2"),
    ({"inputs": [AUDIO | {"data": [[0, 1, 2], [3, 4]]}]}, "audio", "not rows of 3"),
    ({"inputs": [AUDIO | {"data": [[0, 1, 2], 3]}]}, "audio", "not rows of 3"),
    ({"inputs": [AUDIO | {"data": [[0, 1, [2]], [3, 4, 5]]}]}, "audio", "is numbers"),
    ({"inputs": [AUDIO | {"data": [0, 1, 2, 3, 4, "5"]}]}, "audio", "is numbers"),
    ({"inputs": [AUDIO | {"data": [0, 1, 2, 3, 4, True]}]}, "audio", "is numbers"),
    ({"inputs": [AUDIO | {"data": [0, 1, 2, 3, 4, None]}]}, "audio", "is numbers"),
    ({"inputs": [SHORT | {"shape": [1, 1]}]}, "audio", "shape [n]"),
    ({"inputs": [SHORT | {"shape": [2]}]}, "audio", "2 files, its data has 1"),
    ({"inputs": [SHORT | {"data": [[1, 2]]}]}, "audio", "is strings"),
    ({"inputs": [SHORT | {"data": ["https://example.org/a.wav"]}]}, "audio[0]", "not fetched"),
    ({"inputs": [AUDIO], "outputs": [{"name": "text"}]}, "outputs[0].name", "'embedding', "),
    ({"inputs": [AUDIO], "outputs": [{"name": "frames"}]}, "outputs", "of one clip, not of 2"),
    ({"inputs": [AUDIO], "outputs": [{"name": "embedding"}] * 2}, "outputs", "twice"),
    (
        {"inputs": [AUDIO], "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}]},
        "outputs[0].parameters.binary_data",
        "not served",
    ),
    (
        {"inputs": [AUDIO], "parameters": {"binary_data_output": True}},
        "parameters.binary_data_output",
        "not served",
    ),
    ({"inputs": [AUDIO], "parameters": {"layer": "1"}}, "parameters.layer", "valid integer"),
    ({"inputs": [AUDIO], "parameters": {"layer": 9}}, "layer", "0 to 3"),
    ({"inputs": [AUDIO], "parameters": {"pooling": "none"}}, "parameters.pooling", "'mean' or 'max'"),
    ({"inputs": [AUDIO], "parameters": {"tempo": 1}}, "parameters.tempo", "not permitted"),
    ({"inputs": [AUDIO], "id": 7}, "id", "valid string"),
    ({"inputs": [AUDIO], "id": "7" * 1025}, "id", "1024 characters"),
    ({"inputs": [AUDIO], "modelname": "x"}, "modelname", "not permitted"),
]


@pytest.mark.parametrize(("body", "param", "words"), MISTAKES)
def test_mistakes_are_named(fake: httpx.Client, body: dict[str, Any], param: str, words: str) -> None:
    refused(fake.post(INFER, json=body), 400, "invalid_value", param, words)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty"),
        (b"{", "malformed_json"),
        (b"[]", "malformed_json"),
        (b"\xff\x00", "malformed_json"),
        (b"[" * 100_000, "malformed_json"),
    ],
)
def test_what_is_not_json(fake: httpx.Client, body: bytes, code: str) -> None:
    refused(fake.post(INFER, content=body), 400, code, None)


def test_binary_tensors_are_refused_by_name(fake: httpx.Client) -> None:
    headers = {"Inference-Header-Content-Length": "2"}
    answer = fake.post(INFER, content=b"{}" + bytes(100), headers=headers)
    refused(answer, 400, "invalid_value", "Inference-Header-Content-Length", "binary tensor data")


@pytest.mark.parametrize(
    ("tensor", "status", "code", "param"),
    [
        (files(encoded(tone(1.0)), b"abc"), 415, "unsupported_format", "audio[1]"),
        (files(b""), 400, "empty", "audio[0]"),
        (SHORT | {"data": ["?"]}, 400, "malformed_base64", "audio[0]"),
        (samples(np.zeros((1, 0))), 400, "empty", "audio[0]"),
        (samples(np.zeros(0)), 400, "empty", "audio[0]"),
        (samples(tone(0.02)), 422, "too_short", "audio[0]"),
        (samples(tone(30.1)), 422, "too_long", "audio[0]"),
        (samples(np.zeros((2, 26 * 16_000))), 422, "too_long", "audio[1]"),
        (samples(np.stack([tone(1.0), np.full(16_000, np.nan)])), 422, "bad_samples", "audio[1]"),
        (samples(np.full(16_000, -np.inf)), 422, "bad_samples", "audio[0]"),
        (AUDIO | {"shape": [6], "data": [0, 1, 2, 3, 4, 10**400]}, 422, "bad_samples", "audio[0]"),
        (samples(np.full(16_000, 1e300)), 422, "bad_samples", "audio[0]"),
        (samples(np.full(16_000, 1e30)), 422, "bad_samples", "audio[0]"),
    ],
)
def test_audio_that_is_refused(
    fake: httpx.Client, tensor: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = fake.post(INFER, content=json.dumps({"inputs": [tensor]}))  # with NaN and Infinity
    refused(answer, status, code, param)


def test_frames_of_too_much_and_heads_that_are_not_there(
    fake: httpx.Client, answering_artifact: Path
) -> None:
    refused(ask(fake, samples(tone(21.0)), "frames"), 422, "too_long", "audio[0]", "at most 20 s")
    for name in ("transcription", "classification"):
        refused(ask(fake, samples(tone(1.0)), name), 400, "unsupported_task", "model")
    with serving(Runtime(load_artifact(answering_artifact))) as client:
        wrong = ask(client, samples(tone(1.0)), "transcription", speech_head="sounds")
    refused(wrong, 400, "unsupported_task", "head", "has no head 'sounds'")


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists, max_leaves=8
)
sizes = st.lists(st.integers(-1, 4) | st.integers(2**62, 2**65), max_size=3)


def perhaps(good: Any) -> st.SearchStrategy[Any]:
    return st.just(good) | odd


tensor = st.fixed_dictionaries(
    {
        "name": perhaps("audio"),
        "shape": sizes | odd,
        "datatype": st.sampled_from(["FP32", "BYTES", "INT8"]) | odd,
        "data": st.lists(st.floats() | st.integers(-(10**320), 10**320), max_size=4)
        | st.lists(st.lists(st.floats(), max_size=3), max_size=3)
        | st.lists(st.text("QUJD=", max_size=8), max_size=4)
        | odd,
    },
    optional={"parameters": odd | st.dictionaries(st.text(max_size=4), odd, max_size=2)},
)
asked = st.fixed_dictionaries(
    {"inputs": st.lists(tensor, min_size=1, max_size=1) | st.lists(tensor | odd, max_size=2) | odd},
    optional={
        "id": odd,
        "parameters": odd | st.dictionaries(st.sampled_from(["layer", "pooling", "x"]), odd, max_size=2),
        "outputs": odd | st.lists(st.fixed_dictionaries({"name": perhaps("frames")}), max_size=2),
    },
)


@settings(max_examples=300, deadline=None)
@given(body=asked)
def test_no_tensor_breaks_it(fake: httpx.Client, body: dict[str, Any]) -> None:
    answer = fake.post(INFER, content=json.dumps(body))
    assert answer.status_code in (400, 415, 422), answer.text
    error_of(answer)

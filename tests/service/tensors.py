"""What the tests of the Open Inference Protocol share: tensors, and checks."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np

from tests.service.support import error_of

INFER = "/v2/models/default/infer"


def files(*data: bytes) -> dict[str, Any]:
    texts = [base64.b64encode(each).decode() for each in data]
    return {"name": "audio", "shape": [len(texts)], "datatype": "BYTES", "data": texts}


def samples(wave: np.ndarray, *, nested: bool = True) -> dict[str, Any]:
    data = wave.tolist() if nested else wave.reshape(-1).tolist()
    return {"name": "audio", "shape": list(wave.shape), "datatype": "FP32", "data": data}


def ask(
    client: httpx.Client, tensor: Any, *outputs: str, url: str = INFER, **parameters: Any
) -> httpx.Response:
    body: dict[str, Any] = {"inputs": [tensor], "parameters": parameters}
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    return client.post(url, json=body)


def tensors(answer: httpx.Response) -> dict[str, Any]:
    """By name: arrays, and lists of texts."""
    assert answer.status_code == 200, answer.text[:500]
    found: dict[str, Any] = {}
    for output in answer.json()["outputs"]:
        assert set(output) == {"name", "shape", "datatype", "data"}
        if output["datatype"] == "FP32":
            found[output["name"]] = np.array(output["data"], np.float32).reshape(output["shape"])
        else:
            assert output["datatype"] == "BYTES" and output["shape"] == [len(output["data"])]
            found[output["name"]] = output["data"]
    return found


def refused(answer: httpx.Response, status: int, code: str, param: str | None, words: str = "") -> None:
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert words in str(error["message"]) and len(answer.content) < 1000

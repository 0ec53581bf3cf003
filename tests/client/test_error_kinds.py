"""An error is of the same kind wherever it comes: as an answer, or within a stream or a job's results."""

from __future__ import annotations

import ast
import json
from typing import get_args

import httpx
import pytest

from service.batcher import Again, Overloaded, Stopped, TooLarge
from service.errors import ServiceError, as_service_error, bad_request, unavailable
from speech_ssl.audio.errors import AudioError, Code
from speech_ssl.client.errors import of_event, of_response
from speech_ssl.client.retrying import FOR_GOOD
from tests.service.support import ROOT


def written(call: ast.Call) -> ServiceError | None:
    """The error that a call in the service's source makes, if its status and its code stand there."""
    name = ast.unparse(call.func)
    values = [each.value if isinstance(each, ast.Constant) else None for each in call.args]
    named = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    match name, values:
        case "ServiceError", [int(status), str(code), *_]:
            return ServiceError(status, code, "no")
        case "unavailable", [str(code), *_]:
            return unavailable(code, "no")
        case "bad_request" | "_refusal", _:
            positional = values[2] if len(values) > 2 else None
            return bad_request("no", code=str(named.get("code") or positional or "invalid_value"))
    return None


def errors() -> list[ServiceError]:
    found = [as_service_error(AudioError(code, "no")) for code in get_args(Code)]
    found += map(as_service_error, (TooLarge("no"), Overloaded(1.0), Stopped(), Again(), TimeoutError()))
    found += [ServiceError(401, code, "no") for code in ("missing_api_key", "invalid_api_key")]
    found.append(as_service_error(RuntimeError("no")))
    for path in (ROOT / "service").rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found += [error for call in calls if (error := written(call)) is not None]
    return list({(error.status, error.code): error for error in found}.values())


@pytest.mark.parametrize("error", errors(), ids=lambda error: f"{error.status} {error.code}")
def test_it_is_the_same_in_a_stream(error: ServiceError) -> None:
    request = httpx.Request("POST", "http://localhost/v1/audio/transcriptions")
    plain = of_response(httpx.Response(error.status, content=error.body(), request=request))
    streamed = of_event(json.loads(error.body())["error"], None)
    assert type(streamed) is type(plain)
    assert (streamed.code, streamed.status, streamed.param) == (plain.code, plain.status, plain.param)


def test_what_is_not_tried_again_is_not_to_be() -> None:
    """The page of the service, for one, goes by what is asked."""
    for error in errors():
        if error.code in FOR_GOOD:
            assert "Retry-After" not in (error.headers or {}), error.code


def test_all_of_them_were_found() -> None:
    codes = {error.code for error in errors()}
    assert {"model_lost", "restarting", "not_loaded", "jobs_off", "storage_full", "too_short"} <= codes
    assert len(codes) > 35

"""Malformed uploads against the real process: a refusal for each, and the good clip is answered as before."""

from __future__ import annotations

import base64
import random
from collections import Counter

import httpx
import pytest

from speech_ssl.audio import decode
from tests.service.malformed import as_wav, cases, patched, scrambled, with_total
from tests.service.support import error_of
from tests.sounds_av import FORMATS_AV, encoded_av

URL = "/v1/embeddings"


@pytest.fixture(scope="module")
def hello(prompts) -> bytes:
    return (prompts / "audio" / "hello.flac").read_bytes()


def sent(client: httpx.Client, data: bytes, how: int) -> httpx.Response:
    """In one of the three forms."""
    if how % 3 == 0:
        return client.post(URL, files={"file": ("clip.wav", data, "audio/wav")})
    if how % 3 == 1:
        return client.post(URL, content=data, headers={"content-type": "audio/wav"})
    text = base64.b64encode(data).decode()
    return client.post(URL, json={"input": f"data:audio/wav;base64,{text}", "modality": "audio"})


def test_300_malformed_uploads_are_refused_and_the_service_goes_on(real_service, prompts, hello):
    client = real_service.client
    before = sent(client, hello, 1).json()["data"]
    uploads = cases(prompts)
    assert len(uploads) >= 300
    assert len({upload.data for upload in uploads}) > 290
    codes: Counter[object] = Counter()
    for index, upload in enumerate(uploads):
        answer = sent(client, upload.data, index)
        assert answer.status_code in upload.statuses, (
            f"{upload.name}: {answer.status_code} {answer.text[:200]}"
        )
        codes[error_of(answer)["code"]] += 1
        if index % 25 == 0:
            assert sent(client, hello, index).json()["data"] == before, f"after {upload.name}"
    assert sent(client, hello, 1).json()["data"] == before
    assert real_service.popen.poll() is None
    assert {"unsupported_format", "undecodable", "too_long", "too_short", "too_many_channels"} <= set(codes)
    assert {"bad_rate", "bad_samples", "empty"} <= set(codes)
    assert real_service.metric("queued_audio_seconds") == real_service.metric("in_flight_requests") == 0
    assert "Traceback" not in real_service.log.read_text()


def test_lies_about_the_length_do_not_change_the_answer(real_service, hello):
    """Samples are counted, not believed: audio that is all there is read, whatever the header says."""
    client, wav = real_service.client, as_wav(hello)
    honest = sent(client, wav, 1).json()
    for size in (len(wav), 2**31 - 1, 2**32 - 1):
        lie = patched(wav, 40, size.to_bytes(4, "little"))
        assert sent(client, lie, 1).json() == honest, size
    unknown = with_total(hello, 0)  # a stream's: the format allows it
    assert sent(client, unknown, 1).json() == sent(client, hello, 1).json()


def test_mutated_films_and_webm_are_answered_or_refused_but_never_fail(real_service, hello):
    client, rng = real_service.client, random.Random(8)
    speech = decode(hello)[:16_000]
    whole = [encoded_av(speech, 16_000, *form) for form in FORMATS_AV]
    statuses = set()
    for index in range(90):
        data = bytearray(whole[index % len(whole)])
        begin = max(data.rfind(b"moov"), 0)
        for _ in range(rng.choice((1, 5, 40))):
            data[rng.randrange(begin, min(len(data), begin + 1_000))] = rng.randrange(256)
        answer = sent(client, bytes(data), index)
        assert answer.status_code in (200, 400, 415, 422), answer.text[:300]
        if answer.status_code != 200:
            error_of(answer)
        statuses.add(answer.status_code)
    assert {200, 422} <= statuses


def test_mutations_are_answered_or_refused_but_never_fail(real_service, prompts, hello):
    client, rng = real_service.client, random.Random(7)
    before = sent(client, hello, 1).json()["data"]
    statuses = set()
    for index in range(90):
        data = scrambled(rng, hello if index % 2 else as_wav(hello))
        answer = sent(client, data, index)
        assert answer.status_code in (200, 400, 415, 422), answer.text[:300]
        if answer.status_code != 200:
            error_of(answer)
        statuses.add(answer.status_code)
    assert {200, 422} <= statuses
    assert sent(client, hello, 1).json()["data"] == before

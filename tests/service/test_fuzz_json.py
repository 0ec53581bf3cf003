"""Five thousand bodies of JSON that are wrong in all ways: no answer is a 5xx, none takes much memory, and
/health/live answers all the while."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import httpx
import pytest

from tests.narrow import save_narrow
from tests.service.support import Process, encoded, tone
from tests.service.tensors import INFER, files, samples
from tests.service.test_fuzz import DAMAGES, descendants

EMBEDDINGS = "/v1/embeddings"
MIB = 1 << 20
LIMIT, CLIENTS = 16 * MIB, 4
MOST_GROWTH = 512 * MIB
"""Of all processes together, with so many bodies of the limit at a time."""
ANSWERS = {200, 400, 404, 413, 415, 422}
WATCH = """
import http.client, sys, threading, time
host, port = sys.argv[1:]
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
worst, asked, client = 0.0, 0, http.client.HTTPConnection(host, int(port), timeout=120)
while not ended.wait(0.02):
    began = time.monotonic()
    client.request("GET", "/health/live")
    assert client.getresponse().read() == b'{"status":"ok"}'
    worst, asked = max(worst, time.monotonic() - began), asked + 1
print(worst, asked)
"""
"""In a process of its own: this one is busy."""

FRAGMENTS = [
    b"[],",
    b"{},",
    b"0,",
    b"-1.5,",
    b"256,",
    b"0.123456789012345678,",
    b'"",',
    b'"AAAA",',
    b"null,",
    b"true,",
    b"NaN,",
    b"-Infinity,",
    b"1e999999,",
    b"1" * 5_000 + b",",
    b"0." + b"1" * 300 + b",",
    b"[0],",
    b"[" + b"0," * 80 + b"0],",
    b'{"a":0},',
    b'"k":0,',
    b'"layer":1,',
    b"[",
    b'{"a":',
    b"\\u0041",
    b"\\ud800",
    b"\\/",
    b'\\"',
    b"\\\\",
    b"\\",
    b'"',
    b",",
    b"]",
    b"1",
    b" ",
    b"A",
    b"\xc3\xa9",
    b"\xed\xa0\x80",
    b"\xff",
    b"\x00",
]
ODD = [b"NaN", b"1e999999", b"-0", b"9" * 5_000, b'"\\ud800"', b"null", b"[]", b"{}", b'""', b"true", b"2.0"]
TYPES = ["application/json"] * 8 + [
    "application/json; charset=utf-8",
    "application/json;charset=utf-16",
    "application/json; charset=\xe9\xff",
    "application/json;;;=",
]


def whole_bodies() -> list[tuple[str, bytes]]:
    clip = encoded(tone(0.4), subtype="PCM_16")
    text = base64.b64encode(clip).decode()
    wave = tone(0.1)
    embeddings: list[dict[str, object]] = [
        {"input": text},
        {"input": [text, f"data:audio/wav;base64,{text}"], "layer": 1, "pooling": "max", "user": "me"},
        {"input": text, "encoding_format": "base64", "modality": "audio", "model": "default"},
    ]
    inferences: list[dict[str, object]] = [
        {"inputs": [files(clip, clip)], "id": "7", "outputs": [{"name": "embedding"}]},
        {"inputs": [samples(wave)], "parameters": {"layer": 1, "pooling": "max"}},
        {
            "inputs": [samples(wave[None])],
            "outputs": [{"name": "frames", "parameters": {"binary_data": False}}],
        },
    ]
    of_both = ((EMBEDDINGS, embeddings), (INFER, inferences))
    return [(path, json.dumps(body).encode()) for path, bodies in of_both for body in bodies]


def places(data: bytes) -> list[int]:
    """Where a value, a field or a character may begin."""
    return [at + 1 for at in range(len(data) - 1) if data[at] in b'[{:,"']


def stretched(data: bytearray, rng: random.Random, largest: int) -> bytearray:
    """With one thing very often: where a value may stand, or anywhere."""
    fragment = rng.choice(FRAGMENTS)
    size = int(100 * (largest / 100) ** rng.random())
    spots = places(data) if rng.random() < 0.9 else []
    at = rng.choice(spots) if spots else rng.randrange(len(data) + 1)
    many = fragment * (size // len(fragment) + 1)
    data[at:at] = b"[" + many.rstrip(b",") + b"]," if rng.random() < 0.5 else many
    return data


def with_fields(data: bytearray, rng: random.Random, largest: int) -> bytearray:
    """Of names that there are not."""
    count = rng.choice((1, 100, 3_000, 100_000))
    fields = b",".join(b'"k%d":%b' % (index, rng.choice(ODD)[:50]) for index in range(count))
    data[1:1] = fields[: largest - len(data)] + b","
    return data


def with_odd_values(data: bytearray, rng: random.Random, largest: int) -> bytearray:
    at = rng.choice(places(data) or [0])
    data[at : at + rng.choice((0, 1, 4, 20))] = rng.choice(ODD)
    return data


def in_another_encoding(data: bytearray, rng: random.Random, largest: int) -> bytearray:
    try:
        text = data.decode()
        return bytearray(text.encode(rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7"))))
    except UnicodeError:
        return data


def damaged_bytes(data: bytearray, rng: random.Random, largest: int) -> bytearray:
    return rng.choice(DAMAGES)(data, rng) if data else data


HARMS = [*[stretched] * 5, with_fields, *[with_odd_values] * 2, in_another_encoding, *[damaged_bytes] * 2]


def bodies(count: int, largest: int) -> Iterator[tuple[str, bytes, str, bool]]:
    """A path, a body, its type, and whether it is sent in chunks."""
    rng, whole = random.Random(5), whole_bodies()
    for index in range(count):
        path, good = whole[index % len(whole)]
        data = bytearray(good)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3)) if index % 50 else 0):
            data = rng.choice(HARMS)(data, rng, largest)
        yield path, bytes(data[: largest + 1]), rng.choice(TYPES), rng.random() < 0.2


def status_of(client: httpx.Client, body: tuple[str, bytes, str, bool]) -> int:
    path, data, kind, chunked = body
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    headers = {"content-type": kind.encode("latin-1")}
    answer = client.post(path, content=pieces if chunked else data, headers=headers)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "code", "param"} and len(answer.content) < 2_000, answer.text
    return answer.status_code


@contextmanager
def watched(client: httpx.Client) -> Iterator[list[float]]:
    """The longest that /health/live took, in seconds, and how often it was asked: at the end."""
    found: list[float] = []
    address = [client.base_url.host, str(client.base_url.port)]
    pipe = subprocess.PIPE
    watch = subprocess.Popen([sys.executable, "-c", WATCH, *address], stdin=pipe, stdout=pipe, text=True)
    try:
        yield found
        said, _ = watch.communicate(timeout=200)
        found += map(float, said.split())
    finally:
        watch.kill()
        watch.wait()


def resident(pid: int) -> int:
    """Bytes of a process and those below it."""
    pages = 0
    for each in (pid, *descendants(pid)):
        pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return pages * 4096


@contextmanager
def highest(pid: int) -> Iterator[list[int]]:
    """Bytes that they have grown by, at most: at the end."""
    found: list[int] = []
    before, peak, ended = resident(pid), 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            with suppress(FileNotFoundError, ProcessLookupError):  # of a process that has just ended
                peak = max(peak, resident(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.append(peak - before)


def check(process: Process, count: int, largest: int, slowest_s: float) -> None:
    client, pid = process.ready(), process.popen.pid
    good = [(path, data, TYPES[0], False) for path, data in whole_bodies()]
    assert {status_of(client, each) for each in good} == {200}
    sent, statuses = bodies(count, largest), Counter[int]()
    with ThreadPoolExecutor(CLIENTS) as pool, highest(pid) as grown, watched(client) as live:
        while some := list(islice(sent, 2 * CLIENTS)):  # not all at once: for the memory of this process
            statuses.update(pool.map(partial(status_of, client), some))
    (slowest, probes), (growth,) = live, grown
    print(f"\n{dict(statuses)}; grew by {growth >> 20} MiB; slowest of {probes:g} probes: {slowest:.3f} s")
    assert sum(statuses.values()) == count
    assert set(statuses) <= ANSWERS, statuses
    assert min(statuses[status] for status in (200, 400, 415)) > count // 100, "of all kinds"
    assert slowest < slowest_s and probes > 10
    assert growth < MOST_GROWTH
    assert {status_of(client, each) for each in good} == {200}
    assert "Traceback" not in process.log.read_text()


def test_two_hundred_bodies(real_service: Process) -> None:
    """How fast a probe has to be is tested below: a busy machine may itself stand still for a second."""
    check(real_service, 200, 2 * MIB, slowest_s=10.0)


@pytest.mark.slow
def test_five_thousand_bodies(start: Callable[..., Process], tmp_path: Path) -> None:
    model = str(save_narrow(tmp_path / "narrow"))
    check(start("service", SPEECH_SSL_MODEL=model), 5_000, LIMIT, slowest_s=1.0)

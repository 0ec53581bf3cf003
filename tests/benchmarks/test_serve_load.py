"""The parts of the load benchmark, without a service: its clips, its generator, its figures, its peer."""

from __future__ import annotations

import json
import math
import shutil
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch

from benchmarks import serve_load
from benchmarks.serving import peer as usual
from benchmarks.serving.clips import listed_clips, made_clips
from benchmarks.serving.generator import Generator, Load, Request, find_locust, read_results
from benchmarks.serving.processes import processor_s, serving
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.presets import base, tiny
from tests.service.support import encoded, tone


def request(clip: int = 0, began: float = 0.0, seconds: float = 1.0, **other: Any) -> Request:
    return Request(clip, began, seconds, **({"status": 200, "retry_after": None, "body": ""} | other))


def answer(vector: Sequence[float]) -> str:
    return json.dumps({"data": [{"embedding": list(vector)}]})


def test_clips_are_the_same_each_time_and_of_mixed_lengths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, two = (made_clips(tmp_path / name, count=12) for name in ("a", "b"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    known = [soundfile.info(path) for path in one]
    assert {(info.subtype, info.samplerate, info.channels) for info in known} == {("PCM_16", 16_000, 1)}
    lengths = sorted(info.duration for info in known)
    assert 1 <= lengths[0] < 5 and 15 < lengths[-1] <= 20 and len(set(lengths)) == 12
    assert all(0.1 < np.abs(soundfile.read(path)[0]).max() < 1 for path in one)


def test_clips_of_a_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "m.tsv"
    manifest.write_text("path\tduration_s\n" + "".join(f"{n}.wav\t1\n" for n in range(9)))
    clips = listed_clips(manifest)
    assert clips == listed_clips(manifest) != sorted(clips)
    assert sorted(path.name for path in clips) == [f"{n}.wav" for n in range(9)]
    manifest.write_text("path\tduration_s\tstart\tend\na.wav\t1\t0\t1\n")
    with pytest.raises(ValueError, match="whole files"):
        listed_clips(manifest)


def test_figures_of_a_load() -> None:
    requests = [request(n % 2, began=0.1 * n, seconds=n + 1) for n in range(100)]
    requests.append(request(1, began=1.0, seconds=0.5, status=429, retry_after="2"))
    load = Load(requests, [2.0, 4.0])
    assert load.elapsed_s == pytest.approx(9.9 + 100)
    assert load.throughput == pytest.approx(300 / 109.9)
    assert load.rate == pytest.approx(100 / 109.9)
    assert load.offered == pytest.approx(304 / 9.9)
    assert load.statuses == {200: 100, 429: 1}
    assert [load.latency_s(p) for p in (50, 95, 99)] == pytest.approx([50.5, 95.05, 99.01])
    assert not load.wrongly_refused
    wrong = [request(status=429), request(status=503, retry_after="1"), request(status=0)]
    assert Load([*requests, *wrong], [2.0, 4.0]).wrongly_refused == wrong
    assert math.isnan(Load(wrong, [2.0]).latency_s(50))


STANDS_IN = f"""#!{sys.executable}
import json, sys
options = dict(zip(sys.argv[1::1], sys.argv[2::1]))
clips = open(options["--clips"]).read().splitlines()
told = [[options[o] for o in ("--host", "-u", "-t", "--rate")], [open(c).read() for c in clips]]
with open(options["--results"], "w") as file:
    for number in range(len(clips)):
        line = dict(clip=number, began=1.0, seconds=2.0, status=200, retry_after=None, body=json.dumps(told))
        print(json.dumps(line), file=file)
"""


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_generator_is_told_what_to_do_and_read(tmp_path: Path) -> None:
    clips = [tmp_path / "one", tmp_path / "two"]
    for path in clips:
        path.write_text(path.name)
    generator = Generator(program(tmp_path / "locust", STANDS_IN), clips, [1.0, 3.0])
    closed = generator.closed("http://here", 64, 20)
    assert closed.throughput == 2.0 and closed.clips_s == [1.0, 3.0]
    assert json.loads(closed.requests[1].body) == [["http://here", "64", "20s", "0.0"], ["one", "two"]]
    opened = generator.open("http://here", 7.5, 20)
    assert json.loads(opened.requests[0].body)[0] == ["http://here", "75", "20s", "7.5"]


def test_a_generator_that_fails_or_is_missing(tmp_path: Path) -> None:
    text = f"#!{sys.executable}\nimport sys\nsys.exit('Error: it broke')"
    with pytest.raises(RuntimeError, match=r"exit status 1.*it broke"):
        Generator(program(tmp_path / "locust", text), [], []).closed("http://here", 1, 1)
    with pytest.raises(ValueError, match="pipx install locust"):
        find_locust(str(tmp_path / "none"))


def test_without_the_generator_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_load.main(["--locust", "no-such-program"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1


@contextmanager
def refusing_each_third() -> Iterator[str]:
    numbers = count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            refused = next(numbers) % 3 == 2
            said = answer([len(body)]).encode()
            self.send_response(429 if refused else 200)
            if refused:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.skipif(shutil.which("locust") is None, reason="needs locust")
def test_locust_sends_the_clips_and_tells_of_each_answer(tmp_path: Path) -> None:
    clips = [tmp_path / str(size) for size in (10, 100_000)]
    for path in clips:
        path.write_bytes(bytes(int(path.name)))
    generator = Generator(find_locust("locust"), clips, [1.0, 2.0])
    with refusing_each_third() as url:
        closed, opened = generator.closed(url, 2, 2), generator.open(url, 5.0, 2)
    for load in (closed, opened):
        assert set(load.statuses) == {200, 429} and not load.wrongly_refused
        assert all(serve_load.vector_of(r.body) == int(clips[r.clip].name) for r in load.served)
    assert len(opened.requests) <= 12


def test_results_are_lines_of_json() -> None:
    line = '{"clip": 3, "began": 1.5, "seconds": 0.5, "status": 0, "retry_after": null, "body": "gone"}'
    (read,) = read_results([line])
    assert read == request(3, 1.5, 0.5, status=0, body="gone") and read.ended == 2.0


def test_wrong_answers_are_noticed() -> None:
    expected = [np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)]

    def of(*vectors: Sequence[float]) -> Load:
        return Load([request(n, body=answer(v)) for n, v in enumerate(vectors)], [1.0, 1.0])

    assert serve_load.largest_difference(of([1, 2], [3, 4]), expected) == 0
    assert serve_load.largest_difference(of([1, 2], [3, 4.5]), expected) == 0.5
    assert serve_load.largest_difference(of([1, 2], [3]), expected) == math.inf
    assert serve_load.largest_difference(of([1, math.nan]), expected) == math.inf
    assert serve_load.are_vectors(of([1, 2], [3, 4]), 2)
    assert not serve_load.are_vectors(of([1, 2], [3, 4]), 3)
    changed = [request(body=answer([1, 2])), request(body=answer([1, 3]))]
    assert not serve_load.are_vectors(Load(changed, [1.0]), 2)


class Pretended:
    """A bench whose servers are none: each measurement has its requests."""

    def __init__(self, vector: Sequence[float], refused: int) -> None:
        self.seconds, self.generator = 0, Generator("", [], [10.0])
        self.served = [request(began=0.1 * n, body=answer(vector)) for n in range(10)]
        self.refused = [request(began=0.02 * n, status=429, retry_after="1") for n in range(refused)]

    @contextmanager
    def service(self, **_: str) -> Iterator[None]:
        yield

    peer = service

    def closed(self, server: None) -> serve_load.Served:
        return serve_load.Served(Load(self.served, [10.0]), 5.0)

    def open(self, server: None, rate: float) -> serve_load.Served:
        return serve_load.Served(Load(self.served + self.refused, [10.0]), 5.0)


class Width:
    width = 2


@pytest.mark.parametrize(("vector", "right"), [((1.0, 2.0), True), ((1.0, 2.1), False)])
def test_the_table(
    vector: Sequence[float], right: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_load, "measure_bare", lambda *_: serve_load.Speed(110.0, 2.0, 1.0))
    bench: Any = Pretended((1.0, 2.0), refused=30)
    runtime: Any = Width()
    expected = [np.array(vector, np.float32)]
    assert serve_load.compare(bench, runtime, expected, serve_load.PARTS) is right
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert rows["bare"].split()[1:] == ["55.0", "100%", "9.1"]
    assert rows["service"].split()[1:7] == ["52.6", "96%", "50.0", "1.00", "1.00", "1.00"]
    assert rows["overload"].endswith("10 x 200, 30 x 429")
    assert any("DOES NOT HOLD: at least 3 times" in line and "1.00 times" in line for line in lines)
    assert sum(line.startswith("holds: ") for line in lines) == 4
    assert ("there are wrong answers" in lines) is not right


def test_wrong_answers_end_with_status_1(monkeypatch: pytest.MonkeyPatch, tiny_artifact: Path) -> None:
    monkeypatch.setattr(serve_load, "compare", lambda *_: False)
    monkeypatch.setattr(serve_load, "made_clips", lambda folder: made_clips(folder, count=1))
    command = ["--model", str(tiny_artifact), "--locust", sys.executable, "--threads", "1"]
    assert serve_load.main(command) == 1
    monkeypatch.setattr(serve_load, "compare", lambda *_: True)
    assert serve_load.main(command) == 0


@pytest.mark.parametrize("config", [tiny(), base()])
def test_the_peer_is_of_the_same_size(config: EncoderConfig) -> None:
    with torch.device("meta"):
        ours, theirs = Encoder(config), usual.Wav2Vec2Model(usual.peer_config(config))
    sizes = [sum(each.numel() for each in model.parameters()) for model in (ours, theirs)]
    assert sizes[0] == sizes[1]


def test_the_peer_answers_in_a_process_of_its_own(tiny_artifact: Path, tmp_path: Path) -> None:
    wave = tone(1.0)
    peer = usual.Peer(tiny())
    with serving(
        ["benchmarks.serving.peer", str(tiny_artifact)], tmp_path / "log", {"OMP_NUM_THREADS": "1"}
    ) as server:
        body = server.post("/v1/embeddings", encoded(wave), "audio/wav").decode()
        stereo = np.stack([tone(1.0, rate=32_000)] * 2, axis=1)
        other = server.post("/v1/embeddings", encoded(stereo, rate=32_000), "audio/wav").decode()
        assert processor_s(server.pid) > 0
    with torch.inference_mode():
        normal = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        states = peer.model(torch.from_numpy(normal)[None]).last_hidden_state
    expected = states[0].mean(dim=0).numpy()
    np.testing.assert_allclose(serve_load.vector_of(body), expected, atol=1e-4)
    assert np.abs(serve_load.vector_of(other) - expected).max() < 0.1


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"did not start.*no such artifact|did not start.*nowhere"),
        serving(["benchmarks.serving.peer", str(tmp_path / "nowhere")], tmp_path / "log", {}),
    ):
        pass


def test_a_server_is_waited_for_and_ended(tmp_path: Path) -> None:
    """One that is not ready at first."""
    code = (
        "import sys, http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    asked = 0\n"
        "    def do_GET(self):\n"
        "        H.asked += 1\n"
        "        self.send_response(200 if H.asked > 2 else 503)\n"
        "        self.send_header('Content-Length', '1')\n"
        "        self.end_headers()\n"
        "        self.wfile.write(str(H.asked).encode())\n"
        "s = h.HTTPServer(('127.0.0.1', 0), H)\n"
        "print(f'listening on http://127.0.0.1:{s.server_address[1]}', file=sys.stderr, flush=True)\n"
        "s.serve_forever()\n"
    )
    (tmp_path / "slow_start.py").write_text(code)
    environment = {"PYTHONPATH": str(tmp_path)}
    with serving(["slow_start"], tmp_path / "log", environment) as server:
        assert server.get("/") == b"4"
        url = server.url
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)

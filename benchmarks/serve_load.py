"""The service under load, beside its own runtime and beside the usual way to serve such a model.

    python -m benchmarks.serve_load [--model default] [--clients 64] [--seconds 30] [--manifest M.tsv]
                                    [--threads N] [--only bare|overload|peer]

64 clips of 1 to 20 s, or those of a manifest, are sent to POST /v1/embeddings by locust, which shares the
machine with the server (`pipx install locust`: a tool of this benchmark, not of the project). It measures:

- bare: `Runtime.encode` of the same files, in batches as it likes, with nothing around it; half of the time
  before the service and half after it.
- service: `python -m service`, 64 clients that send the next clip when they have the answer to the last one.
  All its answers are compared with the bare runtime's vectors.
- overload: four times as many requests as it has just answered, at even intervals, with room in the queue for
  QUEUED_S seconds of work. Goodput is what it answers all the same.
- bf16: the service once more, in the precision that one would choose for its speed on a processor with
  bf16 products. Each of its vectors is held against the bare runtime's by its cosine.
- peer: FastAPI around transformers' Wav2Vec2Model of the same size, one request at a time (serving/peer.py),
  under the same load, as it comes: in fp32.

The bare runtime and the peer have a thread for each core; the service makes of the cores what it does by
itself. Throughput is in
seconds of audio a second, from the first request to the last answer; latency is of requests that were
answered with 200; processor time is of the server and its processes, for one second of audio: other programs
do not count in it. Ends with status 1 if an answer is wrong, whatever becomes of the claims.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import speech_ssl
from benchmarks.serving.clips import listed_clips, made_clips
from benchmarks.serving.generator import Generator, Load, find_locust
from benchmarks.serving.processes import Server, serving
from speech_ssl.inference.runtime import Runtime

PARTS = ("bare", "overload", "peer")
OVERLOAD = 4.0
QUEUED_S, LEAST_QUEUE_S = 5.0, 60.0
"""The queue under overload: so many seconds of work, and at least so many of audio, three of the longest."""
WARM_UP = 8
TOLERANCE = 1e-4
LEAST_COSINE = 0.9999
"""Of a vector in bf16 and the same one in fp32."""

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Speed:
    """Seconds of audio, of the clock and of the processor."""

    audio_s: float
    elapsed_s: float
    processor_s: float

    def __add__(self, other: Speed) -> Speed:
        return Speed(
            self.audio_s + other.audio_s,
            self.elapsed_s + other.elapsed_s,
            self.processor_s + other.processor_s,
        )

    @property
    def throughput(self) -> float:
        return self.audio_s / self.elapsed_s


@dataclass(frozen=True)
class Served:
    load: Load
    processor_s: float
    """Of the server, for all of it."""

    @cached_property
    def cost(self) -> float:
        return self.processor_s / (self.load.throughput * self.load.elapsed_s or math.nan)


@dataclass(frozen=True)
class Claim:
    text: str
    found: str
    holds: bool

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.text}: {self.found}"


@dataclass(frozen=True)
class Bench:
    """What the measurements share."""

    model: str
    threads: int
    clients: int
    seconds: int
    generator: Generator
    folder: Path

    def service(self, **settings: str) -> AbstractContextManager[Server]:
        environment = {
            "SPEECH_SSL_MODEL": self.model,
            "SPEECH_SSL_PORT": "0",
            "SPEECH_SSL_PRECISION": "fp32",
            "SPEECH_SSL_REQUEST_TIMEOUT_S": "900",
        }
        return self._serving("service", **environment | settings)

    def peer(self) -> AbstractContextManager[Server]:
        threads = {"OMP_NUM_THREADS": str(self.threads)}
        return self._serving("benchmarks.serving.peer", self.model, **threads)

    def _serving(self, *command: str, **environment: str) -> AbstractContextManager[Server]:
        return serving(command, self.folder / "log", environment)

    def closed(self, server: Server) -> Served:
        return self._measured(server, lambda: self.generator.closed(server.url, self.clients, self.seconds))

    def open(self, server: Server, rate: float) -> Served:
        return self._measured(server, lambda: self.generator.open(server.url, rate, self.seconds))

    def _measured(self, server: Server, run: Callable[[], Load]) -> Served:
        for path in self.generator.clips[:WARM_UP]:
            server.post("/v1/embeddings", path.read_bytes(), "audio/wav")
        before = server.processor_s()
        load = run()
        return Served(load, server.processor_s() - before)


def measure_bare(runtime: Runtime, clips: Sequence[Path], seconds: float) -> Speed:
    """Whole passes over all clips, for at least so long."""
    audio_s, began, processor = 0.0, time.perf_counter(), time.process_time()
    while not audio_s or time.perf_counter() - began < seconds:
        features = runtime.encode(clips)
        for each in features:
            each.pooled("mean")
        audio_s += sum(each.duration_s for each in features)
    return Speed(audio_s, time.perf_counter() - began, time.process_time() - processor)


def vector_of(body: str) -> Vector:
    return np.array(json.loads(body)["data"][0]["embedding"], dtype=np.float32)


def largest_difference(load: Load, expected: Sequence[Vector]) -> float:
    """Of all vectors answered from those expected; infinite for one of another shape, or not finite."""
    worst = 0.0
    for request in load.served:
        vector = vector_of(request.body)
        if vector.shape != expected[request.clip].shape or not np.isfinite(vector).all():
            return math.inf
        worst = max(worst, float(np.abs(vector - expected[request.clip]).max()))
    return worst


def least_cosine(load: Load, expected: Sequence[Vector]) -> float:
    """Of all vectors answered and those expected; -1 for one of another shape."""
    least = 1.0
    for request in load.served:
        vector, other = vector_of(request.body), expected[request.clip]
        if vector.shape != other.shape:
            return -1.0
        least = min(least, float(vector @ other / (np.linalg.norm(vector) * np.linalg.norm(other))))
    return least


def are_vectors(load: Load, width: int) -> bool:
    """Finite, of that width, and the same ones for the same clip: all that can be asked of random weights."""
    first = {request.clip: vector_of(request.body) for request in reversed(load.served)}
    expected = [first.get(clip, np.empty(0, np.float32)) for clip in range(len(load.clips_s))]
    return largest_difference(load, expected) <= TOLERANCE and {len(v) for v in first.values()} == {width}


def row_of(name: str, throughput: float, bare: float, cost: float, load: Load | None = None) -> str:
    row = f"{name:10}{throughput:10.1f}{throughput / bare:10.0%}{1000 * cost:12.1f}"
    if load is None:
        return row
    times = "".join(f"{load.latency_s(percent):9.2f}" for percent in (50, 95, 99))
    statuses = ", ".join(
        f"{count} x {status or 'no answer'}" for status, count in sorted(load.statuses.items())
    )
    return f"{row}{times}   {statuses}"


HEAD = (
    f"{'':10}{'audio s/s':>10}{'of bare':>10}{'CPU ms/s':>12}{'p50 s':>9}{'p95 s':>9}{'p99 s':>9}   answers\n"
)


def claims_of_service(served: Load, bare: Speed) -> Iterator[Claim]:
    share = served.throughput / bare.throughput
    yield Claim("throughput is at least 90 % of the bare runtime's", f"{share:.0%}", share >= 0.9)
    failures = len(served.requests) - len(served.served)
    yield Claim("no request fails", f"{failures} of {len(served.requests)}", not failures)


def claims_of_overload(overload: Load, peak: Load) -> Iterator[Claim]:
    share = overload.throughput / peak.throughput
    offered = f"offered {overload.offered / peak.throughput:.1f} times the peak"
    yield Claim("goodput is at least 90 % of the peak", f"{share:.0%}, {offered}", share >= 0.9)
    wrong, refused = len(overload.wrongly_refused), len(overload.requests) - len(overload.served)
    text = "every refusal is a 429 with Retry-After"
    yield Claim(text, f"{refused - wrong} of {refused}", not wrong)


def claim_of_peer(served: Load, fast: Load, peer: Load) -> Claim:
    same, times = served.throughput / peer.throughput, fast.throughput / peer.throughput
    found = f"{times:.2f} times in bf16, {same:.2f} times in fp32"
    return Claim("at least 3 times the throughput of the peer", found, times >= 3)


def compare(bench: Bench, runtime: Runtime, expected: Sequence[Vector], parts: Sequence[str]) -> bool:
    """Print rows as they come, then the claims; whether all answers were right."""
    clips, half = bench.generator.clips, bench.seconds / 2
    right: list[bool] = []
    claims: list[Claim] = []
    bare = measure_bare(runtime, clips, half)
    with bench.service() as server:
        service = bench.closed(server)
    if "bare" in parts:
        bare += measure_bare(runtime, clips, half)
        claims += claims_of_service(service.load, bare)
    print(HEAD + row_of("bare", bare.throughput, bare.throughput, bare.processor_s / bare.audio_s))

    def tell(name: str, measured: Served) -> None:
        row = row_of(name, measured.load.throughput, bare.throughput, measured.cost, measured.load)
        print(row, flush=True)

    tell("service", service)
    differences = [largest_difference(service.load, expected)]
    if "overload" in parts:
        room = max(QUEUED_S * service.load.throughput, LEAST_QUEUE_S)
        with bench.service(SPEECH_SSL_MAX_QUEUE_S=f"{room:.0f}") as server:
            overload = bench.open(server, OVERLOAD * service.load.rate)
        tell("overload", overload)
        differences.append(largest_difference(overload.load, expected))
        claims += claims_of_overload(overload.load, service.load)
    if "peer" in parts:
        with bench.service(SPEECH_SSL_PRECISION="bf16") as server:
            fast = bench.closed(server)
        tell("bf16", fast)
        with bench.peer() as server:
            peer = bench.closed(server)
        tell("peer", peer)
        cosine = least_cosine(fast.load, expected)
        print(f"least cosine of a vector in bf16 and the same in fp32: {cosine:.6f}")
        right += [cosine >= LEAST_COSINE, are_vectors(peer.load, runtime.width)]
        claims.append(claim_of_peer(service.load, fast.load, peer.load))
    right.append(max(differences) <= TOLERANCE)
    print(f"largest difference from the bare runtime's vectors: {max(differences):.1e}", *claims, sep="\n")
    if not all(right):
        print("there are wrong answers")
    return all(right)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The service under load, beside the runtime and a peer.")
    parser.add_argument("--model", default="default")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=30, help="of each measurement")
    parser.add_argument("--manifest", type=Path, help="its files are sent, not made-up ones")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of torch, for bare and peer"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="default: all of them")
    parser.add_argument("--locust", default="locust", help="the program that sends the requests")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            locust = find_locust(options.locust)
            clips = listed_clips(options.manifest) if options.manifest else made_clips(folder)
            runtime = speech_ssl.load(options.model, precision="fp32")
            features = runtime.encode(clips)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        clips_s = [each.duration_s for each in features]
        print(
            f"{len(clips)} clips of {min(clips_s):.1f} to {max(clips_s):.1f} s, {sum(clips_s):.0f} s in all; "
            f"{options.clients} clients; {runtime.name} with {options.threads} threads",
            flush=True,
        )
        generator = Generator(locust, clips, clips_s)
        bench = Bench(options.model, options.threads, options.clients, options.seconds, generator, folder)
        expected = [each.pooled("mean") for each in features]
        try:
            return 0 if compare(bench, runtime, expected, options.only or PARTS) else 1
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())

"""Servers in processes of their own, on a free port of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

ROOT = Path(__file__).resolve().parents[2]
START_S, END_S = 300.0, 60.0
LISTENING = re.compile(r"listening on (http://[\w.:]+)")


@dataclass(frozen=True)
class Server:
    url: str
    pid: int

    def get(self, path: str) -> bytes:
        return _ask(Request(self.url + path))

    def post(self, path: str, data: bytes, kind: str) -> bytes:
        return _ask(Request(self.url + path, data, {"Content-Type": kind}))

    def processor_s(self) -> float:
        return processor_s(self.pid)


@contextmanager
def serving(command: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[Server]:
    """`python -m COMMAND`, from the line of its log with its address, and the first 200 of its probe, on.
    Raises RuntimeError if it does not come to that. Ended by its own id."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        yield _ready(process, log, " ".join(command))
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], log: Path, command: str) -> Server:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if found := LISTENING.search(log.read_text()):
            server = Server(found[1], process.pid)
            try:
                server.get("/health/ready")
                return server
            except URLError:  # 503 while it loads
                pass
        time.sleep(0.1)
    last = " ".join(log.read_text().splitlines()[-1:])
    raise RuntimeError(f"{command} did not start: {last}")


def _ask(request: Request) -> bytes:
    """No proxy: it is on this machine."""
    with build_opener(ProxyHandler({})).open(request, timeout=START_S) as answer:
        data: bytes = answer.read()
    return data


def processor_s(pid: int) -> float:
    """Seconds that a process, and all that it started, have run so far. Linux."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        each = int(stat.parent.name)
        parents[each], ticks[each] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {pid}
    while more := {each for each, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(each, 0) for each in family) / os.sysconf("SC_CLK_TCK")

"""The load: locust in a process of its own, and what came of its requests."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
LAST_ANSWER_S = 900
"""For what is under way when the time is over: it counts too."""
PATIENCE_S = 10
"""Clients of an open loop: as many as there would be if each answer took so long."""
OK, TOO_MANY = 200, 429


@dataclass(frozen=True)
class Request:
    """What was asked and answered. clip: its number. status: 0 if there was no answer. body: of the answer,
    or why there was none."""

    clip: int
    began: float
    seconds: float
    status: int
    retry_after: str | None
    body: str

    @property
    def ended(self) -> float:
        return self.began + self.seconds


@dataclass(frozen=True)
class Load:
    """All requests of a run, from the first one sent to the last one answered. clips_s: how long each is."""

    requests: Sequence[Request]
    clips_s: Sequence[float]

    @property
    def elapsed_s(self) -> float:
        return max(r.ended for r in self.requests) - min(r.began for r in self.requests)

    @property
    def served(self) -> list[Request]:
        return [request for request in self.requests if request.status == OK]

    @property
    def throughput(self) -> float:
        """Seconds of audio that were answered with 200, a second."""
        return sum(self.clips_s[request.clip] for request in self.served) / self.elapsed_s

    @property
    def offered(self) -> float:
        """Seconds of audio sent, a second of the time in which they were sent."""
        sent_s = max(r.began for r in self.requests) - min(r.began for r in self.requests)
        return sum(self.clips_s[request.clip] for request in self.requests) / sent_s

    @property
    def rate(self) -> float:
        """Requests answered with 200, a second."""
        return len(self.served) / self.elapsed_s

    @property
    def statuses(self) -> Counter[int]:
        return Counter(request.status for request in self.requests)

    @property
    def wrongly_refused(self) -> list[Request]:
        """Those that are neither answered nor told when to come again."""
        return [r for r in self.requests if r.status != OK and not (r.status == TOO_MANY and r.retry_after)]

    def latency_s(self, percent: float) -> float:
        """Of those that were served."""
        seconds = [request.seconds for request in self.served]
        return float(np.percentile(seconds, percent)) if seconds else math.nan


def read_results(lines: Iterable[str]) -> list[Request]:
    return [Request(**json.loads(line)) for line in lines]


@dataclass(frozen=True)
class Generator:
    """locust: the program. clips_s: how long each clip is."""

    locust: str
    clips: Sequence[Path]
    clips_s: Sequence[float]

    def closed(self, url: str, clients: int, seconds: int) -> Load:
        """So many clients, each of which waits for its answer."""
        return self._run(url, clients, seconds, 0.0)

    def open(self, url: str, rate: float, seconds: int) -> Load:
        """So many requests a second, whatever comes of them."""
        return self._run(url, math.ceil(rate * min(seconds, PATIENCE_S)), seconds, rate)

    def _run(self, url: str, clients: int, seconds: int, rate: float) -> Load:
        """Raises RuntimeError if the generator fails."""
        with tempfile.TemporaryDirectory() as name:
            listed, results = Path(name) / "clips", Path(name) / "results"
            listed.write_text("\n".join(str(path.resolve()) for path in self.clips))
            command = [self.locust, "-f", str(LOCUSTFILE), "--headless", "--host", url]
            command += ["-u", str(clients), "-r", str(clients), "-t", f"{seconds}s"]
            command += ["--stop-timeout", str(LAST_ANSWER_S), "--exit-code-on-error", "0"]
            command += ["--loglevel", "ERROR", "--only-summary"]
            command += ["--clips", str(listed), "--results", str(results), "--rate", str(rate)]
            done = subprocess.run(command, cwd=name, capture_output=True, text=True, check=False)
            requests = read_results(results.read_text().splitlines()) if results.exists() else []
        if done.returncode or not requests:
            said = [line for line in done.stderr.splitlines() if "rror" in line]
            raise RuntimeError(
                f"the generator sent nothing (exit status {done.returncode}): {' '.join(said[:1])}"
            )
        return Load(requests, self.clips_s)


def find_locust(name: str) -> str:
    """Raises ValueError where it is not."""
    found = shutil.which(name)
    if found is None:
        raise ValueError(
            f"there is no {name!r} to send requests with: `pipx install locust` (or pip, into an environment "
            "of its own), or name the program with --locust"
        )
    return found

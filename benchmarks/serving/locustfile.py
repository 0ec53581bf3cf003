"""What locust runs: clients that send clips, and a line of JSON for each answer.

    locust -f benchmarks/serving/locustfile.py --headless --host URL -u CLIENTS -r CLIENTS -t 30s \\
        --clips LIST --results FILE [--rate REQUESTS]

Without a rate each client sends its next clip when it has the answer to the last one: a closed loop. With
one, requests are due at even intervals, whatever the answers do, and clients are those who send them: an
open loop, as long as one of them has nothing else to do. Needs locust alone, and nothing of this project.
"""

from __future__ import annotations

import itertools
import json
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from locust import FastHttpUser, events, task  # type: ignore[import-not-found]


class Client(FastHttpUser):  # type: ignore[misc]
    """What is shared by all clients belongs to the class."""

    connection_timeout = 60.0
    network_timeout = 900.0
    clips: Iterator[tuple[int, bytes]]
    results: TextIO
    rate: float
    due = itertools.count()
    began: float | None = None

    def on_start(self) -> None:
        """The first request has its time like the others."""
        if Client.began is None:
            Client.began = time.time()
        time.sleep(self.wait_time())  # gevent's, in locust

    def wait_time(self) -> float:
        if not self.rate:
            return 0.0
        assert Client.began is not None
        return max(0.0, Client.began + next(self.due) / self.rate - time.time())

    @task  # type: ignore[untyped-decorator]
    def embed(self) -> None:
        number, data = next(self.clips)
        self.client.post("/v1/embeddings", data=data, headers={"Content-Type": "audio/wav"}, name=str(number))


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--clips", type=Path, required=True, help="file with the path of a clip in each line")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0 is a closed loop")


@events.init.add_listener  # type: ignore[untyped-decorator]
def open_files(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    paths = options.clips.read_text().splitlines()
    Client.clips = itertools.cycle([(number, Path(path).read_bytes()) for number, path in enumerate(paths)])
    Client.results = options.results.open("w")
    Client.rate = options.rate


@events.request.add_listener  # type: ignore[untyped-decorator]
def tell(
    name: str, start_time: float, response_time: float, response: Any, exception: Any = None, **_: Any
) -> None:
    status = getattr(response, "status_code", 0)
    told = {
        "clip": int(name),
        "began": start_time,
        "seconds": response_time / 1000,
        "status": status,
        "retry_after": (response.headers or {}).get("Retry-After") if status else None,
        "body": response.text if status else repr(exception),
    }
    Client.results.write(json.dumps(told) + "\n")


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def close_files(**_: Any) -> None:
    Client.results.close()

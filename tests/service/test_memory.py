"""What the limits add up to, and that slow clients do not go beyond them."""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from service.settings import PREFIX, Settings
from service.stream import live
from service.v1.answering import PIECE_BYTES
from speech_ssl.inference.chunking import CONTEXT_S, WINDOW_S
from speech_ssl.types import SAMPLE_RATE
from tests.service.support import Process, encoded, until

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "settings.md").read_text()
MIB, GIB = 1 << 20, 1 << 30


def test_the_documented_sum_is_that_of_the_default_settings() -> None:
    parts = parts_of(Settings())
    for (part, _, written), size in zip(rows(), parts, strict=True):
        assert int(written) == round(size / MIB), part
    (said,) = re.findall(r"\| \*\*the sum\*\* \| \| \*\*(\d+)\*\* \|", DOCUMENT)
    assert int(said) == pytest.approx(sum(parts) / MIB, abs=len(parts))


def rows() -> list[tuple[str, str, str]]:
    """Of the table: the part, its formula, its MiB with the defaults."""
    section = DOCUMENT[DOCUMENT.index("## Memory") :]
    found = re.findall(r"^\| ([^|*]+) \| `([^`]+)` \| ([\d,]+) \|$", section, re.MULTILINE)
    assert len(found) > 5
    return [(part, formula, written.replace(",", "")) for part, formula, written in found]


def parts_of(settings: Settings) -> list[float]:
    """In bytes."""
    values = settings.model_dump() | {"MiB": MIB, "second": 64_000, "models": 1 + len(settings.models)}
    values["processes"] = settings.processes or 2
    return [float(eval(formula, {"__builtins__": {}}, values)) for _, formula, _ in rows()]


def test_what_is_said_of_6_and_of_4_gibibytes_holds() -> None:
    assert "a container needs 6 GiB with the defaults" in DOCUMENT and sum(parts_of(Settings())) < 6 * GIB
    _, _, rest = DOCUMENT.partition("For a machine with 4 GiB:")
    smaller = tomllib.loads(rest.split("```")[1].removeprefix("toml"))
    assert len(smaller) == 5 and sum(parts_of(Settings(**smaller))) < 4 * GIB


def test_numbers_in_the_formulas_are_those_of_the_code() -> None:
    overlap = WINDOW_S / (WINDOW_S - 2 * CONTEXT_S)
    assert f"models * {overlap:g} * max_queue_s * second" in DOCUMENT
    assert SAMPLE_RATE * np.dtype(np.float32).itemsize == 64_000
    assert live.IN_MEMORY == MIB and 3 * PIECE_BYTES < MIB / 4


@pytest.mark.parametrize("file", ["kubernetes/deployment.yaml", "kserve.yaml"])
def test_a_pod_has_the_memory_that_its_limits_add_up_to(file: str) -> None:
    (pod,) = pods(yaml.safe_load((ROOT / "docs" / "deploy" / file).read_text()))
    (container,) = pod["containers"]
    given = {each["name"]: each.get("value", "") for each in container["env"]}
    settings = {name.removeprefix(PREFIX).lower(): v for name, v in given.items() if name.startswith(PREFIX)}
    needed = sum(parts_of(Settings(**settings)))  # type: ignore[arg-type]
    for kind in ("requests", "limits"):
        assert int(container["resources"][kind]["memory"].removesuffix("Gi")) * GIB >= needed
    (room,) = (each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if "emptyDir" in each)
    default = Settings()
    streams = default.max_streams * default.max_clip_s * 64_000
    assert int(room.removesuffix("Gi")) * GIB > default.max_pending_bytes + streams


def pods(manifest: object) -> Iterator[Any]:
    """What has containers, wherever it stands."""
    if isinstance(manifest, dict):
        if "containers" in manifest:
            yield manifest
        for value in manifest.values():
            yield from pods(value)


def resident(process: Process) -> int:
    """Bytes of the process that answers, without those of models and decoders."""
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) << 10


def test_clients_that_do_not_read_hold_no_more_than_the_limit(start: Callable[..., Process]) -> None:
    """Frames of 200 s of a wide model are 40 MB."""
    clip = encoded(np.zeros(200 * 4000, np.int16), rate=4000, format="FLAC", subtype="PCM_16")
    head = "POST /v1/embeddings?pooling=none HTTP/1.1\r\nHost: x\r\nContent-Type: audio/flac\r\n"
    asked = f"{head}Content-Length: {len(clip)}\r\n\r\n".encode() + clip
    limits = {f"{PREFIX}MAX_ANSWER_BYTES": str(64 * MIB)}
    process = start("tests.service.fakes", "--width", "1000", **limits)
    client = process.ready()
    assert client.post("/v1/embeddings", content=clip, headers={"content-type": "audio/flac"}).is_success
    before = resident(process)
    statuses = []
    with ExitStack() as stack:
        for _ in range(6):
            address = client.base_url.host, client.base_url.port or 0
            slow = stack.enter_context(closing(socket.create_connection(address, timeout=90)))
            slow.sendall(asked)
            statuses.append(int(slow.recv(16).split()[1]))
        grown = resident(process) - before
        assert grown < 130 * MIB, f"{grown / MIB:.0f} MiB for {statuses}"
        assert statuses == [200, 429, 429, 429, 429, 429]
    until(lambda: process.metric("held_bytes") == 0)
    until(lambda: resident(process) - before < 60 * MIB)
    assert client.post("/v1/embeddings", content=clip, headers={"content-type": "audio/flac"}).is_success

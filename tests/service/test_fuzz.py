"""Twenty thousand damaged uploads of all formats: no answer is a 5xx, and nothing is left behind."""

from __future__ import annotations

import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.narrow import save_narrow
from tests.service.support import Process
from tests.service.test_malformed_uploads import sent
from tests.sounds import FORMATS, MORE, encoded, switchboard, timit
from tests.sounds_av import FORMATS_AV, MORE_AV, encoded_av, sound

UPLOADS, ROUND, CLIENTS = 20_000, 500, 8
MAGIC = 64
RECORDINGS = Path(__file__).parents[1] / "audio" / "recordings"
JOINED = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


def whole_files() -> list[bytes]:
    wave = sound(0.6)
    stereo = np.stack([wave, wave[::-1]], axis=1)
    files = [encoded(samples, kind=k, subtype=s) for samples in (wave, stereo) for k, s in FORMATS]
    files += [encoded(wave, kind=k, subtype=s) for k, s in MORE]
    files += [encoded_av(wave, 16_000, container, codec, o) for container, codec, o in FORMATS_AV]
    files += [encoded_av(sound(0.6, rate), rate, container, codec) for container, codec, rate in MORE_AV]
    files += [path.read_bytes() for path in sorted(RECORDINGS.glob("hello.*"))]
    vorbis, opus, mp3 = (files[FORMATS.index(form)] for form in JOINED)
    return [*files, timit(wave), switchboard(wave), vorbis + opus, mp3 + mp3]


def flipped(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 3, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def overwritten(data: bytearray, rng: random.Random) -> bytearray:
    """Often near the beginning, where the claims are, with what lengths and counts overflow at."""
    at = rng.randrange(min(len(data), rng.choice((MAGIC, 400, len(data)))))
    data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", rng.randbytes(4)))
    return data


def shortened(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def without_a_part(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 7, 300))]
    return data


def with_a_part_twice(data: bytearray, rng: random.Random) -> bytearray:
    at, length = rng.randrange(len(data)), rng.choice((1, 16, 1_000))
    data[at:at] = data[at : at + length]
    return data


def with_junk(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 8, 500)))
    return data


DAMAGES: list[Callable[[bytearray, random.Random], bytearray]] = [
    flipped,
    overwritten,
    shortened,
    without_a_part,
    with_a_part_twice,
    with_junk,
]


def damaged(files: list[bytes], rng: random.Random) -> bytes:
    """One to three damages; now and then the head of one format on the body of another."""
    data = bytearray(rng.choice(files))
    if rng.random() < 0.1:
        cut = rng.randrange(8, MAGIC)
        data[cut:] = rng.choice(files)[cut:]
    for _ in range(rng.choice((1, 1, 2, 3))):
        if data:
            data = rng.choice(DAMAGES)(data, rng)
    return bytes(data)


def rounds(files: list[bytes]) -> Iterator[list[bytes]]:
    rng = random.Random(4)
    for _ in range(UPLOADS // ROUND):
        yield [damaged(files, rng) for _ in range(ROUND)]


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    threads = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    below = {int(child) for each in [children, *threads] for child in each}
    return [*below, *(further for child in below for further in descendants(child))]


def resident(pids: list[int]) -> int:
    """Bytes of memory that are theirs alone or shared in part."""
    total = 0
    for pid in pids:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
    return 1024 * total


def decodes(pid: int) -> bool:
    """Those are replaced now and then, and so is what they hold."""
    return b"speech_ssl.sandbox.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes()


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.fixture
def room() -> Iterator[Path]:
    """A temporary folder whose path is short enough for sockets, under any test runner."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as path:
        yield Path(path)


@pytest.mark.slow
def test_twenty_thousand_damaged_uploads(start: Callable[..., Process], tmp_path: Path, room: Path) -> None:
    process = start("service", SPEECH_SSL_MODEL=str(save_narrow(tmp_path / "narrow")), TMPDIR=str(room))
    client = process.ready()
    files = whole_files()
    before = [sent(client, data, 1).json()["data"] for data in files]
    pid = process.popen.pid
    processes, listed, opened = len(descendants(pid)), sorted(room.rglob("*")), open_files(pid)
    statuses: Counter[int] = Counter()
    memory: list[int] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for uploads in rounds(files):
            answers = pool.map(lambda one: sent(client, one[1], one[0]).status_code, enumerate(uploads))
            statuses.update(answers)
            memory.append(resident([pid, *(child for child in descendants(pid) if not decodes(child))]))
    print(f"\n{dict(statuses)}; resident MB, every 5,000: {[m >> 20 for m in memory[9::10]]}")
    print(f"decoders that died: {process.metric('lost_decoders_total'):g}")
    assert sum(statuses.values()) == UPLOADS
    assert set(statuses) <= {200, 400, 415, 422}, statuses
    assert min(statuses[status] for status in (200, 415, 422)) > UPLOADS // 50, "of all kinds"
    half = memory[len(memory) // 2 :]
    assert statistics.mean(half[-4:]) < 1.05 * statistics.mean(half[:4]), half
    assert len(descendants(pid)) == processes
    assert sorted(room.rglob("*")) == listed
    assert open_files(pid) <= opened + CLIENTS, "a connection of each client"
    assert [sent(client, data, 1).json()["data"] for data in files] == before
    assert "Traceback" not in process.log.read_text()

"""A pre-training run of `small` within a wall-clock limit, that comes back as an artifact.

    python -m benchmarks.gpu.pretrain_small --manifest M.tsv --out runs/small --minutes 55

The same command again goes on where it stopped. It starts the recipe `pretrain_wav2vec2 small` and tells
it to stop, as Ctrl-C would, when the time is up: the recipe saves its state, and its best weights so far
as OUT/artifact. Use files that are quick to decode, for example Ogg Opus at 16 kHz.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import describe, find_device, make_parser

ROOT = Path(__file__).resolve().parents[2]
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses of a recipe that saved its state when it was told to stop."""


@contextmanager
def passing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """SIGTERM and SIGINT to this process go to that one, which saves its state."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {n: signal.signal(n, lambda n, frame: process.send_signal(n)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_for(command: Sequence[str], minutes: float) -> int:
    """Run the command, with SIGTERM to it after so many minutes; its exit status, of a signal negative."""
    # A session of its own: Ctrl-C reaches it once, through here.
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process, passing_on(process):
        try:
            return process.wait(timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.wait()


def last_numbers(log: Path) -> dict[str, dict[str, Any]]:
    """The last line of each kind in the run's log."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {entry["kind"]: entry for entry in map(json.loads, lines)}


def report(out: Path, seconds: float) -> None:
    for kind, numbers in last_numbers(out / "log.jsonl").items():
        shown = {k: v for k, v in numbers.items() if isinstance(v, int | float)}
        print(f"{kind}: " + "  ".join(f"{k} {v:.4g}" for k, v in shown.items()))
    print(f"{seconds / 60:.1f} minutes this time; the artifact is {out / 'artifact'}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser("Pre-train `small` for some minutes; again, to go on.")
    parser.add_argument("--manifest", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=55.0)
    options = parser.parse_args(arguments)
    device = find_device(options.device)
    if device is None:
        return 0
    print(describe(device), flush=True)
    command = [sys.executable, "-m", "recipes.pretrain_wav2vec2", "smoke" if options.tiny else "small"]
    command += ["--out", str(options.out.absolute()), "--device", options.device, "--resume"]
    for manifest in options.manifest:
        command += ["--manifest", str(manifest.absolute())]
    began = time.monotonic()
    status = run_for(command, options.minutes)
    if status == -signal.SIGTERM:
        print("the time was up before the run began: give it more --minutes", file=sys.stderr)
        return 1
    if status not in (0, *STOPPED):
        return abs(status)
    report(options.out, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main())

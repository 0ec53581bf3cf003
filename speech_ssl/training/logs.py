"""What a run tells while it trains: JSON lines, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from speech_ssl.training.checkpoint import write_atomically

SHOWN = {"loss": "loss", "code_perplexity": "codes", "accuracy": "acc", "audio_s_per_s": "x"}


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def close(self) -> None: ...


def _tensorboard(folder: Path, done: int) -> _Writer | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the `train` extra is not installed
        return None
    return SummaryWriter(folder, purge_step=done + 1)


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will take again, and a line that a crash cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())


class Logs:
    """Writes `log.jsonl` and `tensorboard/` in the run's folder. Silent on all ranks but the first.

    The bar is for terminals; elsewhere each log line is printed.
    """

    def __init__(self, out: Path, *, total: int, done: int, active: bool) -> None:
        self.active = active
        if not active:
            return
        _forget_after(out / "log.jsonl", done)
        self._file = (out / "log.jsonl").open("a", encoding="utf-8")
        self._board = _tensorboard(out / "tensorboard", done)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, unit="step", disable=not self._terminal, dynamic_ncols=True
        )

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *error: object) -> None:
        if self.active:
            self._bar.close()
            self._file.close()
            if self._board:
                self._board.close()

    def step(self) -> None:
        if self.active:
            self._bar.update()

    def numbers(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """`kind`: "train" or "valid"."""
        if not self.active:
            return
        self._write({"kind": kind, "step": step, **numbers})
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        shown = {short: f"{numbers[name]:.4g}" for name, short in SHOWN.items() if name in numbers}
        if self._terminal and kind == "train":
            self._bar.set_postfix(shown)
        else:
            self.say(f"{kind} step {step}: " + "  ".join(f"{k} {v}" for k, v in shown.items()))

    def event(self, kind: str, step: int, message: str, *, aloud: bool = True) -> None:
        if self.active:
            self._write({"kind": kind, "step": step, "message": message})
            if aloud:
                self.say(f"{kind}: {message}")

    def say(self, text: str) -> None:
        if self.active:
            self._bar.write(text, file=sys.stderr)

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

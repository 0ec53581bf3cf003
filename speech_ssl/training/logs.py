"""Reports of a run during training: JSON lines, TensorBoard, and events."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from speech_ssl.files import write_atomically
from speech_ssl.training.events import (
    Alarm,
    CheckpointSaved,
    StepLogged,
    StepTaken,
    TrainingBegun,
    TrainingEnded,
    TrainingEvent,
    silent,
)


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
    """Drop the lines of steps that a resumed run will repeat, and a line truncated by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())


class Logs:
    """Writes `log.jsonl` and `tensorboard/` in the run's folder, sends events; only on the first rank."""

    def __init__(
        self,
        out: Path,
        *,
        total: int,
        done: int,
        active: bool,
        tell: Callable[[TrainingEvent], None] = silent,
    ) -> None:
        self.active, self._step = active, done
        if not active:
            return
        _forget_after(out / "log.jsonl", done)
        self._file = (out / "log.jsonl").open("a", encoding="utf-8")
        self._board = _tensorboard(out / "tensorboard", done)
        self._tell = tell
        tell(TrainingBegun(done, total))

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *error: object) -> None:
        if self.active:
            self._file.close()
            if self._board:
                self._board.close()
            self._tell(TrainingEnded(self._step))

    def step(self) -> None:
        self._step += 1
        if self.active:
            self._tell(StepTaken(self._step))

    def numbers(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """kind: "train", "valid" or "probe"."""
        if not self.active:
            return
        self._write({"kind": kind, "step": step, **numbers})
        if self._board:
            for name, value in numbers.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
        self._tell(StepLogged(kind, step, numbers))

    def event(self, kind: str, step: int, message: str, *, aloud: bool = True) -> None:
        if self.active:
            self._write({"kind": kind, "step": step, "message": message})
            if aloud:
                self._tell(Alarm(kind, step, message))

    def saved(self, path: Path, step: int) -> None:
        if self.active:
            self._tell(CheckpointSaved(path, step))

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

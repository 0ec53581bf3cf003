"""A run: all the numbers that make it, and the folder it lives in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Objective
from speech_ssl.training.checkpoint import BEST, FAIRSEQ2_STEPS, LAST, write_atomically
from speech_ssl.training.config import TrainConfig

RUN_FILE = "run.json"


class ObjectiveConfig(Protocol):
    """A frozen dataclass that builds its objective."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self, encoder: Encoder) -> Objective: ...


class DataNumbers(Protocol):
    """A frozen dataclass; training need not know more of it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a recipe's variant returns."""

    name: str
    encoder: EncoderConfig
    objective: ObjectiveConfig
    data: DataNumbers
    train: TrainConfig

    def to_dict(self) -> dict[str, Any]:
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        described = {k: dataclasses.asdict(v) if k != "name" else v for k, v in parts.items()}
        described["objective"]["method"] = type(self.objective).__name__
        return json.loads(json.dumps(described))  # type: ignore[no-any-return]  # tuples become lists, as on disk


def open_run_folder(out: Path, run: Run, inputs: Mapping[str, Any], *, resume: bool) -> None:
    """Make the folder and its `run.json`; or, to resume, check that nothing in it has changed.

    `inputs`: what else decides the result, such as a fingerprint of the manifest. Raises ValueError
    if the folder holds a run and `resume` is not asked for, or if a number differs. A run that left
    no checkpoint is no run: its folder is as good as new.
    """
    now = {**run.to_dict(), "inputs": dict(inputs)}
    path = out / RUN_FILE
    if not path.exists() or not any(any(out.glob(kept)) for kept in (LAST, BEST, FAIRSEQ2_STEPS)):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(now, indent=2).encode())
        return
    if not resume:
        raise ValueError(f"{out} already holds a run: continue it with --resume, or name another folder")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): name another folder") from None
    if changes := list(_differences(before, now)):
        raise ValueError(
            f"{out} was made by another run and cannot be resumed under this one: {'; '.join(changes)}. "
            "Undo the change, or name another folder"
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield f"{name} was {before!r}, is now {now!r}"

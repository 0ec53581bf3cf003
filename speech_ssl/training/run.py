"""A run: all the numbers that define it, and its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from speech_ssl.files import write_atomically
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.flat import stored_config
from speech_ssl.objectives.base import Objective
from speech_ssl.precision import Float
from speech_ssl.training.changes import changed, differing
from speech_ssl.training.checkpoint import BEST, FAIRSEQ2_STEPS, LAST, last_step
from speech_ssl.training.config import TrainConfig

RUN_FILE = "run.json"
BEFORE: Mapping[str, Any] = {"decay_vectors": False}
"""Values for runs that began before these numbers existed."""


class ObjectiveConfig(Protocol):
    """A frozen dataclass that builds its objective."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def build(self, encoder: Encoder) -> Objective: ...


class DataNumbers(Protocol):
    """A frozen dataclass; training needs to know no more about it."""

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
        described["encoder"] = self.encoder.to_dict()
        described["objective"]["method"] = type(self.objective).__name__
        return json.loads(json.dumps(described))  # type: ignore[no-any-return]  # tuples become lists, as on disk


def open_run_folder(
    out: Path,
    run: Run,
    inputs: Mapping[str, Any],
    *,
    resume: bool,
    here: Float,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> TrainConfig:
    """Create the folder and its `run.json`, or, to resume, check that nothing in it has changed. Returns the
    numbers to train with: the run's original ones with later changes applied.

    `inputs`: what else decides the result, such as a fingerprint of the manifest. `here`: the precision that
    "auto" means when a run begins. `changes`: numbers that change from the last checkpoint on; they are
    recorded. Raises ValueError if the folder holds a run and `resume` is false, or if a number differs. A run
    without a checkpoint does not count: its folder is reused.
    """
    path = out / RUN_FILE
    fresh = not path.exists() or not any(any(out.glob(kept)) for kept in (LAST, BEST, FAIRSEQ2_STEPS))
    if fresh:
        begun = replace(run, train=changed(run.train, {"precision": run.train.precision}, here))
        described = {**begun.to_dict(), "inputs": dict(inputs)}
    elif resume:
        described = _read(path)
        for name in ("objective", "data"):
            described[name] = _with_defaults(described.get(name), getattr(run, name))
        _check_same(described, {**run.to_dict(), "inputs": dict(inputs)}, out)
    else:
        raise ValueError(f"{out} already holds a run: continue it with --resume, or name another folder")
    config = _in_effect(described, path)
    wanted = changed(config, {"precision": config.precision, **changes}, here)
    made = differing(config, wanted, last_step(out)) if changes else []
    if made:
        described["changes"] = [*described.get("changes", []), *made]
    if fresh or made:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(described, indent=2).encode())
    return wanted


def _read(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from None
    if not isinstance(described, dict) or not isinstance(described.get("train"), dict):
        raise _damaged(path, "it describes no training")
    try:  # runs from before the encoder's config had parts
        return {**described, "encoder": stored_config(described["encoder"]).to_dict()}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None


def _with_defaults(stored: Any, config: Any) -> Any:
    """With the defaults of fields that `config` has and the run's version had not yet."""
    if not isinstance(stored, dict):
        return stored
    filled = dict(stored)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            filled[field.name] = _with_defaults(filled.get(field.name), value)
        elif field.name not in filled and field.default is not dataclasses.MISSING:
            filled[field.name] = json.loads(json.dumps(field.default))
    return filled


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Raises ValueError for a number that differs. The meaning of "auto", and numbers that the old run lacks,
    stay as they were there."""
    train = {k: v for k, v in now["train"].items() if k in before["train"]}
    if train.get("precision") == "auto":
        train["precision"] = before["train"]["precision"]
    then = {k: v for k, v in before.items() if k != "changes"}
    if differences := list(_differences(then, {**now, "train": train})):
        raise ValueError(
            f"{out} was made by another run and cannot be resumed under this one: {'; '.join(differences)}. "
            "Undo the change, or name another folder"
        )


def _in_effect(described: Mapping[str, Any], path: Path) -> TrainConfig:
    """The training numbers that are now in effect."""
    try:
        now = {change["name"]: change["now"] for change in described.get("changes", [])}
        begun = {**BEFORE, **described["train"]}
        return TrainConfig(**{**begun, "betas": tuple(begun["betas"]), **now})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged ({why}): name another folder")


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now:
        yield f"{name} was {before!r}, is now {now!r}"

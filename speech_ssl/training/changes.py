"""Numbers of a run that may change on resume: `--resume --set NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from speech_ssl.precision import Float
from speech_ssl.training.config import TrainConfig

FIXED: Mapping[str, str] = {
    "steps": "the learning rate and all else that follows the run's progress depend on it",
    "batches_per_step": "the order of the batches depends on it",
    "seed": "all randomness in the run depends on it",
    "betas": "the optimizer's moments were computed with them",
    "valid_at_start": "the run has already started",
}
"""Numbers that a run must keep, and why."""

CHANGEABLE: Mapping[str, Any] = {
    name: kind for name, kind in get_type_hints(TrainConfig).items() if name not in FIXED
}
"""Numbers that may change, and their types."""


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Parses NAME=VALUE texts. Raises ValueError for an unknown number, one that a run must keep, or a value
    of the wrong type."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {text!r}")
        if name in FIXED:
            raise ValueError(f"--set {name}: a run must keep it: {FIXED[name]}; start a new run")
        if name not in CHANGEABLE:
            raise ValueError(f"--set {name}: no such number; choose from {', '.join(CHANGEABLE)}")
        changes[name] = _value(name, value)
    return changes


def changed(config: TrainConfig, changes: Mapping[str, Any], here: Float) -> TrainConfig:
    """here: the precision that "auto" means here. Raises ValueError if the numbers do not fit together."""
    if changes.get("precision") == "auto":
        changes = {**changes, "precision": here}
    return replace(config, **changes)


def differing(before: TrainConfig, after: TrainConfig, step: int) -> list[dict[str, Any]]:
    """The changes as `run.json` records them."""
    numbers = ((name, getattr(before, name), getattr(after, name)) for name in CHANGEABLE)
    return [{"step": step, "name": name, "was": was, "now": now} for name, was, now in numbers if was != now]


def _value(name: str, text: str) -> Any:
    kind, choices = CHANGEABLE[name], get_args(CHANGEABLE[name])
    if get_origin(kind) is Literal:
        if text not in choices:
            raise ValueError(f"--set {name} takes one of {', '.join(choices)}, not {text!r}")
        return text
    if NoneType in choices and text.lower() == "none":
        return None
    kinds = choices or (kind,)
    if bool in kinds:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--set {name} takes true or false, not {text!r}")
        return text.lower() == "true"
    number, wanted = (int, "a whole number") if int in kinds else (float, "a number")
    try:
        return number(text)
    except ValueError:
        raise ValueError(f"--set {name} takes {wanted}, not {text!r}") from None

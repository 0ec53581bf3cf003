"""Numbers of a run that may change when it is resumed: `--resume --set NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from speech_ssl.precision import Float
from speech_ssl.training.config import TrainConfig

FIXED: Mapping[str, str] = {
    "steps": "the rate and all that goes by the progress of the run follow from it",
    "batches_per_step": "the order of the batches follows from it",
    "seed": "all chance in the run follows from it",
    "betas": "the optimizer's moments were gathered with them",
    "valid_at_start": "the start is over",
}
"""What a run cannot change, and why."""

CHANGEABLE: Mapping[str, Any] = {
    name: kind for name, kind in get_type_hints(TrainConfig).items() if name not in FIXED
}
"""What may change, and its type."""


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """From texts NAME=VALUE. Raises ValueError for an unknown number, for one that a run cannot change, and
    for a value of the wrong type."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, not {text!r}")
        if name in FIXED:
            raise ValueError(f"--set {name}: a run keeps it, since {FIXED[name]}; begin another run")
        if name not in CHANGEABLE:
            raise ValueError(f"--set {name}: there is no such number; there are {', '.join(CHANGEABLE)}")
        changes[name] = _value(name, value)
    return changes


def changed(config: TrainConfig, changes: Mapping[str, Any], here: Float) -> TrainConfig:
    """here: what precision "auto" stands for. Raises ValueError for numbers that are not valid together."""
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

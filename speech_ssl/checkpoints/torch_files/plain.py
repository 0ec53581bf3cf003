"""A checkpoint's options as plain dicts, lists and values, whatever objects held them."""

from __future__ import annotations

from typing import Any

from speech_ssl.checkpoints.torch_files.unpickling import Inert

LONGEST = 10_000
"""Longer texts are no options, and are truncated."""


def plain(value: Any) -> Any:
    """Namespaces and OmegaConf nodes become dicts, lists and values; other objects become their content.
    Self-references become None, as do tensors and anything else that is no option. Raises RecursionError if
    the nesting is too deep."""
    return _plain(value, {})


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """done: the results for objects seen before, by identity, since one may be referenced often."""
    if type(value) is int:
        return value if abs(value) < 2**63 else None
    if type(value) in (bool, float) or not isinstance(value, str | Inert | dict | list | tuple):
        return value if type(value) in (bool, float) else None
    if id(value) not in done:
        done[id(value)] = None
        if isinstance(value, str):
            done[id(value)] = value[:LONGEST] if _writable(value) else None
        elif isinstance(value, Inert):
            done[id(value)] = _plain_object(value, done)
        elif isinstance(value, dict):
            done[id(value)] = _plain_fields(value, done)
        else:
            done[id(value)] = [_plain(each, done) for each in value]
    return done[id(value)]


def _plain_object(value: Inert, done: dict[int, Any]) -> Any:
    state = value.state
    if isinstance(state, tuple) and len(state) == 2:  # with slots: (dict, slots)
        state = state[0] if isinstance(state[0], dict) else state[1]
    if isinstance(state, dict):
        held = next((state[name] for name in ("_content", "_val") if name in state), state)
        return _plain(held, done)
    return _plain(value.args[0], done) if len(value.args) == 1 else None


def _plain_fields(value: dict[Any, Any], done: dict[int, Any]) -> dict[Any, Any]:
    fields = ((_plain(key, done), each) for key, each in value.items())
    return {key: _plain(each, done) for key, each in fields if type(key) in (str, int)}


def _writable(text: str) -> bool:
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:  # a lone surrogate
        return False

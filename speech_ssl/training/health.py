"""The collapse watch: says that a run has stopped learning, and what to change, while it still runs."""

from __future__ import annotations

from collections.abc import Mapping

from speech_ssl.objectives.base import Floor


class Collapsed(RuntimeError):
    """A watched number stayed below its floor, and the run was told to stop on it."""


class NonFinite(RuntimeError):
    """The loss or the gradients are infinite or not a number."""


def watch(
    reported: Mapping[str, float], floors: Mapping[str, Floor], below: dict[str, int], patience: int
) -> list[str]:
    """Count log lines below each floor in `below`; the warnings of those that just reached `patience`.

    Each fall is told once: a number must rise above its floor before it is told again.
    """
    warnings = []
    for name, floor in floors.items():
        below[name] = below.get(name, 0) + 1 if reported[name] < floor.minimum else 0
        if below[name] == patience:
            warnings.append(
                f"{name} has been below {floor.minimum:g} for {patience} log lines "
                f"(now {reported[name]:.3g}): {floor.advice}."
            )
    return warnings

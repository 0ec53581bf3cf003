"""The collapse watch: says that a run has stopped learning, and what to change, while it still runs."""

from __future__ import annotations

from collections.abc import Mapping

from speech_ssl.objectives.base import Floor


class Collapsed(RuntimeError):
    """A watched number stayed below its floor, and the run was told to stop on it."""


class NonFinite(RuntimeError):
    """The loss or the gradients are infinite or not a number."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss or its gradients are not finite at step {step}. The last checkpoint is from "
            "before: resume from it with a lower peak_lr, a longer warm-up, clip_norm=1.0 or "
            "precision='fp32', and look for broken audio in the manifest"
        )


def fallen(reported: Mapping[str, float], floors: Mapping[str, Floor]) -> list[str]:
    """The names of the numbers that are below their floors."""
    return [name for name, floor in floors.items() if reported[name] < floor.minimum]


def watch(
    kind: str,
    reported: Mapping[str, float],
    floors: Mapping[str, Floor],
    below: dict[str, int],
    patience: int,
) -> list[str]:
    """Count log lines of a kind below each floor in `below`; the warnings of those that just reached
    `patience`.

    Each fall is told once: a number must rise above its floor before it is told again.
    """
    now_below = fallen(reported, floors)
    warnings = []
    for name, floor in floors.items():
        key = f"{kind} {name}"
        below[key] = below.get(key, 0) + 1 if name in now_below else 0
        if below[key] == patience:
            since = f" for {patience} log lines" if patience > 1 else ""
            warnings.append(
                f"{name} has been below {floor.minimum:g}{since} "
                f"({kind}: {reported[name]:.3g}): {floor.advice}."
            )
    return warnings

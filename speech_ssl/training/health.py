"""The collapse watch: reports, during a run, that it has stopped learning, and what to change."""

from __future__ import annotations

from collections.abc import Mapping

from speech_ssl.objectives.base import Floor
from speech_ssl.training.config import TrainConfig


class Collapsed(RuntimeError):
    """A watched number stayed below its floor, and the run was configured to stop on that."""


class NonFinite(RuntimeError):
    """The loss or the gradients are infinite or NaN.

    step: the last such step, counted from 1. in_a_row: how many there were; none of them changed a weight.
    heard: where their audio is listed.
    """

    def __init__(
        self, step: int, config: TrainConfig, *, in_a_row: int = 1, heard: str = "the manifest"
    ) -> None:
        times = f", the last of {in_a_row} such steps in a row" if in_a_row > 1 else ""
        precision = "" if config.precision == "fp32" else ", or with --set precision=fp32"
        super().__init__(
            f"the loss or its gradients are not finite at step {step}{times}. The last checkpoint is "
            f"from before: continue with --resume --set peak_lr={config.peak_lr / 2:g}, with --resume --set "
            f"clip_norm={1 if config.clip_norm is None else config.clip_norm / 2:g}{precision}, and look for "
            f"broken audio in {heard}"
        )


def fallen(reported: Mapping[str, float], floors: Mapping[str, Floor]) -> list[str]:
    """The names of the numbers below their floors."""
    return [name for name, floor in floors.items() if reported[name] < floor.minimum]


def watch(
    kind: str,
    reported: Mapping[str, float],
    floors: Mapping[str, Floor],
    below: dict[str, int],
    patience: int,
) -> list[str]:
    """Count log lines of a kind below each floor in `below`; return the warnings of counts that just reached
    `patience`.

    A fall is reported once: a number must rise above its floor before it is reported again.
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

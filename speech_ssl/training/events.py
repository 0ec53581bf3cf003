"""Events of a training run, as values for a listener."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TrainingBegun:
    """done: steps taken before a resume. steps: in the whole run."""

    done: int
    steps: int


@dataclass(frozen=True, slots=True)
class StepTaken:
    step: int


@dataclass(frozen=True, slots=True)
class StepLogged:
    """kind: "train" (means since the last of its kind), "valid" (over the held-out batches) or "probe"."""

    kind: str
    step: int
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Alarm:
    """kind: "collapse", or "bad_step" for a skipped step."""

    kind: str
    step: int
    message: str


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """path: the last state, or the best weights so far."""

    path: Path
    step: int


@dataclass(frozen=True, slots=True)
class TrainingEnded:
    """The end of training: by the last step, a signal or an error."""

    step: int


TrainingEvent: TypeAlias = TrainingBegun | StepTaken | StepLogged | Alarm | CheckpointSaved | TrainingEnded


def silent(event: object) -> None:
    """A listener that ignores every event."""

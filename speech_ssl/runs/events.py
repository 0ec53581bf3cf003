"""What a run tells: the events of its training, and what comes before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from speech_ssl.evaluation.probes.report import ProbedProblem
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

__all__ = [
    "Alarm",
    "ArtifactSaved",
    "CheckpointSaved",
    "ClipNoted",
    "ClipRead",
    "LayersProbed",
    "Listener",
    "Measured",
    "Note",
    "ReadingBegun",
    "ReadingEnded",
    "RunBegun",
    "RunEvent",
    "StepLogged",
    "StepTaken",
    "TrainingBegun",
    "TrainingEnded",
    "silent",
]


@dataclass(frozen=True, slots=True)
class RunBegun:
    """clips, hours: to train on. held_out: clips to choose the checkpoint by. too_short: clips left out."""

    name: str
    clips: int
    hours: float
    held_out: int
    too_short: int


@dataclass(frozen=True, slots=True)
class ClipNoted:
    """A clip that could not be used, or was although something is wrong with it; `file` names it too."""

    kind: Literal["skipped", "warning"]
    id: str
    path: Path
    reason: str
    file: Path


@dataclass(frozen=True, slots=True)
class Note:
    """Something else that a user should know, in a line."""

    text: str


@dataclass(frozen=True, slots=True)
class ArtifactSaved:
    """The weights of `step`, the best, are in `folder`."""

    folder: Path
    step: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of the finished model. of: "held out" clips, or "all folds"."""

    of: str
    figures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReadingBegun:
    """what: that is read for a probe. seconds: of audio."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ClipRead:
    seconds: float


@dataclass(frozen=True, slots=True)
class ReadingEnded:
    pass


@dataclass(frozen=True, slots=True)
class LayersProbed:
    problems: Sequence[ProbedProblem]


RunEvent: TypeAlias = (
    TrainingEvent
    | RunBegun
    | ClipNoted
    | Note
    | ArtifactSaved
    | Measured
    | ReadingBegun
    | ClipRead
    | ReadingEnded
    | LayersProbed
)
Listener: TypeAlias = Callable[[RunEvent], None]
"""Called in the process and thread that runs, on the first rank alone. What it raises ends the run."""

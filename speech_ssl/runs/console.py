"""What a recipe prints: events, for people to read."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speech_ssl.evaluation.probes.report import table
from speech_ssl.extraction.progress import ProgressLine
from speech_ssl.runs.events import (
    Alarm,
    ArtifactSaved,
    ClipNoted,
    ClipRead,
    LayersProbed,
    Measured,
    Note,
    ReadingBegun,
    ReadingEnded,
    RunBegun,
    RunEvent,
    StepLogged,
    StepTaken,
    TrainingBegun,
    TrainingEnded,
)

SHOWN = {"loss": "loss", "code_perplexity": "codes", "accuracy": "acc", "audio_s_per_s": "x"}
NOTED = 5
"""So many clips of a kind are named here, the others only in the run's folder."""


class Console:
    """A listener. Figures go to stdout, all else to stderr: a bar where that is a terminal, and lines."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._progress: ProgressLine | None = None
        self._noted: Counter[Path] = Counter()

    def __call__(self, event: RunEvent) -> None:
        match event:
            case RunBegun():
                say(
                    f"{event.name}: {event.clips} clips ({event.hours:.2f} h) to train on, {event.held_out} "
                    f"held out; {event.too_short} left out as too short"
                )
            case ClipNoted():
                self._note(event)
            case Note():
                say(event.text)
            case ArtifactSaved():
                say(f"the weights of step {event.step} are in {event.folder}")
            case Measured():
                print(f"{event.of}: {shown(event.figures)}")
            case LayersProbed():
                print(table(event.problems))
            case _:
                self._advance(event)

    def _advance(self, event: RunEvent) -> None:
        match event:
            case TrainingBegun() if sys.stderr.isatty():
                self._bar = tqdm(total=event.steps, initial=event.done, unit="step", dynamic_ncols=True)
            case StepTaken() if self._bar is not None:
                self._bar.update()
            case StepLogged():
                self._log(event)
            case Alarm():
                say(f"{event.kind}: {event.message}")
            case TrainingEnded() if self._bar is not None:
                self._bar.close()
                self._bar = None
            case ReadingBegun():
                self._progress = ProgressLine(event.what, event.seconds)
            case ClipRead() if self._progress is not None:
                self._progress.advance(event.seconds, clips=1)
            case ReadingEnded() if self._progress is not None:
                self._progress.close()

    def _log(self, event: StepLogged) -> None:
        numbers = {
            short: f"{event.numbers[name]:.4g}" for name, short in SHOWN.items() if name in event.numbers
        }
        if self._bar is not None and event.kind == "train":
            self._bar.set_postfix(numbers)
        else:
            say(f"{event.kind} step {event.step}: " + "  ".join(f"{k} {v}" for k, v in numbers.items()))

    def _note(self, event: ClipNoted) -> None:
        self._noted[event.file] += 1
        if self._noted[event.file] <= NOTED:
            say(f"{event.kind}: {event.reason}")
        if self._noted[event.file] == NOTED:
            say(f"{event.kind}: further files are named only in {event.file}")


def say(line: str) -> None:
    """On stderr, beside a bar."""
    tqdm.write(line, file=sys.stderr)


def shown(figures: Mapping[str, Any]) -> str:
    """The plain ones, in a line."""
    plain = {k: v for k, v in figures.items() if isinstance(v, str | int | float)}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())

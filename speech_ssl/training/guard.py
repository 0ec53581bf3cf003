"""Bad steps: those with a non-finite loss or gradients. They are skipped on the device and reported one step
later. Too many in a row end the run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from speech_ssl.training.checkpoint import RunState
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.health import NonFinite
from speech_ssl.training.logs import Logs
from speech_ssl.training.meter import OnItsWay
from speech_ssl.training.ranks import Ranks
from speech_ssl.training.scaling import LossScale
from speech_ssl.types import Batch

BAD_STEPS = "bad_steps.jsonl"

Clips = tuple[str, ...]
"""The source of each row of a batch."""


class _Judged(NamedTuple):
    """A step, counted from 1 as in the logs; this rank's batches; the verdict, on its way to the host."""

    step: int
    batches: tuple[Clips, ...]
    verdict: OnItsWay


class Guard:
    """Judges each step before it is taken, identically on all ranks.

    in_a_row: bad steps in a row, up to the last report.
    """

    def __init__(self, config: TrainConfig, state: RunState, ranks: Ranks, out: Path) -> None:
        numbers, state.guard = state.guard or {}, None
        self.scale = LossScale(ranks.device, numbers, active=config.precision == "fp16")
        self.in_a_row = int(numbers.get("in_a_row", 0))
        self._config, self._names = config, BadSteps(out / BAD_STEPS, ranks)
        self._in_a_row = torch.tensor(numbers.get("in_a_row", 0.0), device=ranks.device)
        self._skipped = torch.tensor(numbers.get("skipped", 0.0), device=ranks.device)
        self._batches: list[Clips] = []
        self._finite: list[Tensor] = []
        self._judged: _Judged | None = None

    def heard(self, batch: Batch, loss: Tensor) -> None:
        """Records one of this rank's batches of the current step."""
        self._batches.append(batch.names)
        self._finite.append(loss.isfinite())

    def judge(self, loss: Tensor, norm: Tensor, step: int) -> Tensor:
        """Whether the step (counted from 0) must be skipped: a bool, on the device. loss, norm: over all
        ranks.

        A step is bad if no smaller loss scale could have saved it.
        """
        loss_finite = loss.isfinite()
        skip = ~(loss_finite & norm.square().isfinite())  # Adam squares the gradients
        bad = skip & ~self.scale.adapt(skip, loss_finite)
        self._skipped = self._skipped + skip
        self._in_a_row = torch.where(skip, self._in_a_row + bad, 0.0)
        flags = torch.stack([bad, loss_finite, *self._finite]).float()
        verdict = OnItsWay(torch.cat([self._in_a_row[None], flags]))
        self._judged = _Judged(step + 1, tuple(self._batches), verdict)
        self._batches, self._finite = [], []
        return skip

    def tell(self, logs: Logs) -> None:
        """Report the audio of the last judged step if it was bad. Waits for that step, not for what was
        queued after it. Raises NonFinite if it completes too many bad steps in a row."""
        if self._judged is None:
            return
        step, batches, verdict = self._judged
        self._judged = None
        in_a_row, bad, loss_finite, *finite = verdict.read().tolist()
        self.in_a_row = int(in_a_row)
        if bad:  # a bad loss blames its own batch; bad gradients could be from any
            blamed = {n: clips for n, clips in enumerate(batches) if loss_finite or not finite[n]}
            self._names.add(step, blamed, bool(loss_finite), logs)
        if self.in_a_row >= self._config.max_bad_steps:
            raise NonFinite(step, self._config, in_a_row=self.in_a_row, heard=BAD_STEPS)

    def report(self) -> dict[str, float]:
        """The numbers to log. Waits for the device."""
        scale = {"loss_scale": self.scale.numbers()["scale"]} if self.scale.active else {}
        return {"skipped_steps": int(self._skipped), **scale}

    def numbers(self) -> dict[str, float]:
        """The numbers to keep in a checkpoint. Waits for the device."""
        counts = {"in_a_row": float(self._in_a_row), "skipped": float(self._skipped)}
        return {**counts, **self.scale.numbers()}


class BadSteps:
    """Writes the audio of bad steps to a file, and the first few to stderr. Each rank adds its own batches;
    those written before a resume are not repeated."""

    told, clips_told = 5, 3

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self._path, self._rank, self._count = path, ranks.rank, 0
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        self._fresh_line = "\n" if before and not before.endswith("\n") else ""
        self._known: set[tuple[int, int, int]] = set()
        for line in before.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # a line truncated by a crash
                entry = json.loads(line)
                self._known.add((entry["step"], entry["rank"], entry["batch"]))

    def add(self, step: int, blamed: Mapping[int, Clips], loss_finite: bool, logs: Logs) -> None:
        """blamed: this rank's batches, by their index within the step."""
        for number, clips in blamed.items():
            self._write(step, number, clips)
        self._count += 1
        what = "gradients are" if loss_finite else "loss is"
        audio = f"; {self._path.name} names its audio{self._some(blamed)}"
        last = ". Further ones are listed only in the files" if self._count == self.told else ""
        line = f"step {step} was skipped: its {what} not finite{audio}{last}"
        aloud = self._count <= self.told
        logs.event("bad_step", step, line, aloud=aloud)
        if aloud and blamed and not (loss_finite or logs.active):  # the first rank knows only its own audio
            print(f"bad_step: {line}", file=sys.stderr)

    def _write(self, step: int, number: int, clips: Clips) -> None:
        if (key := (step, self._rank, number)) in self._known:
            return
        self._known.add(key)
        entry = {"step": step, "rank": self._rank, "batch": number, "clips": clips}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(self._fresh_line + json.dumps(entry) + "\n")
        self._fresh_line = ""

    def _some(self, blamed: Mapping[int, Clips]) -> str:
        clips = [clip for batch in blamed.values() for clip in batch]
        more = f" and {len(clips) - self.clips_told} more" if len(clips) > self.clips_told else ""
        return f": {', '.join(clips[: self.clips_told])}{more}" if clips else ""

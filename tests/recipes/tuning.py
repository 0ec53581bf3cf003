"""Fine-tuning in this process, in two steps: what its tests share."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from recipes import finetune_ctc, finetune_events
from speech_ssl.runs import FineTuning, command
from speech_ssl.training.config import TrainConfig

Main = Callable[[Sequence[str]], None]


def brief(tuning: FineTuning) -> FineTuning:
    """Two steps, decoding in this process."""
    train = TrainConfig(steps=2, peak_lr=1e-3, precision="fp32", valid_every=1)
    return replace(tuning, data=replace(tuning.data, batch_s=8.0, workers=0), train=train)


def ctc() -> FineTuning:
    """With the front end frozen, as in the published recipes."""
    tuning = brief(finetune_ctc.smoke())
    return replace(tuning, objective=replace(tuning.objective, train_frontend=False))


def clips() -> FineTuning:
    tuning = brief(finetune_events.smoke())
    return replace(tuning, train=replace(tuning.train, valid_at_start=True))


def frozen() -> FineTuning:
    return brief(finetune_events.frozen())


def tags() -> FineTuning:
    return brief(finetune_events.tags())


def timed() -> FineTuning:
    return replace(brief(finetune_events.timed()), data=replace(clips().data, batch_s=20.0))


transcription = command.transcription(ctc, doc="")
sounds = command.sound_events(clips, frozen, tags, timed, doc="")


class Ended(NamedTuple):
    status: int
    stdout: str
    stderr: str


def call(main: Main, *arguments: object) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([*map(str, arguments), "--device", "cpu"])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    return Ended(status, out.getvalue(), err.getvalue())


def done(main: Main, *arguments: object) -> Ended:
    ended = call(main, *arguments)
    assert ended.status == 0, ended.stderr
    return ended


def refusal(main: Main, *arguments: object) -> str:
    ended = call(main, *arguments)
    assert ended.status == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def results(out: Path) -> dict[str, object]:
    return json.loads((out / "results.json").read_text())  # type: ignore[no-any-return]

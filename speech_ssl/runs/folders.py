"""The folder of a run: made, or taken up where it is resumed, the same for all processes; and what is left in
it when the training is over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from speech_ssl.checkpoints.replacing import check_replaceable
from speech_ssl.objectives.base import Objective
from speech_ssl.precision import Float, emulation, emulation_cost, native
from speech_ssl.runs.events import Listener, Note
from speech_ssl.training.checkpoint import BEST, LAST, RunState, load_checkpoint
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.loop import Stopped, stop_signals
from speech_ssl.training.ranks import Ranks
from speech_ssl.training.run import Run, open_run_folder


class RefusedByFirst(ValueError):
    """The first process refused the run, and says why."""


def open_folder(  # noqa: PLR0913 - what makes a run, and how it goes on
    out: Path,
    run: Run,
    inputs: Mapping[str, Any],
    ranks: Ranks,
    *,
    resume: bool,
    changes: Mapping[str, Any],
    tell: Listener,
    here: Float | None = None,
) -> Run:
    """The first rank does it, and the others wait. If it refuses, they raise RefusedByFirst.

    Returns the run with the numbers it has in this folder: precision "auto" becomes what it began with, where
    it begins here what the first rank computes natively (or `here`); what was changed stays so.
    """
    refusal: ValueError | OSError | None = None
    train = run.train
    if ranks.first:
        try:
            check_replaceable(out / "artifact")
            here = here or native(ranks.device)
            train = open_run_folder(out, run, inputs, resume=resume, here=here, changes=changes)
        except (ValueError, OSError) as error:
            refusal = error
    if ranks.any(refusal is not None):
        raise refusal or RefusedByFirst(f"the first process refused {out}")
    train = ranks.from_first(train)
    if ranks.first:
        _tell_costs(train, run.train, ranks, tell)
    return replace(run, train=train)


def results_of(path: Path, changes: Mapping[str, Any], tell: Listener) -> dict[str, Any]:
    """The figures of a run that is finished, which has no step left for changes."""
    if changes:
        tell(Note(f"{path.parent} is finished: --set changes nothing in it"))
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _tell_costs(train: TrainConfig, asked: TrainConfig, ranks: Ranks, tell: Listener) -> None:
    """Of a precision that is emulated here."""
    assert train.precision != "auto"
    if train.precision == asked.precision:
        line = emulation(train.precision, ranks.device)
    elif line := emulation_cost(train.precision, ranks.device):
        line = (
            f"the run goes on in {train.precision}, as it began or was told to: {line}. "
            "--resume --set precision=auto takes what is fast here"
        )
    if line:
        tell(Note(line))


@contextmanager
def leaving_artifact(ranks: Ranks, leave: Callable[[bool], object]) -> Iterator[None]:
    """Around a training: the first rank leaves an artifact when it is over, or stopped by a signal. `leave`
    is told whether it is over."""
    try:
        yield
    except Stopped:
        with stop_signals():  # torchrun sends another when the first process leaves
            if ranks.first:
                leave(False)
            ranks.meet()
        raise
    if ranks.first:
        leave(True)


def best_weights(objective: Objective, out: Path) -> RunState:
    """Load the best weights of the run in `out`, or the last ones if none were good in validation."""
    best = out / BEST if (out / BEST).exists() else out / LAST
    return load_checkpoint(best, objective)

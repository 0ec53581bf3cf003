"""Which pre-training method suits my audio, at the budget that I have?

    python -m recipes.compare_objectives VARIANT --manifest M.tsv [--manifest ...] --out DIR \\
        --task keyword=K.tsv [--task emotion=E.tsv ...] [--budget-s 3600] [--seed 1 ...] [--only NAME ...]

Every method trains for the same seconds on the manifests' audio: the `tiny` run of its own recipe. All have
the encoder `presets.tiny_mel`, with causal blocks for prediction in time and positions of short reach beside
a teacher; but wav2vec 2.0, whose quantizer takes what convolutions learn, has `presets.tiny`. Then the same
linear head is trained on each frozen layer, for every task. Beside them: log-mel, MFCC, the packaged model,
and the first method's encoder and the packaged one with random weights. DIR gets report.html and a file a
result. Run it again to go on after an interruption, or to add methods and seeds; a method that fails is
written down and stops no other. Methods that learn from trained encoders take as many of `--teacher ARTIFACT`
as they need.

Small encoders leave cores idle: two processes with OMP_NUM_THREADS=1, each with its own methods after --only
and twice the seconds, may share DIR. A method's steps are those that fit where its pace was measured first
(DIR/runs/NAME.pace.json), so that a comparison may go on on another machine.

smoke   seconds a method: shows that everything runs; says nothing of use.
tiny    six minutes of training a method on this machine, and some minutes of probing.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

import recipes
from speech_ssl.runs import ComparisonPlan, Run, command

SIX_MINUTES_S = 360.0
COMMAND = "python -m recipes.compare_objectives"


def methods(variant: str) -> tuple[Run, ...]:
    """That variant of every pre-training recipe."""
    names = sorted(m.name for m in pkgutil.iter_modules(recipes.__path__) if m.name.startswith("pretrain_"))
    return tuple(getattr(importlib.import_module(f"recipes.{name}"), variant)() for name in names)


def tiny() -> ComparisonPlan:
    """At most 1,000 clips a task: beyond that probing takes longer than training."""
    return ComparisonPlan(
        methods=methods("tiny"), budget_s=SIX_MINUTES_S, clips=1_000, command=f"{COMMAND} tiny"
    )


def smoke() -> ComparisonPlan:
    """The smoke runs, for a second each, on a few clips."""
    runs = tuple(replace(run, data=replace(run.data, workers=0)) for run in methods("smoke"))
    return ComparisonPlan(methods=runs, budget_s=1.0, clips=40, command=f"{COMMAND} smoke")


main = command.comparison(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()

"""Label efficiency: does pre-training help where labels are few?

    python -m recipes.label_efficiency VARIANT --manifest NAME=M.tsv --init ARTIFACT --out DIR

For each manifest (there may be several; column `label`, one label a clip) the same network is trained from
scratch, pre-trained and frozen, and pre-trained and fine-tuned, on 1, 5, 10, 25 and 100 % of the labels,
three times each. DIR gets report.html, results.csv and figures; run it again to go on after an interruption.
Two processes with different manifests may share a DIR.

Test clips are the rows of split `test`, else `dev`, else those of a fifth of the speakers, else a fifth of
all. Of the others a tenth, 60 clips at most, chooses the checkpoint: it is labelled too, and not counted.

smoke   seconds: one share, one seed, a few steps; shows that everything runs.
tiny    90 trainings for two tasks, about 70 minutes on two CPU cores, a process a task (LOG.md has a run).
"""

from __future__ import annotations

from dataclasses import replace

from recipes.finetune_events import tiny as events_tiny
from speech_ssl.data.batching import DataConfig
from speech_ssl.runs import StudyPlan, command


def tiny() -> StudyPlan:
    """Short runs: the `tiny` encoder, 20 s a step."""
    base = events_tiny()
    train = replace(base.train, steps=120, log_every=20, valid_every=20, save_every=60)
    data = DataConfig(batch_s=20.0, min_s=0.2, workers=1)
    tuning = replace(base, name="label-efficiency", data=data, train=train)
    return StudyPlan(tuning, command="python -m recipes.label_efficiency tiny")


def smoke() -> StudyPlan:
    plan = tiny()
    train = replace(plan.tuning.train, steps=4, log_every=2, valid_every=2, save_every=4, precision="fp32")
    return replace(plan, tuning=replace(plan.tuning, train=train), shares=(1.0,), seeds=(0,))


main = command.label_efficiency(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()

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

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipes.common import orderly_exit, recipe_parser
from recipes.event_tasks import ClipLabels
from recipes.finetune_events import tiny as events_tiny
from recipes.finetuning import Examples, FineTuning, Request, finetune
from speech_ssl.checkpoints.artifact import Artifact
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.folds import hold_out
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.splits import given_splits, id_hash
from speech_ssl.evaluation.labels.efficiency import (
    ARMS,
    SHARES,
    Arm,
    Confusion,
    Key,
    Point,
    Study,
    Trial,
    check_task,
    load_study,
    load_trials,
    nested_subset,
    save_study,
    save_trial,
)
from speech_ssl.evaluation.labels.report import write_report
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.training.ranks import Ranks, joined_ranks

TEST_SHARE, MOST_VALID, LEAST_SPEAKERS = 0.2, 60, 5


@dataclass(frozen=True)
class Plan:
    """tuning: of the fine-tuned arm; see `of_arm` for the others."""

    tuning: FineTuning
    shares: tuple[float, ...] = SHARES
    seeds: tuple[int, ...] = (0, 1, 2)


def tiny() -> Plan:
    """Short runs: the `tiny` encoder, 20 s a step."""
    base = events_tiny()
    train = replace(base.train, steps=120, log_every=20, valid_every=20, save_every=60)
    data = DataConfig(batch_s=20.0, min_s=0.2, workers=1)
    return Plan(replace(base, name="label-efficiency", data=data, train=train))


def smoke() -> Plan:
    plan = tiny()
    train = replace(plan.tuning.train, steps=4, log_every=2, valid_every=2, save_every=4, precision="fp32")
    return Plan(replace(plan.tuning, train=train), shares=(1.0,), seeds=(0,))


def of_arm(tuning: FineTuning, arm: Arm, artifact: Artifact) -> FineTuning:
    """Both pre-trained arms begin with a linear probe of the encoder. Frozen: the head alone learns, for half
    of the steps. Scratch: the same network at random, for twice the steps, since it has more to learn."""
    steps = tuning.train.steps
    if arm == "frozen":
        objective = replace(tuning.objective, head_only=1.0, train_frontend=False)
        return replace(tuning, objective=objective, train=replace(tuning.train, steps=max(steps // 2, 1)))
    if arm == "scratch":
        scratch = replace(artifact.encoder.config, feature_grad_scale=1.0)
        return replace(tuning, scratch=scratch, train=replace(tuning.train, steps=2 * steps))
    return tuning


def divided(utterances: Sequence[Utterance]) -> Examples:
    """By the manifest's splits, else by speakers, else by chance, always the same."""
    train, valid, test = given_splits(utterances)
    test = test or valid
    if not test:
        speakers = sorted({u.speaker for u in utterances if u.speaker}, key=id_hash)
        if len(speakers) >= LEAST_SPEAKERS:
            tested = set(speakers[: round(TEST_SHARE * len(speakers))])
            test = [u for u in train if u.speaker in tested]
            train = [u for u in train if u.speaker not in tested]
        else:
            _, train, test, _ = hold_out(train, share=TEST_SHARE)
    _, train, valid, _ = hold_out(train, share=min(0.1, MOST_VALID / max(len(train), 1)))
    return Examples(train, valid, test)


def run_trial(plan: Plan, key: Key, examples: Examples, options: Options, artifact: Artifact) -> Trial:
    """Train and measure one network."""
    labels = [u.label for u in examples.train]
    chosen = [examples.train[i] for i in nested_subset(labels, key.share, key.seed)]
    tuning = of_arm(plan.tuning, key.arm, artifact)
    tuning = replace(tuning, train=replace(tuning.train, seed=key.seed))
    folder = options.out / "runs" / key.name
    request = Request(
        manifests=(),
        out=folder,
        head="events",
        init=None if key.arm == "scratch" else options.init,
        resume=True,
    )
    results = finetune(tuning, ClipLabels(), replace(examples, train=chosen), request, options.ranks)
    trial = Trial(
        task=key.task,
        arm=key.arm,
        share=key.share,
        labels=len(chosen),
        seed=key.seed,
        metric="accuracy",
        value=results["accuracy"],
        higher_is_better=True,
        best_step=results["step"],
        steps=tuning.train.steps,
        seconds=results["seconds"],
        curve=read_curve(folder / "log.jsonl"),
        confusion=Confusion(results["labels"], results["confusion"]),
        guessing=Counter(u.label for u in examples.test).most_common(1)[0][1] / len(examples.test),
    )
    shutil.rmtree(folder)
    return trial


def read_curve(path: Path) -> tuple[Point, ...]:
    """Losses of training and validation, and the validation's accuracy, by step."""
    points: dict[int, Point] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        point = points.get(entry["step"], Point(entry["step"]))
        if entry["kind"] == "train":
            point = point._replace(train_loss=entry["loss"])
        elif entry["kind"] == "valid":
            point = point._replace(valid_loss=entry["loss"], valid_metric=entry["accuracy"])
        points[entry["step"]] = point
    return tuple(points[step] for step in sorted(points))


@dataclass(frozen=True)
class Options:
    out: Path
    init: str
    ranks: Ranks


def study(plan: Plan, manifests: Mapping[str, Path], options: Options) -> Path:
    """All trials that are not there yet, then the report. Cheap shares come first."""
    artifact = named_artifact(options.init)
    examples = {name: divided(read_manifest(path)) for name, path in manifests.items()}
    before = load_study(options.out)
    now = described(plan, examples, artifact, before)
    for field in ("network", "training"):
        if getattr(before, field) not in ("", getattr(now, field)):
            raise ValueError(f"{options.out} holds a study with another {field}: name another folder")
    save_study(options.out, now)
    done = {trial.key for trial in load_trials(options.out)}
    keys = [
        Key(task, arm, share, seed)
        for task in manifests
        for seed in plan.seeds
        for share in plan.shares
        for arm in ARMS
    ]
    for number, key in enumerate(keys, start=1):
        if key not in done:
            print(f"{number} of {len(keys)}: {key.name}", file=sys.stderr)
            save_trial(options.out, run_trial(plan, key, examples[key.task], options, artifact))
    return write_report(options.out)


def described(plan: Plan, examples: Mapping[str, Examples], artifact: Artifact, before: Study) -> Study:
    tasks = {
        name: (
            f"{len({u.label for u in e.train})} classes; {len(e.train)} clips to learn from, {len(e.valid)} "
            f"to choose the checkpoint by (labelled too, whatever the share), {len(e.test)} to test on."
        )
        for name, e in examples.items()
    }
    train, data = plan.tuning.train, plan.tuning.data
    audio = artifact.config["training"].get("audio")
    millions = sum(p.numel() for p in artifact.encoder.parameters()) / 1e6
    named = " ".join(f"--manifest {name}={name}.tsv" for name in {**before.tasks, **tasks})
    return Study(
        tasks={**before.tasks, **tasks},
        shares=plan.shares,
        seeds=plan.seeds,
        network=f"{millions:.1f} M parameters: the encoder of the artifact {artifact.name} "
        f"({artifact.sha256[:12]}), and a head over all its layers.",
        pretraining=f"Pre-trained without labels on {', '.join(audio)}." if audio else "See the artifact.",
        training=f"{train.steps} steps of {data.batch_s:g} s of audio for every share (frozen: half as many; "
        f"from scratch: twice as many), AdamW with a peak learning rate of {train.peak_lr:g}. The "
        f"pre-trained arms begin with a linear probe of the encoder. Validated at the start and every "
        f"{train.valid_every} steps; the checkpoint with the best balanced accuracy there is tested.",
        command=f"python -m recipes.label_efficiency tiny {named} --init ARTIFACT --out DIR",
    )


def named_manifests(given: Sequence[Path]) -> dict[str, Path]:
    """NAME=PATH, or a path whose name is the task's. Raises ValueError for a name that is given twice."""
    found: dict[str, Path] = {}
    for text in map(str, given):
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).stem, text
        check_task(name)
        if name in found:
            raise ValueError(f"two manifests are called {name}: write --manifest NAME=PATH")
        found[name] = Path(path)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    variants: dict[str, Any] = {"smoke": smoke, "tiny": tiny}
    given = recipe_parser(list(variants), __doc__).parse_args(arguments)
    with orderly_exit(), joined_ranks(given.device) as ranks:
        if given.set:
            raise ValueError("--set changes one run, and a study is many: write a variant of the recipe")
        if ranks.world > 1:
            raise ValueError("a study is many small runs: start it without torchrun, a process a manifest")
        options = Options(given.out, given.init or "default", ranks)
        report = study(variants[given.variant](), named_manifests(given.manifest), options)
        print(f"the report is {report}")


if __name__ == "__main__":
    main()

"""Label efficiency: the same network from scratch, frozen and fine-tuned, on growing shares of the labels."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from speech_ssl.checkpoints.artifact import Artifact
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
    load_study,
    load_trials,
    nested_subset,
    save_study,
    save_trial,
)
from speech_ssl.evaluation.labels.report import write_report
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.runs.events import Listener, Note, silent
from speech_ssl.runs.finetuning import tune
from speech_ssl.runs.sound_events import ClipLabels
from speech_ssl.runs.tuning import Examples, FineTuning, TuningRequest
from speech_ssl.training.ranks import Ranks, alone

TEST_SHARE, MOST_VALID, LEAST_SPEAKERS = 0.2, 60, 5


@dataclass(frozen=True)
class StudyPlan:
    """tuning: of the fine-tuned arm; see `of_arm` for the others. command: what starts it, for the report."""

    tuning: FineTuning
    shares: tuple[float, ...] = SHARES
    seeds: tuple[int, ...] = (0, 1, 2)
    command: str = ""


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


def run_trial(
    plan: StudyPlan, key: Key, examples: Examples, artifact: Artifact, request: TuningRequest
) -> Trial:
    """Train and measure one network."""
    labels = [u.label for u in examples.train]
    chosen = [examples.train[i] for i in nested_subset(labels, key.share, key.seed)]
    tuning = of_arm(plan.tuning, key.arm, artifact)
    tuning = replace(tuning, train=replace(tuning.train, seed=key.seed))
    folder = request.out / "runs" / key.name
    request = replace(request, out=folder, init=None if key.arm == "scratch" else request.init)
    results = tune(tuning, ClipLabels(), replace(examples, train=chosen), request)
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


def study(
    plan: StudyPlan,
    manifests: Mapping[str, Path | str],
    out: Path | str,
    ranks: Ranks | None = None,
    *,
    init: str = "default",
    tell: Listener = silent,
) -> Path:
    """All trials of `out` that are not there yet, then the report, whose path is returned. Cheap shares come
    first. manifests: by the names of the tasks. Raises ValueError where `out` holds another study."""
    out, ranks = Path(out), ranks or alone()
    if ranks.world > 1:
        raise ValueError("a study is many small runs: start it without torchrun, a process a manifest")
    request = TuningRequest(out=out, head="events", ranks=ranks, init=init, resume=True, tell=tell)
    artifact = named_artifact(init)
    examples = {name: divided(read_manifest(Path(path))) for name, path in manifests.items()}
    before = load_study(out)
    now = described(plan, examples, artifact, before)
    for field in ("network", "training"):
        if getattr(before, field) not in ("", getattr(now, field)):
            raise ValueError(f"{out} holds a study with another {field}: name another folder")
    save_study(out, now)
    done = {trial.key for trial in load_trials(out)}
    keys = [
        Key(task, arm, share, seed)
        for task in manifests
        for seed in plan.seeds
        for share in plan.shares
        for arm in ARMS
    ]
    for number, key in enumerate(keys, start=1):
        if key not in done:
            tell(Note(f"{number} of {len(keys)}: {key.name}"))
            save_trial(out, run_trial(plan, key, examples[key.task], artifact, request))
    return write_report(out)


def described(plan: StudyPlan, examples: Mapping[str, Examples], artifact: Artifact, before: Study) -> Study:
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
        command=f"{plan.command} {named} --init ARTIFACT --out DIR" if plan.command else "",
    )

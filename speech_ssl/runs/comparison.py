"""Pre-training methods at one budget of seconds, and what can then be read out of each."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.splits import id_hash
from speech_ssl.evaluation.comparison import vectors
from speech_ssl.evaluation.comparison.report import write_report
from speech_ssl.evaluation.comparison.results import (
    CurvePoint,
    Described,
    Entry,
    TaskScore,
    Vectors,
    load_described,
    load_entries,
    save_described,
    save_entry,
)
from speech_ssl.evaluation.probes.representations import (
    MIN_SAMPLES,
    Cached,
    Means,
    Representation,
    cached,
    encoder_states,
    log_mel,
    mfcc,
    random_encoder,
)
from speech_ssl.evaluation.probes.tasks import Problem, Task, solve, solve_layers
from speech_ssl.files import write_atomically
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.model.config import EncoderConfig, LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.precision import processor_name
from speech_ssl.runs.events import Listener, Note, RunEvent, silent
from speech_ssl.runs.pretraining import pretrain
from speech_ssl.runs.reading import fingerprint
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.events import StepTaken
from speech_ssl.training.loop import Stopped
from speech_ssl.training.run import Run

_states = partial(encoder_states, deviations=True)
"""Described as the spectra are, by mean and deviation: a sound that comes and goes has both."""
PACE, UNTIMED, TIMED = "pace.json", 4, 10
"""Steps that are taken to see how long one takes: the first ones are not counted."""
PROBED = 6
"""How often the curve's probe looks while a method trains."""
HALVES = 200
"""Clips whose halves are compared, at most."""


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What a variant of a recipe returns.

    methods: their numbers of steps are those that fit into `budget_s` seconds on this machine. clips: most of
    a task, chosen by the hash of their ids; None: all.
    """

    methods: tuple[Run, ...]
    budget_s: float
    seeds: tuple[int, ...] = (0,)
    clips: int | None = None
    command: str = ""


class Exam(NamedTuple):
    """A task with its clips."""

    task: Task
    data: str
    path: Path
    clips: list[Utterance]

    @property
    def described(self) -> str:
        hours = sum(clip.duration_s for clip in self.clips) / 3600
        return f"{self.data}, {len(self.clips)} clips, {hours:.2f} h"


def compare(
    plan: ComparisonPlan,
    manifests: Sequence[Path | str],
    tasks: Sequence[tuple[Task, Path | str]],
    out: Path | str,
    *,
    teachers: Sequence[str] = (),
    tell: Listener = silent,
) -> Path:
    """Train and probe all that `out` does not hold yet, then write the report, whose path is returned.

    Every method trains for the same seconds; the first task's labels also make its curve. A method that fails
    is written down, and tried again if its file in `results` is deleted. Stopped by a signal it goes on from
    the last checkpoint when it is called again. Raises ValueError where `out` holds another comparison.
    """
    out = Path(out)
    exams = [_exam(task, Path(path), plan.clips) for task, path in tasks]
    if not exams:
        raise ValueError("a comparison needs a task to probe")
    utterances = [u for path in manifests for u in read_manifest(Path(path))]
    inputs = fingerprint(utterances, None) | {"teachers": [named_artifact(t).sha256 for t in teachers]}
    _open(out, plan, exams, inputs)
    done = {entry.key for entry in load_entries(out)}
    baselines(out, exams, done, plan.methods[0].encoder, tell)
    keys = [(run, seed) for seed in plan.seeds for run in plan.methods]
    waiting = [(run, seed) for run, seed in keys if f"{run.name}-seed{seed}" not in done]
    took: list[float] = []
    for number, (run, seed) in enumerate(waiting):
        began = time.monotonic()
        left_s = (sum(took) / len(took) if took else 1.5 * plan.budget_s) * (len(waiting) - number)
        tell(Note(f"{number + 1} of {len(waiting)}: {run.name}, seed {seed}; about {_spoken(left_s)} left"))
        save_entry(out, tried(run, seed, plan, manifests, exams, out, teachers, tell))
        took.append(time.monotonic() - began)
        write_report(out)
    return write_report(out)


def tried(  # noqa: PLR0913 - all that a trial is made of
    run: Run,
    seed: int,
    plan: ComparisonPlan,
    manifests: Sequence[Path | str],
    exams: Sequence[Exam],
    out: Path,
    teachers: Sequence[str],
    tell: Listener,
) -> Entry:
    """Train a method and probe it, or say why that failed."""
    folder = out / "runs" / f"{run.name}-seed{seed}"
    entry = Entry(name=run.name, kind="method", seed=seed, front_end=_front_end(run.encoder))
    try:
        # The method's own number of teachers: most have none.
        own = list(islice(teachers, _teachers_of(run)))
        train = partial(pretrain, manifests=manifests, teachers=own)
        run = replace(run, train=replace(run.train, seed=seed))
        pace_s = paced(run, train, out / "runs" / f"{run.name}.{PACE}", folder)
        steps = max(round(plan.budget_s / pace_s), 2 * PROBED)
        every = max(steps // PROBED, 1)
        often = {"log_every": max(steps // 50, 1), "save_every": every, "valid_every": every}
        timed = _changed(run.train, steps=steps, probe_every=every, **often)
        artifact = load_artifact(
            train(replace(run, train=timed), out=folder, resume=True, probe=_labelled(exams[0]), tell=tell)
        )
        entry = replace(
            entry,
            parameters=sum(p.numel() for p in artifact.encoder.parameters()),
            steps=steps,
            seconds=steps * pace_s,
            heard_h=steps * run.train.batches_per_step * _batch_s(run) / 3600,
            curve=read_curve(folder / "log.jsonl", pace_s),
        )
        return probed(entry, _states(artifact.encoder), exams, artifact.encoder.receptive_field)
    except Stopped:
        raise
    except Exception as error:
        tell(Note(f"{entry.key} failed: {error}"))
        return replace(entry, failure=f"{type(error).__name__}: {error}"[:500])


def paced(run: Run, train: partial[Path], path: Path, folder: Path) -> float:
    """Seconds of a step on this machine: measured once, and kept, for a resumed run needs the same steps."""
    if path.exists():
        return float(json.loads(path.read_text(encoding="utf-8"))["step_s"])
    times: list[float] = []

    def note(event: RunEvent) -> None:
        if isinstance(event, StepTaken):
            times.append(time.monotonic())

    steps = UNTIMED + TIMED
    numbers = dict.fromkeys(("steps", "log_every", "valid_every", "save_every", "probe_every"), steps)
    trial = folder.with_name(f"{folder.name}.pace")
    shutil.rmtree(trial, ignore_errors=True)
    train(replace(run, train=_changed(run.train, **numbers)), out=trial, tell=note)
    shutil.rmtree(trial)
    step_s = float(np.median(np.diff(times[UNTIMED:])))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"step_s": step_s}).encode())
    return step_s


def baselines(
    out: Path, exams: Sequence[Exam], done: set[str], encoder: EncoderConfig, tell: Listener
) -> None:
    """Spectra, the shipped encoder, and its like and the compared one at random."""
    shipped = named_artifact("default")
    config = shipped.encoder.config
    known: Mapping[str, tuple[Representation, str]] = {
        "log-mel": (log_mel, "log-mel"),
        "MFCC": (mfcc, "MFCC"),
        "random weights": (_states(random_encoder(encoder, 0)), _front_end(encoder)),
        "random weights of the shipped model": (
            _states(random_encoder(config, 0)),
            _front_end(config),
        ),
        "shipped model": (_states(shipped.encoder), _front_end(config)),
    }
    least = max(shipped.encoder.receptive_field, Encoder(encoder).receptive_field)
    for name, (representation, front_end) in known.items():
        if name not in done:
            tell(Note(f"baseline: {name}"))
            entry = Entry(name=name, kind="baseline", front_end=front_end)
            save_entry(out, probed(entry, representation, exams, least))


def probed(entry: Entry, representation: Representation, exams: Sequence[Exam], least: int) -> Entry:
    """With its scores on all tasks, and what its vectors are like on the first."""
    scores: list[TaskScore] = []
    for number, exam in enumerate(exams):
        found = cached(exam.clips, {"it": representation}, min_samples=max(least, MIN_SAMPLES))
        for problem in exam.task.problems(found.clips):
            scores.append(scored(problem, found.means["it"]))
        if number == 0:
            layer = scores[0].best
            entry = replace(
                entry,
                ranks=tuple(vectors.effective_rank(x) for x in np.moveaxis(found.means["it"], 1, 0)),
                vectors=described_vectors(found, representation, layer),
            )
    return replace(entry, scores=tuple(scores))


def scored(problem: Problem, x_NLD: Means) -> TaskScore:
    layers = solve_layers(problem, x_NLD, seed=0)
    best = min(range(len(layers)), key=lambda layer: layers[layer].held_out)
    mixed = solve(problem, x_NLD, seed=0).score if len(layers) > 1 else layers[0].score
    scores = tuple(outcome.score for outcome in layers)
    return TaskScore(problem.name, problem.metric, problem.guessing, scores, best, mixed)


def described_vectors(found: Cached, representation: Representation, layer: int) -> Vectors:
    """Of a layer's clip vectors, and those of both halves of some clips."""
    x_ND = found.means["it"][:, layer]
    halves = [half for clip in found.clips[:HALVES] for half in _halves(clip)]
    parts = cached(halves, {"it": representation})
    kept = {clip.id: row for clip, row in zip(parts.clips, parts.means["it"][:, layer], strict=True)}
    both = [clip.id for clip in found.clips if f"{clip.id}#0" in kept and f"{clip.id}#1" in kept]
    first, second = (np.stack([kept[f"{id}#{side}"] for id in both]) for side in (0, 1))
    shown = slice(0, vectors.MAPPED)
    places = vectors.plane(x_ND[shown])
    labels = [clip.label or clip.speaker for clip in found.clips[shown]]
    points = tuple(
        (round(float(x), 4), round(float(y), 4), label) for (x, y), label in zip(places, labels, strict=True)
    )
    return Vectors(
        vectors.effective_rank(x_ND), vectors.alignment(first, second), vectors.uniformity(x_ND), points
    )


def _halves(clip: Utterance) -> list[Utterance]:
    begin, half = clip.start or 0.0, clip.duration_s / 2
    return [
        replace(
            clip, id=f"{clip.id}#{n}", start=begin + n * half, end=begin + (n + 1) * half, duration_s=half
        )
        for n in range(2)
    ]


def read_curve(log: Path, pace_s: float) -> tuple[CurvePoint, ...]:
    """Validation losses, and the linear probe's accuracy, by the seconds trained until then."""
    points = []
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        seconds = round(entry.get("step", 0) * pace_s, 1)
        if entry.get("kind") == "valid":
            points.append(CurvePoint(seconds, loss=entry["loss"]))
        elif entry.get("kind") == "probe" and "linear" in entry:
            points.append(CurvePoint(seconds, probe=entry["linear"]))
    return tuple(points)


def _exam(task: Task, path: Path, most: int | None) -> Exam:
    clips = task.clips(read_manifest(path))
    if most is not None and len(clips) > most:
        kept = set(sorted((clip.id for clip in clips), key=id_hash)[:most])
        clips = [clip for clip in clips if clip.id in kept]
    task.problems(clips)  # what cannot be probed is refused before hours are spent
    return Exam(task, path.resolve().parent.name, path, clips)


def _labelled(exam: Exam) -> Path | None:
    """Its manifest, if the probe that looks on during training finds labels in it."""
    return exam.path if any(clip.label for clip in exam.clips) else None


def _open(out: Path, plan: ComparisonPlan, exams: Sequence[Exam], inputs: dict[str, object]) -> None:
    tasks = {exam.task.name: exam.described for exam in exams}
    now = Described(
        budget_s=plan.budget_s,
        processor=processor_name(),
        tasks=tasks,
        inputs=json.loads(json.dumps(inputs)),
        planned=tuple(f"{run.name}-seed{seed}" for seed in plan.seeds for run in plan.methods),
        command=plan.command,
        curve_of=exams[0].task.name,
    )
    before = load_described(out)
    for name in ("budget_s", "tasks", "inputs"):
        if before is not None and getattr(before, name) != getattr(now, name):
            raise ValueError(f"{out} holds a comparison with another {name}: name another folder")
    if before is not None:  # methods may be added
        now = replace(now, planned=tuple(dict.fromkeys((*before.planned, *now.planned))))
    save_described(out, now)


def _changed(config: TrainConfig, **numbers: int) -> TrainConfig:
    return replace(config, **numbers)  # type: ignore[arg-type]  # mypy sees any field's type in any


def _front_end(config: EncoderConfig) -> str:
    return "log-mel" if isinstance(config.frontend, LogMel) else "wave"


def _teachers_of(run: Run) -> int:
    """How many trained encoders its method learns from."""
    return run.objective.build(Encoder(run.encoder)).teachers


def _batch_s(run: Run) -> float:
    return float(getattr(run.data, "batch_s"))  # noqa: B009 - of DataConfig, which training need not know


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"

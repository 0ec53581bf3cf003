"""What can be read out of a frozen encoder, layer by layer, and out of nothing but a spectrum.

    python -m recipes.probe_layers keyword --manifest M.tsv [--manifest ...] --out DIR [--init ARTIFACT]
    python -m recipes.probe_layers all --manifest keyword=M.tsv --manifest emotion=N.tsv --out DIR

keyword        which label
intent         which intent of a spoken order; where all have one intent, which value of each slot
emotion        which label, one speaker left out at a time
speaker        who of the speakers heard in training
verification   whether two clips are of one speaker, none of whom training has heard
all            several of these at once: say which is for which manifest
smoke          seconds, on the packaged prompts: shows that everything runs; says nothing of use

SUPERB's protocol (speech_ssl/evaluation/probes/linear.py says what differs): the encoder is frozen, all its
hidden states are averaged over time and mixed by learned weights. Beside it stand the best single layer
(chosen on training clips), the same encoder with random weights, log-mel and MFCC means and deviations, and
guessing.
Writes probes.csv, layers.csv, layers.png and probes.json. With the packaged model all of it takes about two
minutes of one core an hour of audio, then 5 to 40 seconds a task.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from speech_ssl.checkpoints.artifact import Artifact
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.evaluation.probes import tasks as probe_tasks
from speech_ssl.evaluation.probes.figures import Column, draw_layers
from speech_ssl.evaluation.probes.representations import (
    MIN_SAMPLES,
    Cached,
    Representation,
    cached,
    encoder_states,
    log_mel,
    mfcc,
    random_encoder,
)
from speech_ssl.evaluation.probes.tasks import Outcome, Problem, Task, solve, solve_layers
from speech_ssl.extraction.progress import ProgressLine
from speech_ssl.inference.runtime import named_artifact

SEED = 0
MIXED, BEST, RANDOM = "all layers", "best layer", "random weights"
SPECTRA: Mapping[str, Representation] = {"log-mel": log_mel, "MFCC": mfcc}
SHOWN = ("guessing", "MFCC", "log-mel", RANDOM, BEST, MIXED)


def keyword() -> tuple[Task, ...]:
    return (probe_tasks.keyword(),)


def intent() -> tuple[Task, ...]:
    return (probe_tasks.intent(),)


def emotion() -> tuple[Task, ...]:
    return (probe_tasks.emotion(),)


def speaker() -> tuple[Task, ...]:
    return (probe_tasks.speaker(),)


def verification() -> tuple[Task, ...]:
    return (probe_tasks.verification(),)


def all() -> tuple[Task, ...]:
    return (*keyword(), *intent(), *emotion(), *speaker(), *verification())


def smoke() -> tuple[Task, ...]:
    """Whether a prompt has one word or several, and whether two halves are of one prompt: labels that any
    transcribed speech has. The packaged prompts have one speaker, and the packaged model has heard them."""

    def few(utterances: Sequence[Utterance]) -> list[Utterance]:
        return [u for u in utterances if u.text and u.duration_s > 0.4][:40]

    def halves(utterances: Sequence[Utterance]) -> list[Utterance]:
        return [half for u in few(utterances) for half in _halves(u)]

    def words(clips: Sequence[Utterance]) -> list[Problem]:
        labels = ["one" if len(clip.text.split()) == 1 else "several" for clip in clips]
        return [Problem("words", labels, np.arange(len(clips)) % 4 == 0)]

    def prompts(clips: Sequence[Utterance]) -> list[Problem]:
        names = [clip.speaker for clip in clips]
        tested_N = np.isin(names, sorted(set(names))[::4])
        return [Problem("halves", names, tested_N, verify=True, note="the halves of a prompt as its clips")]

    return (Task("words", few, words), Task("halves", halves, prompts))


VARIANTS = {f.__name__: f for f in (keyword, intent, emotion, speaker, verification, all, smoke)}


class Probed(NamedTuple):
    """A task, and the manifest that it is tried on. data: what to call that in tables."""

    task: Task
    data: str
    utterances: list[Utterance]


@dataclass(frozen=True)
class Row:
    """A problem's outcomes: of each representation, and of each layer of the encoder alone."""

    data: str
    problem: Problem
    outcomes: dict[str, Outcome]
    layers: list[Outcome]

    @property
    def best(self) -> int:
        """The layer that the training clips would choose."""
        return min(range(len(self.layers)), key=lambda layer: self.layers[layer].held_out)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        jobs = _jobs(options.variant, options.manifest)
        for job in jobs:  # what cannot be probed is refused before an hour of audio is read
            job.task.problems(job.task.clips(job.utterances))
        artifact = named_artifact(options.init)
        device = _device(options.device)
        _check_out(options.out)
        run(jobs, artifact, options.out, device)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(jobs: Sequence[Probed], artifact: Artifact, out: Path, device: str) -> None:
    """Probe everything, print the table and write the files."""
    started = time.monotonic()
    representations = {
        **SPECTRA,
        RANDOM: encoder_states(random_encoder(artifact.encoder.config, SEED), device),
        MIXED: encoder_states(artifact.encoder, device),
    }
    rows: list[Row] = []
    reports: list[dict[str, object]] = []
    clips: list[Utterance] = []
    for job in jobs:
        began, before, clips = time.monotonic(), clips, job.task.clips(job.utterances)
        if clips != before:  # two tasks of one manifest may follow each other
            found = _read(job, clips, representations, artifact.encoder.receptive_field)
        read_s, began = time.monotonic() - began, time.monotonic()
        new = [_row(job.data, problem, found) for problem in job.task.problems(found.clips)]
        seconds = {"features": round(read_s, 1), "probes": round(time.monotonic() - began, 1)}
        reports.append(_report(job, found, new, seconds))
        rows += new
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "probes.csv", _probe_lines(rows))
    _write_csv(out / "layers.csv", _layer_lines(rows))
    summary = {
        "seed": SEED,
        "artifact": {"name": artifact.name, "sha256": artifact.sha256},
        "device": device,
        "seconds": round(time.monotonic() - started, 1),
        "tasks": reports,
    }
    print(table(rows))
    draw_layers([_column(row) for row in rows], out / "layers.png", title=f"probes of {artifact.name}")
    (out / "probes.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"probes.csv, layers.csv, layers.png and probes.json are in {out}", file=sys.stderr)


def table(rows: Sequence[Row]) -> str:
    """Tasks by representations: accuracy, or EER."""
    head = ["task", "data", "measure", *SHOWN]
    lines = [[row.problem.name, row.data, row.problem.metric, *_shown(row)] for row in rows]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            field.ljust(width) if i < 3 else field.rjust(width)
            for i, (field, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *lines)
    )


def _shown(row: Row) -> list[str]:
    scores = {name: f"{outcome.score:.3f}" for name, outcome in row.outcomes.items()}
    scores["guessing"] = f"{row.problem.guessing:.3f}"
    scores[BEST] += f" ({row.best})"
    return [scores[name] for name in SHOWN]


def _row(data: str, problem: Problem, found: Cached) -> Row:
    outcomes = {name: solve(problem, x_NLD, seed=SEED) for name, x_NLD in found.means.items()}
    row = Row(data, problem, outcomes, solve_layers(problem, found.means[MIXED], seed=SEED))
    outcomes[BEST] = row.layers[row.best]
    return row


def _read(
    job: Probed, clips: Sequence[Utterance], representations: Mapping[str, Representation], min_samples: int
) -> Cached:
    """Features of all clips; the first of those that cannot be read are named."""
    progress = ProgressLine(f"{job.task.name}, {job.data}", sum(clip.duration_s for clip in clips))
    try:
        found = cached(
            clips,
            representations,
            min_samples=max(min_samples, MIN_SAMPLES),
            tick=lambda seconds: progress.advance(seconds, clips=1),
        )
    finally:
        progress.close()
    for reason in list(found.failures.values())[:5]:
        print(f"skipped: {reason}", file=sys.stderr)
    return found


def _report(
    job: Probed, found: Cached, rows: Sequence[Row], seconds: Mapping[str, float]
) -> dict[str, object]:
    problems = [
        {
            "name": row.problem.name,
            "note": "; ".join(filter(None, (row.problem.note, row.outcomes[MIXED].note))),
            "tested": len(row.problem.tested_labels),
            "classes": len(set(row.problem.labels)),
        }
        for row in rows
    ]
    return {
        "task": job.task.name,
        "data": job.data,
        "clips": len(found.clips),
        "audio_s": round(sum(clip.duration_s for clip in found.clips), 1),
        "seconds": dict(seconds),
        "problems": problems,
        "skipped": found.failures,
    }


def _probe_lines(rows: Iterable[Row]) -> Iterable[Sequence[object]]:
    yield ("task", "data", "representation", "layer", "metric", "score", "uar", "min_dcf", "tested", "note")
    for row in rows:
        problem = row.problem
        for name, outcome in row.outcomes.items():
            others = ("", f"{outcome.other:.4f}") if problem.verify else (f"{outcome.other:.4f}", "")
            layer = row.best if name == BEST else ""
            score = (problem.metric, f"{outcome.score:.4f}", *others)
            yield problem.name, row.data, name, layer, *score, len(problem.tested_labels), problem.note
        score = (problem.metric, f"{problem.guessing:.4f}", "", "")
        yield problem.name, row.data, "guessing", "", *score, len(problem.tested_labels), problem.note


def _layer_lines(rows: Iterable[Row]) -> Iterable[Sequence[object]]:
    yield (
        "task",
        "data",
        "layer",
        "metric",
        "score",
        "uar_or_min_dcf",
        "weight",
        "held_out",
        "held_out_loss",
    )
    for row in rows:
        weights_L = row.outcomes[MIXED].layer_weights_L
        for layer, outcome in enumerate(row.layers):
            numbers = (outcome.score, outcome.other, float(weights_L[layer]), *outcome.held_out)
            fields = (row.problem.name, row.data, layer, row.problem.metric, *(f"{n:.4f}" for n in numbers))
            yield (*fields, "") if row.problem.verify else fields  # an EER has no loss beside it


def _write_csv(path: Path, lines: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _column(row: Row) -> Column:
    scores_L = [outcome.score for outcome in row.layers]
    weights_L = row.outcomes[MIXED].layer_weights_L.tolist()
    return Column(row.problem.name, row.data, row.problem.verify, scores_L, weights_L)


def _halves(clip: Utterance) -> Iterable[Utterance]:
    middle = (clip.start or 0.0) + clip.duration_s / 2
    for start, end in (((clip.start or 0.0), middle), (middle, middle + clip.duration_s / 2)):
        yield replace(clip, start=start, end=end, id=f"{clip.id}#{start:g}", speaker=clip.id)


def _jobs(variant: str, manifests: Sequence[str]) -> list[Probed]:
    """Each manifest is a data set of its own; those of `all` say which task they are for."""
    tasks = {task.name: task for task in VARIANTS[variant]()}
    jobs: list[Probed] = []
    for given in manifests:
        name, equals, path = given.partition("=")
        if variant == "all" and not (equals and name in tasks):
            raise ValueError(
                f"say which task it is for: --manifest TASK={given}, TASK one of {', '.join(tasks)}"
            )
        chosen, path = ([tasks[name]], Path(path)) if variant == "all" else (tasks.values(), Path(given))
        utterances = read_manifest(path)
        data = path.resolve().parent.name
        jobs += [Probed(task, data, utterances) for task in chosen]
    return jobs


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is not known: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device: use --device cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _check_out(out: Path) -> None:
    if (out / "probes.json").exists():
        raise ValueError(f"{out} holds the probes of another run: choose another folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose another name for the folder")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("--manifest", action="append", required=True, help="may be given repeatedly")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--init", default="default", help="artifact to probe (default: the packaged model)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    return parser


if __name__ == "__main__":
    main()
